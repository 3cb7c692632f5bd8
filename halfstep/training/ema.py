"""Exponential moving average of weights."""

import torch
from torch import nn, Tensor


class Average:
    """values <- decay * values + (1 - decay) * weights; the first update copies.

    Holds the parameters alone: buffers are the network's own.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.values: list[Tensor] = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def follow(self, module: nn.Module, update: int) -> None:
        """Take in the weights after the update of this number, the first being 0."""
        weights = [p.detach() for p in module.parameters()]
        torch._foreach_lerp_(self.values, weights, 1.0 if update == 0 else 1 - self.decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Give the module the averaged weights."""
        for parameter, value in zip(module.parameters(), self.values, strict=True):
            parameter.copy_(value)
