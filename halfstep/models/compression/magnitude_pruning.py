"""Magnitude pruning, as in torch.nn.utils.prune: the smallest weights become 0 and stay 0.

Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", without the training
that follows there.  Zeros take as much room and time as other numbers in a dense file and a dense product:
the quality of the pruned network is measured, not its speed.
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
    """Set a share of the weights of a network's wide linear and convolutional layers to 0; returns it.

    share  in (0, 1), of the smallest weights by magnitude over all layers
    rows   in each layer instead the rows (output channels) of the smallest L2 norm, a whole number of them

    Every layer keeps its largest weight, or row, at any share: without it the later layers would read a
    constant.  `ConfigError` for an invalid share, and for a network without such layers.
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
    """The layers' weights by name; a weight shared by several layers is listed once."""
    weights = dict[int, tuple[str, Tensor]]()
    for name, layer in layers.items():
        weight: Any = layer.weight
        weights.setdefault(id(weight), (name, weight))
    return dict(weights.values())


def _of_all(weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Masks: 0 at this share of the weights, those of the least magnitude, 1 elsewhere.

    The largest weight of each layer stays at any share.  Ties are broken in row order, for any memory format
    (such as channels last).
    """
    size = torch.cat([weight.detach().abs().reshape(-1) for weight in weights.values()])
    mask = torch.ones_like(size)
    mask[size.topk(round(share * len(size)), largest=False).indices] = 0
    counts = [weight.numel() for weight in weights.values()]
    parts = mask.split(counts)
    for part, sizes in zip(parts, size.split(counts), strict=True):
        part[sizes.argmax()] = 1
    pairs = zip(weights.items(), parts, strict=True)
    return {name: part.reshape(weight.shape) for (name, weight), part in pairs}


def _of_rows(weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Masks that multiply the weights: 1 for the rows of the largest norms, at least one, 0 for others."""
    masks = dict[str, Tensor]()
    for name, weight in weights.items():
        norms = torch.linalg.vector_norm(weight.detach().flatten(1), dim=1)
        mask = torch.zeros_like(norms)
        mask[norms.topk(max(len(norms) - round(share * len(norms)), 1)).indices] = 1
        masks[name] = mask.reshape(-1, *[1] * (weight.ndim - 1))
    return masks


def check_share(share: float) -> None:
    """`ConfigError` for a share of weights outside (0, 1)."""
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
