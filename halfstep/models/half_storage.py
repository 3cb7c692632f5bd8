"""Frozen weights in half precision: those that autocast casts at every call, cast once."""

import copy
from collections.abc import Iterable
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn

from halfstep.diffusion.denoiser import Denoiser
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
    first = next(net.parameters(), None)
    if first is not None and not hasattr(net, "input_dtype"):
        net.input_dtype = first.dtype  # type: ignore[assignment]  # no module
    layers = [layer for layer in net.modules() if type(layer) in CAST]
    inside = {id(layer) for layer in layers}
    others = [part for part in net.modules() if id(part) not in inside]
    shared = {id(p) for part in others for p in part._parameters.values()}
    cast = dict[int, nn.Parameter]()
    for layer in layers:
        for name, weight in layer._parameters.items():
            if weight is None or weight.dtype != torch.float32 or id(weight) in shared:
                continue
            if weight.requires_grad:
                continue
            if id(weight) not in cast:
                cast[id(weight)] = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
            layer._parameters[name] = cast[id(weight)]


def on_same_weights(module: M) -> M:
    """A copy with modules and parameters of its own, in the same memory."""
    memo: dict[int, Any] = {id(buffer): buffer.detach() for buffer in module.buffers()}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(p.detach(), requires_grad=p.requires_grad)
    return copy.deepcopy(module, memo)
