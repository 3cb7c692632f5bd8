"""What a step would make of an exact network's answers: a walk that leads nowhere is refused before.

The data tried are normal, at 0 and of spread `SPREAD` in every number.  Their denoiser and their flow are
linear, so that one number tells how far a step goes astray.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import level_of
from halfstep.diffusion.prediction import Prediction
from halfstep.diffusion.schedules import Level, Schedule

SPREAD = 0.5
"""Of the data that are tried: about what images in [-1, 1] have."""
ASTRAY = 2.0
"""Spreads from where the exact flow ends; whoever says the mean of the data, in one step, is one off."""


def spread(level: Level) -> Tensor:
    """Of x_t."""
    return (level.alpha**2 * SPREAD**2 + level.sigma**2).sqrt()


def answer(x_t: Tensor, level: Level) -> Prediction:
    """The exact denoiser's."""
    share = x_t / spread(level) ** 2
    return Prediction(level.alpha * SPREAD**2 * share, level.sigma * share)


@dataclass(frozen=True)
class Exact:
    """The exact denoiser as a sampler asks it, on any schedule."""

    schedule: Schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return answer(x_t, level_of(self.schedule, t, x_t))


def astray(got: Tensor, exact: Tensor, *, drawn: bool = False) -> float:
    """How many spreads too far walks end, or steps lead: above `ASTRAY` they lead nowhere.

    drawn  the walk draws noise on its way: then where each ends is left to chance, and only how far
           apart they end counts
    """
    wanted = _size(exact)
    far = _size(got) - wanted if drawn else _size(got - exact)
    return float(far / wanted) if bool(got.isfinite().all()) else torch.inf


def _size(x: Tensor) -> Tensor:
    return x.double().square().mean().sqrt()
