"""The memory format of convolutions."""

import torch
from torch import nn

NARROWEST = 8
"""Input channels from which a strided 1x1 convolution may be channels last."""


def channels_last(net: nn.Module) -> None:
    """Convert the weights of a network's convolutions to channels last, in place, and so their outputs.

    The numbers are the same up to rounding; on a CPU an update is 1.2 to 1.8 times as fast (see LOG.md, and
    `python -m benchmarks.classifiers`).  A network with a strided 1x1 convolution of fewer than
    `NARROWEST` channels is left alone: on CPUs with AVX2 and no AVX-512 the gradient of its input is
    written beyond its end (oneDNN 3.12 in torch 2.13; see LOG.md).
    """
    if not any(map(_overruns, net.modules())):
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not among torch's types


def _overruns(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and max(layer.kernel_size) == 1
        and max(layer.stride) > 1
        and layer.in_channels < NARROWEST
    )
