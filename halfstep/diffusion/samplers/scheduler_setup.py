"""Building a diffusers scheduler on a table of betas that contains every time of a grid."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter, signature
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfstep.diffusion.schedules import Level, Schedule
from halfstep.diffusion.time_grids import checked, Times
from halfstep.errors import ConfigError, unknown
from halfstep.quiet import quietly

LEVELS = 1000
"""Approximate number of table entries, as diffusers' schedulers expect."""
TINY = 2.0**-24
"""Replaces alpha^2 = 0 where a scheduler divides by it, as in diffusers itself."""
COMBINE_OUTPUTS = ("PNDMScheduler",)
"""Schedulers that add up raw network outputs of several times: with v their order falls to 1."""
OPTIONS = {
    "timestep_spacing": "trailing",  # the only spacing that begins at noise and ends a step before data
    "prediction_type": "v_prediction",  # readable at both ends
    "clip_sample": False,  # clipping is the pipeline's
    "final_sigmas_type": "zero",
    "set_alpha_to_one": True,
    "lower_order_final": True,
    "skip_prk_steps": True,  # Runge-Kutta's warm-up needs four steps, and four calls in each
}


@dataclass(frozen=True)
class Grid:
    """A time grid as a table: every step divided into equal parts, data first.

    steps  number of steps of the grid
    times  float64 [T], rising from above 0; entry n is the scheduler's timestep n
    level  the level of each entry, made variance preserving
    """

    steps: int
    times: Tensor
    level: Level

    def timesteps(self) -> list[int]:
        """The timesteps of the grid itself, noise first."""
        n = len(self.times)
        return list(range(n - 1, -1, -(n // self.steps)))


def table_of(schedule: Schedule, times: Times) -> Grid:
    if checked(times)[-1] != 0:
        raise ConfigError(
            f"a diffusers scheduler samples to t = 0 and this grid ends at {times[-1]:g}: end it at 0, or "
            "write sampler='ddim'"
        )
    steps = len(times) - 1
    parts = LEVELS // steps
    if levels := getattr(schedule, "levels", None):  # a table has no times within its end intervals
        parts = min(parts, int(min(times[-2], 1 - times[1]) * levels + 1e-6))
    knots = torch.tensor(times[::-1], dtype=torch.float64)
    share = torch.arange(1, max(parts, 1) + 1, dtype=torch.float64) / max(parts, 1)
    # lerp, and not a sum: its end is the grid's own time to the bit.
    rising = torch.lerp(knots[:-1, None], knots[1:, None], share).flatten()
    return Grid(steps, rising, preserving(schedule.at(rising)))


def norm_of(level: Level) -> Tensor:
    return (level.alpha**2 + level.sigma**2).sqrt()


def preserving(level: Level) -> Level:
    """The level of x_t / sqrt(alpha^2 + sigma^2)."""
    norm = norm_of(level)
    return Level(level.alpha / norm, level.sigma / norm)


def build_scheduler(name: str, grid: Grid) -> Any:
    """The scheduler on this grid; `ConfigError` for an unknown one and for one that cannot sample on it."""
    cls = scheduler_class(name)
    if cls is None:
        raise unknown("diffusers scheduler", name, supported_schedulers())
    if why := _unsupported(cls):
        raise ConfigError(
            f"'{name}' of diffusers cannot sample here, as {why}: choose from "
            f"{', '.join(supported_schedulers())}"
        )
    with (
        quiet_numpy(),
        np.errstate(divide="ignore"),
    ):  # some take the logarithm of a sigma that is 0
        scheduler = _built(cls, grid)
        try:
            _set_grid(scheduler, grid)
        except ValueError as error:
            raise ConfigError(
                f"'{name}' of diffusers cannot sample on this grid of {grid.steps} steps ({error}): take "
                "another number of steps, or write sampler='ddim'"
            ) from None
    return scheduler


def scheduler_class(name: str) -> Any:
    """diffusers' scheduler class of this name, or None."""
    with quietly():  # imported late, as it takes seconds
        from diffusers import SchedulerMixin, schedulers

        try:
            cls = getattr(schedulers, name, None) if name.endswith("Scheduler") else None
        except ImportError:
            return None
    return cls if isinstance(cls, type) and issubclass(cls, SchedulerMixin) else None


def _unsupported(cls: Any) -> str | None:
    """The reason why this class cannot sample from noise to data on a table of betas, or None."""
    options = signature(cls.__init__).parameters
    if not {"trained_betas", "prediction_type"} <= set(options):
        return "it takes no table of betas"
    step_arguments = list(signature(cls.step).parameters.values())[
        4:
    ]  # self, output, timestep, sample
    if any(
        p.default is p.empty and p.kind is Parameter.POSITIONAL_OR_KEYWORD for p in step_arguments
    ):
        return "its steps need more than the network's answer"
    if "original_inference_steps" in options:
        return "it samples consistency models"
    if "noise_sampler_seed" in options:
        return "its noise depends on the batch"
    if "Inverse" in cls.__name__:
        return "it goes from data to noise"
    if not (
        "timestep_spacing" in options or "timesteps" in signature(cls.set_timesteps).parameters
    ):
        return "it takes no grid"
    return None


def _built(cls: Any, grid: Grid) -> Any:
    accepted = signature(cls.__init__).parameters
    options: dict[str, object] = {k: v for k, v in OPTIONS.items() if k in accepted}
    exact_alphas2 = grid.level.alpha**2
    if cls.__name__ in COMBINE_OUTPUTS:
        options["prediction_type"] = "epsilon"
        if exact_alphas2[-1] == 0:
            raise ConfigError(
                f"'{cls.__name__}' of diffusers works on eps, which does not determine x0 at alpha = 0: "
                "start below t = 1, or write sampler='ddim'"
            )
    alphas2 = exact_alphas2.clone()
    if alphas2[-1] == 0:
        alphas2[-1] = min([TINY, *(alphas2[-2:-1] / 4).tolist()])
    betas = 1 - alphas2 / torch.cat([alphas2.new_ones(1), alphas2[:-1]])
    scheduler = cls(num_train_timesteps=len(alphas2), trained_betas=betas.tolist(), **options)
    # The scheduler's own alphas are a product of as many float32 numbers.
    scheduler.alphas_cumprod = alphas2 if hasattr(scheduler, "sigmas") else exact_alphas2
    return scheduler


def _set_grid(scheduler: Any, grid: Grid) -> None:
    expected = grid.timesteps()
    if "timestep_spacing" in scheduler.config:
        scheduler.set_timesteps(grid.steps)
    else:
        scheduler.set_timesteps(timesteps=expected)
    actual = scheduler.timesteps.tolist()
    if not all(map(isfinite, actual)):
        raise ValueError("float32 does not hold its levels")
    if round(actual[0]) != expected[0] or any(
        min(abs(n - k) for k in actual) > 0.05 for n in expected
    ):
        raise ValueError(f"it takes the timesteps {actual[:4]} and not {expected[:4]}")


@contextmanager
def quiet_numpy() -> Iterator[None]:
    """Hide numpy's deprecation warnings from within diffusers, which no user can mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def supported_schedulers() -> list[str]:
    """The class names of the installed schedulers that halfstep can sample with."""
    with quietly():
        from diffusers import schedulers

    classes = {name: scheduler_class(name) for name in dir(schedulers)}
    return [name for name, cls in classes.items() if cls is not None and _unsupported(cls) is None]
