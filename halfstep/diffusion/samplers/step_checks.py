"""Errors of solver steps with an exact network, to refuse diverging samplers before sampling.

The test data are N(0, SPREAD^2) in every value.  Their denoiser and flow are linear, so that one number is
the error of a step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import level_of
from halfstep.diffusion.prediction import Prediction
from halfstep.diffusion.schedules import Level, Schedule

SPREAD = 0.5
"""Standard deviation of the test data, about that of images in [-1, 1]."""
MAX_ERROR = 2.0
"""The largest accepted distance from the exact end, in spreads; the mean of the data is at distance one."""


def spread(level: Level) -> Tensor:
    """The standard deviation of x_t."""
    return (level.alpha**2 * SPREAD**2 + level.sigma**2).sqrt()


def exact_prediction(x_t: Tensor, level: Level) -> Prediction:
    """The prediction of the exact denoiser."""
    share = x_t / spread(level) ** 2
    return Prediction(level.alpha * SPREAD**2 * share, level.sigma * share)


@dataclass(frozen=True)
class Exact:
    """The exact denoiser of the test data on any schedule."""

    schedule: Schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return exact_prediction(x_t, level_of(self.schedule, t, x_t))


def relative_error(end: Tensor, exact: Tensor, *, drawn: bool = False) -> float:
    """The root mean square error of trajectory ends in units of the exact spread; inf unless all are finite.

    drawn  the sampler draws noise, so that single ends are random: only their spread is compared
    """
    expected = _size(exact)
    error = _size(end) - expected if drawn else _size(end - exact)
    return float(error / expected) if bool(end.isfinite().all()) else torch.inf


def _size(x: Tensor) -> Tensor:
    return x.double().square().mean().sqrt()
