"""Levels of signal and noise, and what every schedule shares."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol

import torch
from torch import Tensor

from halfstep.errors import ConfigError


@dataclass(frozen=True)
class Level:
    """The amounts of signal and of noise, `alpha` and `sigma`, each broadcastable to x.

    Args:
        alpha: float [...], the factor of the data.
        sigma: float [...], the factor of the noise.
    """

    alpha: Tensor
    sigma: Tensor

    @property
    def logsnr(self) -> Tensor:
        """log(alpha^2 / sigma^2): +inf where sigma = 0, -inf where alpha = 0."""
        return 2 * (self.alpha.log() - self.sigma.log())

    def mix(self, x0: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha x0 + sigma eps.

        Args:
            x0: float [B, ...].
            eps: float [B, ...].
        """
        return self.alpha * x0 + self.sigma * eps


class Schedule(Protocol):
    """The interface of a noise schedule."""

    @property
    def variance_preserving(self) -> bool:
        """Whether alpha^2 + sigma^2 = 1, so that sampling starts from unit noise."""

    def at(self, t: Tensor) -> Level:
        """The level at time t in [0, 1]; any shape, dtype kept."""

    def time(self, logsnr: Tensor) -> Tensor:
        """The time at which log(alpha^2 / sigma^2) is `logsnr`; any shape, dtype kept."""


def wide(x: Tensor) -> Tensor:
    """`x` in float32 if it has fewer bits; `ConfigError` unless it is floating point."""
    if not x.is_floating_point():
        raise ConfigError(
            f"times and log-SNRs are floating point, got {str(x.dtype)[6:]}: write for example 1.0"
        )
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def inverse(time: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A schedule's `time`, computed in float32 at least and clamped to [0, 1], in its argument's dtype."""

    @wraps(time)
    def clamped(schedule: Any, logsnr: Tensor) -> Tensor:
        return time(schedule, wide(logsnr)).clamp(0, 1).to(logsnr.dtype)

    return clamped


def arriving(schedule: Schedule, t: Tensor) -> Level:
    """The level at the end of a step to t: clean data (alpha 1, sigma 0) at t = 0, else `at(t)`.

    This is the last-step rule of Salimans & Ho's samplers and targets. A step that starts at t = 0 uses
    `schedule.at` instead.

    Args:
        schedule: the noise schedule.
        t: float [...], times in [0, 1].
    """
    level, at_data = schedule.at(t), t == 0
    alpha = torch.where(at_data, torch.ones_like(level.alpha), level.alpha)
    return Level(alpha, torch.where(at_data, torch.zeros_like(level.sigma), level.sigma))
