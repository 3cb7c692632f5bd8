"""Frozen weights in half precision: those that autocast casts at every call, cast once."""

import copy
from collections.abc import Iterable
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn

from halfstep.diffusion.denoiser import Denoiser
from halfstep.errors import ConfigError
from halfstep.models.lora import LoraNet

M = TypeVar("M", bound=nn.Module)
CAST = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
"""Layers whose weights and inputs autocast casts.  A subclass may use them otherwise, and is left alone."""


def store_frozen(networks: Iterable[nn.Module]) -> None:
    """Store the weights of frozen denoisers in the dtype of their autocast, in place.

    Their outputs are the same to the bit: autocast casts these weights at every call.  A denoiser without
    autocast, or with a parameter that is trained, is left alone.
    """
    for part in chain.from_iterable(network.modules() for network in networks):
        if not isinstance(part, Denoiser) or part.autocast is None:
            continue
        if not any(p.requires_grad for p in part.net.parameters()):
            if any(hasattr(p, "full_tensor") for p in part.net.parameters()):
                part.net = copy.deepcopy(part.net)  # whole, to be sharded anew in that dtype
            # Of a LoRA with its base, which has the student's adapter too.
            net = part.net.base.net if isinstance(part.net, LoraNet) else part.net
            store_weights(net, part.autocast)


def store_weights(net: nn.Module, dtype: torch.dtype) -> None:
    """Store the weights of linear layers and convolutions in this dtype, in place; `input_dtype` stays.

    Weights that another kind of layer shares, as a tied embedding does, those that are trained, and those in
    float64, stay.
    """
    first, cast = next(net.parameters(), None), dict[int, nn.Parameter]()
    for name in names_to_cast(net):
        path, _, leaf = name.rpartition(".")
        weights = net.get_submodule(path)._parameters
        if (
            (weight := weights[leaf]) is None
            or weight.dtype != torch.float32
            or weight.requires_grad
        ):
            continue
        if id(weight) not in cast:
            cast[id(weight)] = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        weights[leaf] = cast[id(weight)]
    if first is not None and cast:
        mark_stored(net, dtype, first.dtype)


def check_half(dtype: torch.dtype | None) -> torch.dtype | None:
    """The half precision that weights are to be read in; None for float32."""
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(
            f"dtype is torch.bfloat16, torch.float16 or torch.float32, got {dtype!r}: give one of these"
        )
    return None if dtype == torch.float32 else dtype


def names_to_cast(net: nn.Module) -> frozenset[str]:
    """The names of the weights that half precision is for, whatever their dtype is now."""
    layers = [layer for layer in net.modules() if type(layer) in CAST]
    inside = {id(layer) for layer in layers}
    others = [part for part in net.modules() if id(part) not in inside]
    own = {id(p) for layer in layers for p in layer._parameters.values()}
    shared = {id(p) for part in others for p in part._parameters.values()}
    named = net.named_parameters(remove_duplicate=False)
    return frozenset(name for name, p in named if id(p) in own - shared)


def mark_stored(net: nn.Module, dtype: torch.dtype, before: torch.dtype) -> None:
    """Note that a network's weights were rounded to this dtype; it takes samples in the one before."""
    if not hasattr(net, "input_dtype"):
        net.input_dtype = before  # type: ignore[assignment]  # no module
    net.stored_dtype = dtype  # type: ignore[assignment]


def stored_dtype(net: nn.Module) -> torch.dtype | None:
    """The half precision that a network's weights were rounded to; None for those that were not."""
    dtype: torch.dtype | None = getattr(net, "stored_dtype", None)
    return dtype


def refuse_stored(net: nn.Module, what: str) -> None:
    """`ConfigError` for rounded weights.

    what  is not done with them, such as "saved"
    """
    if (dtype := stored_dtype(net)) is not None:
        raise ConfigError(
            f"this network was read with dtype={dtype}, and rounded weights are not {what}: load it again "
            "without dtype"
        )


def on_same_weights(module: M) -> M:
    """A copy with modules and parameters of its own, in the same memory."""
    memo: dict[int, Any] = {id(buffer): buffer.detach() for buffer in module.buffers()}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(p.detach(), requires_grad=p.requires_grad)
    return copy.deepcopy(module, memo)
