"""Networks whose linear layers multiply in int8, through torchao: made, written as plain tensors, read again.

Dynamic quantisation: weights are int8 with one scale for each row of a layer; what a layer reads is brought
to int8 as it comes, one scale a token.  Sums are int32, and everything between the layers stays float32.
"""

from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn, Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from halfstep.config import JsonObject
from halfstep.errors import ConfigError
from halfstep.quiet import quietly
from halfstep.storage import check_fits, load_into

LEAST = 16
"""A layer with fewer rows or columns stays as it is: it is small, and often writes the output."""


def wide_layers(net: nn.Module, *kinds: type[nn.Module]) -> dict[str, nn.Module]:
    """The layers of these kinds, by name, whose weight has at least 16 rows and 16 columns."""
    found = {name: layer for name, layer in net.named_modules() if isinstance(layer, kinds)}
    return {
        name: layer
        for name, layer in found.items()
        if isinstance(layer.weight, Tensor) and min(layer.weight.shape[:2]) >= LEAST
    }


def quantise(net: nn.Module) -> nn.Module:
    """Itself, its wide linear layers in int8; `net.quantised` says by what.

    `ConfigError` where torchao is missing, or nothing is there to quantise.
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


def quantise_like(net: nn.Module, about: Mapping[str, Any]) -> nn.Module:
    """A fresh network, made to hold the tensors of one that `quantise` made.

    about  what `net.quantised` said
    """
    if about.get("kind") != "int8-dynamic":
        raise ConfigError(
            f"these weights were quantised as '{about.get('kind')}', which this halfstep does not know: use "
            "the version that wrote them"
        )
    made = quantise(net)
    made.quantised = dict(about)  # type: ignore[assignment]  # who wrote the tensors
    return made


def plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Its state dict, torchao's tensors taken apart: an int8 `NAME.qdata` and a float `NAME.scale`."""
    return apart(module.state_dict())


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, each of torchao's as the plain ones that it is made of."""
    found = dict[str, Tensor]()
    for name, value in tensors.items():
        if not is_traceable_wrapper_subclass(value):
            found[name] = value
            continue
        parts, _ = value.__tensor_flatten__()
        found |= apart({f"{name}.{part}": getattr(value, part) for part in parts})
    return found


@torch.no_grad()
def load_plain_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Put `plain_tensors` back, strictly: every name, shape and int8 as the module has them."""
    mine = plain_tensors(module)
    check_fits(mine, tensors, source)
    for name, value in mine.items():
        value.copy_(tensors[name])


def quantised_entry(net: nn.Module) -> JsonObject:
    """What a file says of a quantised network; nothing of any other."""
    about = getattr(net, "quantised", None)
    return {"quantised": about} if about else {}


def load_quantised(
    net: nn.Module, tensors: Mapping[str, Tensor], about: Mapping[str, Any], source: str
) -> None:
    """`load_into`, into a fresh network that is quantised first where its file says so."""
    if about.get("quantised") is None:
        load_into(net, tensors, source)
    else:
        load_plain_tensors(quantise_like(net, about["quantised"]), tensors, source)
