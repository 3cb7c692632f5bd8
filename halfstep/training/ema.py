"""Exponential moving average of weights."""

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
    def follow(self, module: nn.Module, update: int) -> None:
        """Average in the weights after the update of this number, the first being 0."""
        pairs = zip(module.parameters(), self.values, strict=True)
        weights = [p.detach().to(value.dtype) for p, value in pairs]
        torch._foreach_lerp_(self.values, weights, 1.0 if update == 0 else 1 - self.decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Give the module the averaged weights, in its own precision."""
        for parameter, value in zip(module.parameters(), self.values, strict=True):
            parameter.copy_(value)
