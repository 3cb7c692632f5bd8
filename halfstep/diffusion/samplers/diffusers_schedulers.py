"""Sampling with a diffusers scheduler, chosen by its class name: `diffusers:UniPCMultistepScheduler`.

The scheduler makes the steps; the time grid, the decoding of outputs and the clipping are halfstep's.
It is given a table of betas that has every time of the grid among its entries, so that its integer
timesteps and its 'trailing' spacing round nothing.  (diffusers' DDIM steps to a wrong level where they
do: with 16, 32, 64 or 128 steps on a table of 1000.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch import Generator, Tensor

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Denoises
from halfstep.diffusion.prediction import Clip, Prediction, V
from halfstep.diffusion.samplers.sample import start, wide
from halfstep.diffusion.samplers.scheduler_setup import (
    build_scheduler,
    Grid,
    norm_of,
    preserving,
    quiet_numpy,
    table_of,
)
from halfstep.diffusion.samplers.step_checks import Exact, MAX_ERROR, relative_error, SPREAD, spread
from halfstep.diffusion.schedules import Schedule, VPLinear
from halfstep.diffusion.time_grids import Times, uniform
from halfstep.errors import ConfigError
from halfstep.progress import Progress, SILENT


def sample_with_scheduler(
    denoiser: Denoises,
    noise: Tensor,
    times: Times,
    name: str,
    *,
    generators: Sequence[Generator],
    cond: Cond | None = None,
    clip: float | Clip | None = None,
    progress: Progress = SILENT,
) -> Tensor:
    """Sample from times[0] to data with diffusers' scheduler of this class name, on any schedule.

    A schedule that is not variance preserving is sampled as x_t / sqrt(alpha^2 + sigma^2), which is. Most
    schedulers compute in float32, and those of Euler's family on x_t / alpha.

    Args:
        denoiser: a denoiser, guided or not.
        noise: float [B, ...] unit noise; sampling starts where `sample` starts.
        times: 1 >= falling to 0: the scheduler's steps. Some schedulers evaluate between them as well.
        name: the class name of the scheduler.
        generators: one per sample, for schedulers that draw noise: the noise does not depend on the
            batch.
        cond: the conditions, one row a sample, or None.
        clip: clip every predicted x0 to [-clip, clip] and recompute its eps; None does not clip.
        progress: advances with every step; a step may take several network calls.

    Raises:
        ConfigError: an unknown name, an unsupported scheduler, a grid that does not end at 0, a scheduler
            of eps where alpha = 0, or a grid on which sampling with an exact network ends far from the
            data. Few steps of Heun, ancestral KDPM2 or PNDM do so where alpha(1) is near 0: Heun and PNDM
            then sum slopes in sigma / alpha over a step of thousands.
    """
    if len(generators) != len(noise):
        raise ConfigError(
            f"a scheduler needs one generator per sample, got {len(generators)} for {len(noise)}: write for "
            "example [torch.Generator().manual_seed(k) for k in range(len(noise))]"
        )
    clipped, grid = Clip.of(clip), table_of(denoiser.schedule, times)
    if clipped is not None and clipped.kind == "x0":
        raise ConfigError(
            f"clipping 'x0' leaves eps as predicted, and '{name}' of diffusers reads one output for x0 and "
            "eps: write sampler='ddim', or clipping 'x0-and-eps'"
        )
    scheduler = build_scheduler(name, grid)
    _refuse_divergence(name, denoiser.schedule, times)
    return _sample(
        _SchedulerModel(denoiser, scheduler, grid, cond, clipped), noise, list(generators), progress
    )


@lru_cache(maxsize=256)
def network_calls(name: str, steps: int) -> int:
    """The number of network calls that diffusers' scheduler of this class name makes in `steps` steps."""
    return len(build_scheduler(name, table_of(VPLinear(), uniform(steps))).timesteps)


