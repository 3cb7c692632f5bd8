"""What makes two networks, or two data sets, the same: sha256 of what they hold."""

import hashlib
from collections.abc import Iterable
from itertools import chain

import torch
from torch import nn, Tensor


def sha256_of(parts: Iterable[str | Tensor | None]) -> str:
    """sha256 of texts and tensors, in their order; a tensor counts by type, shape and values.

    It is the same on every device.
    """
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            found.update(f"{part.dtype} {tuple(part.shape)} ".encode())
            found.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            found.update(f"{part!r} ".encode())
    return found.hexdigest()


def digest_of(net: nn.Module) -> str:
    """sha256 of a network's weights and buffers, with their names, and of its class's name."""
    return sha256_of((type(net).__name__, *chain.from_iterable(sorted(net.state_dict().items()))))
