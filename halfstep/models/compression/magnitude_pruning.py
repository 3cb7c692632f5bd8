"""Magnitude pruning, as torch.nn.utils.prune does it: the smallest weights become 0, and stay so.

Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", without the training
that follows there.  Zeros take as much room and time as other numbers in a dense file and a dense product:
what is measured is what a network does without.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn, Tensor

from halfstep.config.validate import validate
from halfstep.errors import ConfigError
from halfstep.models.compression.int8 import wide_layers

KINDS = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d


def sparsify(net: nn.Module, share: float, *, rows: bool = False) -> nn.Module:
    """Itself, without a share of the weights of its wide linear and convolutional layers.

    share  in (0, 1): of all of them together the smallest by magnitude; with
    rows   of each layer's own rows (output channels) those of the smallest L2 norm, rounded to whole rows

    Every layer keeps its largest weight, or row, however large the share: without it all that comes after
    would read a constant.  `ConfigError` for a share that is none, and for a network without such layers.
    """
    check_share(share)
    layers = wide_layers(net, *KINDS)
    if not layers:
        raise ConfigError(
            f"this {type(net).__name__} has no linear or convolutional layer of 16 rows and columns: "
            "there is nothing to prune"
        )
    if getattr(net, "quantised", None):
        raise ConfigError("this network is int8: prune the one that it was made from")
    weights = _weights(layers)
    masks = _of_rows(weights, share) if rows else _of_all(weights, share)
    if all(bool(mask.all()) for mask in masks.values()):
        raise ConfigError(
            f"a share of {share:g} is none of the {'rows' if rows else 'weights'} of any layer: write a "
            "larger one"
        )
    with torch.no_grad():
        for name, weight in weights.items():
            weight.mul_(masks[name])
            weight.requires_grad_(False)
    return net


def _weights(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """By name; one that several layers share is there once."""
    found = dict[int, tuple[str, Tensor]]()
    for name, layer in layers.items():
        weight: Any = layer.weight
        found.setdefault(id(weight), (name, weight))
    return dict(found.values())


def _of_all(weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """1 where a weight stays, 0 at this share of all of them, those of the least magnitude.

    The largest weight of each layer stays, whatever the share.  Weights are counted by rows, however they
    lie in memory (channels last, say).
    """
    size = torch.cat([weight.detach().abs().reshape(-1) for weight in weights.values()])
    kept = torch.ones_like(size)
    kept[size.topk(round(share * len(size)), largest=False).indices] = 0
    counts = [weight.numel() for weight in weights.values()]
    parts = kept.split(counts)
    for part, sizes in zip(parts, size.split(counts), strict=True):
        part[sizes.argmax()] = 1
    pairs = zip(weights.items(), parts, strict=True)
    return {name: part.reshape(weight.shape) for (name, weight), part in pairs}


def _of_rows(weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """1 for each row that stays, shaped to multiply the weight: of the largest norms, at least one."""
    found = dict[str, Tensor]()
    for name, weight in weights.items():
        norms = torch.linalg.vector_norm(weight.detach().flatten(1), dim=1)
        kept = torch.zeros_like(norms)
        kept[norms.topk(max(len(norms) - round(share * len(norms)), 1)).indices] = 1
        found[name] = kept.reshape(-1, *[1] * (weight.ndim - 1))
    return found


def check_share(share: float) -> None:
    """Refuse a share of weights that there cannot be."""
    validate("the share of pruning", share, float)
    if not 0 < share < 1:
        raise ConfigError(
            f"pruning takes a share of the weights between 0 and 1, got {share:g}: write for example "
            f"{share / 100 if 1 < share < 100 else 0.3:g}"
        )


def zero_share(parameters: Iterable[torch.Tensor]) -> float:
    """The share of all parameters that is exactly 0."""
    zeros = total = 0
    for value in parameters:
        zeros, total = zeros + int((value == 0).sum()), total + value.numel()
    return zeros / max(total, 1)