@dataclass(frozen=True)
class _SchedulerModel:
    """The denoiser as the model that a scheduler steps with."""

    denoiser: Denoises
    scheduler: Any
    grid: Grid
    cond: Cond | None
    clip: Clip | None

    def __call__(self, x: Tensor, n: Tensor) -> tuple[Tensor, Prediction]:
        """(the scheduler's model output, the prediction) at the scheduler's x and timestep."""
        t = self._time(float(n))
        level = self.denoiser.schedule.at(t)
        x_t = self.scheduler.scale_model_input(x, n) * norm_of(level)
        each = torch.full(x.shape[:1], float(t), device=x.device, dtype=wide(x))
        pred = self.denoiser(x_t, each, self.cond)
        if self.clip is not None:
            pred = self.clip(pred, x_t, level)
        if self.scheduler.config.prediction_type == "epsilon":
            return pred.eps, pred
        return V().encode(pred, preserving(level)), pred

    def _time(self, n: float) -> Tensor:
        """The time of timestep n; between two entries, that of the scheduler's interpolated log-sigma."""
        if abs(n - round(n)) < 1e-2:  # some schedulers hold timesteps in float32
            return self.grid.times[round(n)]
        below, above = self.scheduler.alphas_cumprod[int(n) : int(n) + 2].logit()
        return self.denoiser.schedule.time(torch.lerp(below, above, n - int(n)))


@torch.no_grad()
def _sample(
    model: _SchedulerModel, noise: Tensor, generators: list[Generator], progress: Progress
) -> Tensor:
    scheduler, schedule, t = model.scheduler, model.denoiser.schedule, model.grid.times[-1]
    draws = {"generator": generators} if "generator" in signature(scheduler.step).parameters else {}
    timesteps, steps = scheduler.timesteps, model.grid.steps if len(noise) else 0
    # Some schedulers step on x_t / alpha, which shows in how they scale the model's input.
    scale = scheduler.scale_model_input(torch.ones(1, dtype=torch.float64), timesteps[0])
    x = start(schedule, noise, float(t)) / (norm_of(schedule.at(t)) * float(scale))
    x0 = x
    progress.expect(steps)
    for k, n in enumerate(timesteps if len(x) else ()):  # diffusers cannot draw noise for no sample
        out, pred = model(x, n)
        with quiet_numpy():
            x = scheduler.step(out, n, x, return_dict=False, **draws)[0].to(noise.dtype)
        x0 = pred.x0
        progress.advance((k + 1) * steps // len(timesteps) - k * steps // len(timesteps))
    # The last-step rule, for schedulers whose last step ends above t = 0.
    sigmas = getattr(scheduler, "sigmas", None)
    return x if sigmas is None or sigmas[-1] == 0 else x0


def _refuse_divergence(name: str, schedule: Any, times: Times) -> None:
    """`ConfigError` for a scheduler that diverges on this grid even with an exact network."""
    try:
        off = _trial_error(name, schedule, times)
    except TypeError:  # a user-defined schedule without a hash
        off = _trial_error.__wrapped__(name, schedule, times)
    if off > MAX_ERROR:
        raise ConfigError(
            f"'{name}' of diffusers diverges in {len(times) - 1} steps on this schedule: with an exact "
            f"network it ends {off:,.3g} times the data's spread away.  Take more steps, or write "
            "sampler='dpmpp-2m' or 'ddim'"
        )


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _trial_error(name: str, schedule: Schedule, times: Times) -> float:
    """The scheduler's error with an exact network in float32: eight starting points, four noise seeds."""
    grid, starts = table_of(schedule, times), torch.linspace(-1.6, 1.45, 8)
    noise = starts.repeat(4)[:, None]
    draws = [Generator().manual_seed(k) for k in range(len(noise))]
    end = _sample(
        _SchedulerModel(Exact(schedule), build_scheduler(name, grid), grid, None, None),
        noise,
        draws,
        SILENT,
    )
    first_level = schedule.at(torch.tensor(times[0], dtype=torch.float64))
    exact = start(schedule, noise, times[0]) * (SPREAD / spread(first_level))
    repeats = end.reshape(4, -1)
    return relative_error(
        end, exact, drawn=not torch.equal(repeats[:1].expand_as(repeats), repeats)
    )
