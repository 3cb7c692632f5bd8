"""Quantise linear layers to int8 with torchao; save and load them as plain tensors.

Dynamic quantisation: weights are int8 with one scale per row of a layer; activations are quantised at run
time with one scale per token.  Sums are int32, and everything between the layers stays float32.
"""

from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec

import torch
from torch import nn, Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from halfstep.config import JsonObject
from halfstep.errors import ConfigError
from halfstep.quiet import quietly
from halfstep.storage import check_fits, load_into

LEAST = 16
"""A layer with fewer rows or columns is not quantised: it is small, and often the output layer."""


def wide_layers(net: nn.Module, *kinds: type[nn.Module]) -> dict[str, nn.Module]:
    """The layers of these kinds, by name, whose weight has at least 16 rows and 16 columns."""
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, kinds)}
    return {
        name: layer
        for name, layer in layers.items()
        if isinstance(layer.weight, Tensor) and min(layer.weight.shape[:2]) >= LEAST
    }


def quantise(net: nn.Module) -> nn.Module:
    """Quantise the wide linear layers of a network in place; `net.quantised` records how; returns it.

    `ConfigError` if torchao is missing, or if there is nothing to quantise.
    """
    if find_spec("torchao") is None:
        raise ConfigError(
            "int8 needs the package torchao, which is not installed: pip install 'halfstep[int8]'"
        )
    layers = wide_layers(net, nn.Linear)
    if not layers or getattr(net, "quantised", None):
        what = "has no linear layer of 16 rows and columns" if not layers else "is int8 already"
        raise ConfigError(f"this {type(net).__name__} {what}: leave --int8 out")
    with quietly():
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    chosen = set(layers.values())
    config = Int8DynamicActivationInt8WeightConfig()
    quantize_(net, config, filter_fn=lambda layer, name: layer in chosen)
    net.quantised = {"kind": "int8-dynamic", "torchao": version("torchao")}  # type: ignore[assignment]
    return net


def quantise_like(net: nn.Module, about: Mapping[str, str]) -> nn.Module:
    """Quantise a fresh network, to load the tensors of one that `quantise` made.

    about  the saved `net.quantised`
    """
    if about.get("kind") != "int8-dynamic":
        raise ConfigError(
            f"these weights were quantised as '{about.get('kind')}', which this halfstep does not know: use "
            "the version that wrote them"
        )
    quantised = quantise(net)
    quantised.quantised = dict(about)  # type: ignore[assignment]  # torchao's version of the tensors
    return quantised


def plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A state dict without torchao's tensors: each is split into int8 `NAME.qdata` and float `NAME.scale`."""
    return apart(module.state_dict())


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split torchao's tensors into their plain parts; a sharded tensor stays one."""
    plain = dict[str, Tensor]()
    for name, value in tensors.items():
        if not is_traceable_wrapper_subclass(value) or hasattr(value, "full_tensor"):
            plain[name] = value
            continue
        parts, _ = value.__tensor_flatten__()
        plain |= apart({f"{name}.{part}": getattr(value, part) for part in parts})
    return plain


@torch.no_grad()
def load_plain_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load `plain_tensors` strictly: all names and shapes must be the module's."""
    state = plain_tensors(module)
    check_fits(state, tensors, source)
    for name, value in state.items():
        value.copy_(tensors[name])


def quantised_entry(net: nn.Module) -> JsonObject:
    """The entry of a file for a quantised network; {} for others."""
    about = getattr(net, "quantised", None)
    return {"quantised": about} if about else {}


def load_quantised(
    net: nn.Module, tensors: Mapping[str, Tensor], about: JsonObject, source: str
) -> None:
    """`load_into` a fresh network, which is quantised first if its file says so."""
    if about.get("quantised") is None:
        load_into(net, tensors, source)
    else:
        load_plain_tensors(quantise_like(net, about["quantised"]), tensors, source)
