"""The points of a walk: a deterministic sampler's states at the times of its grid, not its end alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Generator, Tensor

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Denoises
from halfstep.diffusion.prediction import Clip, Prediction
from halfstep.diffusion.samplers.diffusers_schedulers import sample_with_scheduler
from halfstep.diffusion.samplers.presets import SAMPLER_PRESETS
from halfstep.diffusion.samplers.registry import calls, draws_noise, PREFIX, SCHEDULER, STEPS
from halfstep.diffusion.samplers.sample import sample
from halfstep.diffusion.schedules import Schedule
from halfstep.diffusion.time_grids import grid, orders, Times
from halfstep.errors import ConfigError, unknown
from halfstep.progress import Progress, SILENT

SAME = 1e-9
"""Times closer than this are equal."""


def check_solver(solver: str) -> None:
    """Refuse a sampler whose walk does not follow from its first noise.

    Args:
        solver: the name of a sampler.

    Raises:
        ConfigError: an unknown sampler, one that draws noise, or the scheduler of a published model.
    """
    if solver == SCHEDULER:
        raise ConfigError(
            f"walks are of a solver by its name, and '{SCHEDULER}' is that of a published model: write for "
            "example solver='diffusers:DPMSolverMultistepScheduler'"
        )
    if draws_noise(solver):
        raise ConfigError(
            f"'{solver}' draws noise at its steps, so that its end does not follow from its start: write "
            "solver='heun', 'dpmpp-2m' or 'ddim'"
        )
    if solver.startswith(PREFIX):
        calls(solver, 1)  # refuses an unknown name
    elif solver not in (*STEPS, *SAMPLER_PRESETS):
        names = [*STEPS, *(name for name in SAMPLER_PRESETS if not draws_noise(name))]
        raise unknown("solver", solver, [*names, f"{PREFIX}NAME"])


def solver_grid(solver: str, steps: int, schedule: Schedule, name: str = "auto") -> Times:
    """The grid that a solver walks on: the one of this name, or the solver's own.

    Args:
        solver: the name of a sampler.
        steps: network calls of a solver with a grid of its own, steps of any other.
        schedule: the noise schedule.
        name: as of `grid`; a solver with a grid of its own has "auto".

    Raises:
        ConfigError: another grid for a solver that has its own.
    """
    if solver not in SAMPLER_PRESETS:
        return grid(name, steps, schedule)
    if name != "auto":
        raise ConfigError(
            f"'{solver}' has a time grid of its own, got grid='{name}': leave grid out, or write "
            "solver='dpmpp-2m'"
        )
    return SAMPLER_PRESETS[solver].grid(steps, schedule)


def step_ends(solver: str, steps: int) -> frozenset[int]:
    """The numbers of the grid's points at which whole steps of the solver end; 0 is the noise.

    A step of a single-step solver has up to three calls, and its inner points are none of the walk.

    Args:
        solver: the name of a sampler.
        steps: as of `solver_grid`.
    """
    if solver not in SAMPLER_PRESETS:
        return frozenset(range(steps + 1))
    return frozenset(accumulate(orders(steps), initial=0))


@torch.no_grad()
def walk_points(
    denoiser: Denoises,
    noise: Tensor,
    times: Times,
    solver: str,
    numbers: Sequence[int],
    *,
    cond: Cond | None = None,
    clip: float | Clip | None = None,
    progress: Progress = SILENT,
) -> Tensor:
    """The states of these points of the grid, float [B, points, ...]; the last of all is the sample.

    Args:
        denoiser: a denoiser, guided or not.
        noise: float [B, ...] unit noise.
        times: the solver's grid, as of `solver_grid`.
        solver: the name of a deterministic sampler.
        numbers: of the points that are returned, rising: 0 is the start, len(times) - 1 the sample.
        cond: the conditions, one row a sample, or None.
        clip: as of `sample`.
        progress: advances with every step.

    Raises:
        ConfigError: a solver that cannot walk on this grid.
    """
    seen, end = _Seen(denoiser, times, frozenset(numbers), {}), len(times) - 1
    more: dict[str, Any] = {"cond": cond, "clip": clip, "progress": progress}
    if solver.startswith(PREFIX):
        none = [Generator().manual_seed(0) for _ in noise]
        name = solver.removeprefix(PREFIX)
        x = sample_with_scheduler(seen, noise, times, name, generators=none, **more)
    elif solver in SAMPLER_PRESETS:
        step = SAMPLER_PRESETS[solver].step(end, denoiser.schedule, _no_noise)
        x = sample(seen, noise, times, step, **more)
    else:
        x = sample(seen, noise, times, STEPS[solver], **more)
    seen.points[end] = x
    return torch.stack([seen.points[k] for k in numbers], 1)


def check_walk(
    schedule: Schedule,
    times: Times,
    solver: str,
    numbers: Sequence[int],
    clip: Clip | None = None,
) -> None:
    """Raise the `ConfigError` of `walk_points` without a network.

    Args:
        schedule: the noise schedule.
        times: as of `walk_points`.
        solver: as of `walk_points`.
        numbers: as of `walk_points`.
        clip: as of `walk_points`.
    """
    walk_points(_Zeros(schedule), torch.zeros(1, 1), times, solver, numbers, clip=clip)


@dataclass(frozen=True)
class _Seen:
    """A denoiser that keeps the last state that it sees at each of these points of the grid.

    Solvers of order 2 visit the end of a step before they correct it: the last visit is the walk's.
    """

    denoiser: Denoises
    times: Times
    numbers: frozenset[int]
    points: dict[int, Tensor]

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        time = float(t[0]) if len(t) else -1.0
        number = next((k for k in self.numbers if abs(self.times[k] - time) < SAME), None)
        if number is not None:
            self.points[number] = x_t
        return self.denoiser(x_t, t, cond)


@dataclass(frozen=True)
class _Zeros:
    """A denoiser that predicts zeros."""

    schedule: Schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return Prediction(torch.zeros_like(x_t), torch.zeros_like(x_t))


def _no_noise(like: Tensor, step: int) -> Tensor:
    raise AssertionError("a deterministic solver draws no noise")
