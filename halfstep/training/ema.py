"""Exponential moving average of weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn, Tensor


class Average:
    """values <- decay * values + (1 - decay) * weights; the first update copies.

    Averages parameters only, not buffers, in float32 at least: in half precision a change by a share of
    0.001 would be rounded away.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.values: list[Tensor] = [
            p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for p in module.parameters()
        ]

    @torch.no_grad()
    def follow(self, parameters: Iterable[nn.Parameter], update: int) -> None:
        """Average in a module's parameters after the update of this number, the first being 0."""
        pairs = zip(parameters, self.values, strict=True)
        weights = [p if p.dtype == value.dtype else p.to(value.dtype) for p, value in pairs]
        torch._foreach_lerp_(self.values, weights, 1.0 if update == 0 else 1 - self.decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Give the module the averaged weights, in its own precision."""
        for parameter, value in zip(module.parameters(), self.values, strict=True):
            parameter.copy_(value)

    @contextmanager
    def swapped_into(self, module: nn.Module) -> Iterator[None]:
        """Inside it the module has the averaged weights; afterwards its own again, to the bit.

        Weights and values change places one after another, so that it takes the memory of one of them.
        """
        own = self._swap(module, [])
        try:
            yield
        finally:
            self._swap(module, own)

    @torch.no_grad()
    def _swap(self, module: nn.Module, own: list[Tensor | None]) -> list[Tensor | None]:
        """Exchange weights and values.  Of another dtype than their values, weights are kept apart."""
        kept = list[Tensor | None]()
        for k, (weight, value) in enumerate(zip(module.parameters(), self.values, strict=True)):
            copied = weight.detach().clone()
            before = own[k] if own else None
            weight.copy_(value if before is None else before)
            if weight.dtype == value.dtype:
                value.copy_(copied)
            kept.append(None if weight.dtype == value.dtype else copied)
        return kept
