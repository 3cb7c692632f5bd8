"""Fingerprints of networks and data sets: sha256 of their contents."""

import hashlib
from collections.abc import Iterable
from itertools import chain

import torch
from torch import nn, Tensor


def sha256_of(parts: Iterable[str | Tensor | None]) -> str:
    """sha256 of texts and tensors in order, the same on every device.

    A tensor counts by dtype, shape and values.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)} ".encode())
            # A sharded tensor is gathered, by all processes together.
            part = getattr(part, "full_tensor", part.detach)()
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(f"{part!r} ".encode())
    return digest.hexdigest()


def digest_of(net: nn.Module) -> str:
    """sha256 of a network's class name, and of its weights and buffers with their names.

    And of the weights that a LoRA shares: its `base_digest`.
    """
    bases = [part.base_digest for part in net.modules() if hasattr(part, "base_digest")]
    named = chain.from_iterable(sorted(net.state_dict().items()))
    return sha256_of((type(net).__name__, *named, *map(str, bases)))
