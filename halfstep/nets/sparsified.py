"""Magnitude pruning through torch.nn.utils.prune: the smallest weights become 0, and stay so.

Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", without the training
that follows there.  Zeros take as much room and time as other numbers in a dense file and a dense product:
what is measured is what a network does without.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils import prune

from halfstep.errors import ConfigError
from halfstep.nets.quantised import wide_layers

KINDS = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d


def sparsify(net: nn.Module, share: float, *, rows: bool = False) -> nn.Module:
    """Itself, without a share of the weights of its wide linear and convolutional layers.

    share  in (0, 1): of all of them together the smallest by magnitude; with
    rows   of each layer's own rows (output channels) those of the smallest L2 norm, rounded to whole rows

    Made permanent: there are no masks left.  `ConfigError` for a share that is none, and for a network
    without such layers.
    """
    check_share(share)
    layers = list(wide_layers(net, *KINDS).values())
    if not layers:
        raise ConfigError(
            f"this {type(net).__name__} has no linear or convolutional layer of 16 rows and columns: "
            "there is nothing to prune"
        )
    if getattr(net, "quantised", None):
        raise ConfigError("this network is int8: prune the one that it was made from")
    if rows:
        for layer in layers:
            prune.ln_structured(layer, "weight", amount=share, n=2, dim=0)
    else:
        pairs = [(layer, "weight") for layer in layers]
        prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=share)
    for layer in layers:
        prune.remove(layer, "weight")
        layer.weight.requires_grad_(False)
    return net


def check_share(share: float) -> None:
    """Refuse a share of weights that there cannot be."""
    if not 0 < share < 1:
        raise ConfigError(
            f"pruning takes a share of the weights between 0 and 1, got {share:g}: write for example "
            f"{share / 100 if 1 < share < 100 else 0.3:g}"
        )


def zeroed(parameters: Iterable[torch.Tensor]) -> float:
    """The share of all parameters that is exactly 0."""
    zeros = total = 0
    for value in parameters:
        zeros, total = zeros + int((value == 0).sum()), total + value.numel()
    return zeros / max(total, 1)
