"""Any of diffusers' schedulers as a sampler, by the name of its class: `diffusers:UniPCMultistepScheduler`.

The scheduler chooses the steps; the grid, the reading of the network and the clipping stay halfstep's.
It is given a table of betas that has every time of the grid among its entries, so that its integer
timesteps and its 'trailing' spacing round nothing.  (diffusers' DDIM steps to a wrong level where they
do: with 16, 32, 64 or 128 steps on a table of 1000.)
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from inspect import Parameter, signature
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from halfstep.batch import Cond
from halfstep.config.validate import Positive, validate
from halfstep.diffusion.denoiser import Denoises
from halfstep.diffusion.prediction import Prediction, V
from halfstep.diffusion.samplers.sample import start, wide
from halfstep.diffusion.samplers.step_checks import ASTRAY, astray, Exact, SPREAD, spread
from halfstep.diffusion.schedules import Level, Schedule, VPLinear
from halfstep.diffusion.time_grids import checked, Times, uniform
from halfstep.errors import ConfigError, unknown
from halfstep.progress import Progress, SILENT
from halfstep.quiet import quietly

LEVELS = 1000
"""Entries of a table, about: what diffusers' schedulers are made for."""
TINY = 2.0**-24
"""Stands for alpha^2 = 0 where a scheduler divides by it: the number that diffusers itself takes."""
COMBINE_OUTPUTS = ("PNDMScheduler",)
"""Schedulers that sum the network's outputs of several times as they are: with v their order falls to 1."""
OPTIONS = {
    "timestep_spacing": "trailing",  # the only one that begins at noise and ends a step before data
    "prediction_type": "v_prediction",  # readable at both ends
    "clip_sample": False,  # clipping is the pipeline's
    "final_sigmas_type": "zero",
    "set_alpha_to_one": True,
    "lower_order_final": True,
    "skip_prk_steps": True,  # Runge-Kutta's warm-up needs four steps, and four calls in each
}


def scheduled(
    denoiser: Denoises,
    noise: Tensor,
    times: Times,
    name: str,
    *,
    generators: Sequence[Generator],
    cond: Cond | None = None,
    clip: float | None = None,
    progress: Progress = SILENT,
) -> Tensor:
    """Sample from times[0] to data as diffusers' scheduler of that class does, on any schedule.

    noise       float [B, ...] unit noise; the walk starts where `sample` starts
    times       1 >= falling to 0: where the scheduler steps to.  Some look between them as well
    generators  one a sample, for schedulers that draw noise: it does not depend on the batch
    clip        clip every predicted x0 to [-clip, clip] and recompute its eps; None leaves it
    progress    told of every step, some of which take several network calls

    A schedule that is not variance preserving is walked as x_t / sqrt(alpha^2 + sigma^2), which is.
    Most schedulers compute in float32, and Euler's kin on x_t / alpha.

    Raises `ConfigError` for a name that is none, a scheduler that cannot sample so, a grid that does not
    end at 0, and one that works on eps where alpha = 0; and where a walk with an exact network ends far
    away, as few steps of Heun, KDPM2's ancestral sister or PNDM do where alpha(1) is near 0: Heun and
    PNDM then sum slopes in sigma / alpha over a step of thousands.
    """
    if len(generators) != len(noise):
        raise ConfigError(
            f"a scheduler needs one generator a sample, got {len(generators)} for {len(noise)}: write for "
            "example [torch.Generator().manual_seed(k) for k in range(len(noise))]"
        )
    clip, grid = validate("clip", clip, Positive | None), _grid(denoiser.schedule, times)
    scheduler = _ready(name, grid)
    _refuse_astray(name, denoiser.schedule, times)
    return _walk(
        _SchedulerModel(denoiser, scheduler, grid, cond, clip), noise, list(generators), progress
    )


@lru_cache(maxsize=256)
def network_calls(name: str, steps: int) -> int:
    """How many network calls diffusers' scheduler of that class makes in so many steps."""
    return len(_ready(name, _grid(VPLinear(), uniform(steps))).timesteps)


def fitting() -> list[str]:
    """The installed schedulers that can sample here, by the names of their classes."""
    with quietly():
        from diffusers import schedulers

    kinds = {name: _class(name) for name in dir(schedulers)}
    return [name for name, kind in kinds.items() if kind is not None and _misfit(kind) is None]


# --- the walk -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """A grid of times as a table: every step divided into equal parts, data first.

    steps  how many steps the grid has
    times  float64 [T], rising from above 0; entry n is the scheduler's timestep n
    level  of each entry, made variance preserving
    """

    steps: int
    times: Tensor
    level: Level

    def wanted(self) -> list[int]:
        """The timesteps of the grid itself, noise first."""
        n = len(self.times)
        return list(range(n - 1, -1, -(n // self.steps)))


def _grid(schedule: Schedule, times: Times) -> _Grid:
    if checked(times)[-1] != 0:
        raise ConfigError(
            f"a diffusers scheduler walks to t = 0 and this grid ends at {times[-1]:g}: end it at 0, or "
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
    return _Grid(steps, rising, _preserving(schedule.at(rising)))


@dataclass(frozen=True)
class _SchedulerModel:
    """Asks the network what the scheduler wants to know."""

    denoiser: Denoises
    scheduler: Any
    grid: _Grid
    cond: Cond | None
    clip: float | None

    def __call__(self, x: Tensor, n: Tensor) -> tuple[Tensor, Prediction]:
        """(what the scheduler takes for the network's output, the prediction) at its x and timestep."""
        t = self._time(float(n))
        level = self.denoiser.schedule.at(t)
        x_t = self.scheduler.scale_model_input(x, n) * _norm(level)
        each = torch.full(x.shape[:1], float(t), device=x.device, dtype=wide(x))
        pred = self.denoiser(x_t, each, self.cond)
        if self.clip is not None:
            pred = pred.clipped(x_t, level, self.clip)
        if self.scheduler.config.prediction_type == "epsilon":
            return pred.eps, pred
        return V().encode(pred, _preserving(level)), pred

    def _time(self, n: float) -> Tensor:
        """Between two entries, where the level is whose log-sigma the scheduler interpolated."""
        if abs(n - round(n)) < 1e-2:  # of some schedulers' float32
            return self.grid.times[round(n)]
        below, above = self.scheduler.alphas_cumprod[int(n) : int(n) + 2].logit()
        return self.denoiser.schedule.time(torch.lerp(below, above, n - int(n)))


@torch.no_grad()
def _walk(
    model: _SchedulerModel, noise: Tensor, generators: list[Generator], progress: Progress
) -> Tensor:
    scheduler, schedule, t = model.scheduler, model.denoiser.schedule, model.grid.times[-1]
    draws = {"generator": generators} if "generator" in signature(scheduler.step).parameters else {}
    asked, steps = scheduler.timesteps, model.grid.steps if len(noise) else 0
    # Some schedulers walk on x_t / alpha, and say so in how they scale the model's input.
    scale = scheduler.scale_model_input(torch.ones(1, dtype=torch.float64), asked[0])
    x = start(schedule, noise, float(t)) / (_norm(schedule.at(t)) * float(scale))
    x0 = x
    progress.expect(steps)
    for k, n in enumerate(asked if len(x) else ()):  # diffusers cannot draw noise for no sample
        out, pred = model(x, n)
        with _quiet():
            x = scheduler.step(out, n, x, return_dict=False, **draws)[0].to(noise.dtype)
        x0 = pred.x0
        progress.advance((k + 1) * steps // len(asked) - k * steps // len(asked))
    # The last-step rule, for those whose last step ends above t = 0.
    sigmas = getattr(scheduler, "sigmas", None)
    return x if sigmas is None or sigmas[-1] == 0 else x0


def _norm(level: Level) -> Tensor:
    return (level.alpha**2 + level.sigma**2).sqrt()


def _preserving(level: Level) -> Level:
    """The level of x_t / sqrt(alpha^2 + sigma^2)."""
    norm = _norm(level)
    return Level(level.alpha / norm, level.sigma / norm)


# --- the trial ----------------------------------------------------------------------------------------


def _refuse_astray(name: str, schedule: Any, times: Times) -> None:
    """`ConfigError` for a scheduler that goes astray on this grid even where the network is exact."""
    try:
        off = _tried(name, schedule, times)
    except TypeError:  # a schedule of the user's own that has no hash
        off = _tried.__wrapped__(name, schedule, times)
    if off > ASTRAY:
        raise ConfigError(
            f"'{name}' of diffusers leads nowhere in {len(times) - 1} steps on this schedule: with an exact "
            f"network it ends {off:,.3g} times the data's spread away.  Take more steps, or write "
            "sampler='dpmpp-2m' or 'ddim'"
        )


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _tried(name: str, schedule: Schedule, times: Times) -> float:
    """How far astray it goes; the same numbers, in the same float32, with fresh noise four times."""
    grid, places = _grid(schedule, times), torch.linspace(-1.6, 1.45, 8)
    noise = places.repeat(4)[:, None]
    draws = [Generator().manual_seed(k) for k in range(len(noise))]
    got = _walk(
        _SchedulerModel(Exact(schedule), _ready(name, grid), grid, None, None), noise, draws, SILENT
    )
    begun = schedule.at(torch.tensor(times[0], dtype=torch.float64))
    exact = start(schedule, noise, times[0]) * (SPREAD / spread(begun))
    same = got.reshape(4, -1)
    return astray(got, exact, drawn=not torch.equal(same[:1].expand_as(same), same))


# --- the scheduler ------------------------------------------------------------------------------------


def _ready(name: str, grid: _Grid) -> Any:
    """The scheduler on this grid; `ConfigError` if there is none, or it cannot walk there."""
    kind = _class(name)
    if kind is None:
        raise unknown("diffusers scheduler", name, fitting())
    if why := _misfit(kind):
        raise ConfigError(
            f"'{name}' of diffusers cannot sample here, as {why}: choose from {', '.join(fitting())}"
        )
    with _quiet(), np.errstate(divide="ignore"):  # some take the logarithm of a sigma that is 0
        scheduler = _made(kind, grid)
        try:
            _set_grid(scheduler, grid)
        except ValueError as error:
            raise ConfigError(
                f"'{name}' of diffusers cannot walk on this grid of {grid.steps} steps ({error}): take "
                "another number of steps, or write sampler='ddim'"
            ) from None
    return scheduler


def _class(name: str) -> type | None:
    """diffusers' scheduler of that name, or None."""
    with quietly():  # here, as it takes seconds
        from diffusers import SchedulerMixin, schedulers

    try:
        kind = getattr(schedulers, name, None) if name.endswith("Scheduler") else None
    except ImportError:
        return None
    return kind if isinstance(kind, type) and issubclass(kind, SchedulerMixin) else None


def _misfit(kind: Any) -> str | None:
    """Why this class cannot walk from noise to data on a table of betas, or None if it can."""
    takes = signature(kind.__init__).parameters
    if not {"trained_betas", "prediction_type"} <= set(takes):
        return "it takes no table of betas"
    step = list(signature(kind.step).parameters.values())[4:]  # self, output, timestep, sample
    if any(p.default is p.empty and p.kind is Parameter.POSITIONAL_OR_KEYWORD for p in step):
        return "its steps need more than the network's answer"
    if "original_inference_steps" in takes:
        return "it samples consistency models"
    if "noise_sampler_seed" in takes:
        return "its noise depends on the batch"
    if "Inverse" in kind.__name__:
        return "it walks from data to noise"
    if not ("timestep_spacing" in takes or "timesteps" in signature(kind.set_timesteps).parameters):
        return "it takes no grid"
    return None


def _made(kind: Any, grid: _Grid) -> Any:
    takes = signature(kind.__init__).parameters
    options: dict[str, object] = {k: v for k, v in OPTIONS.items() if k in takes}
    exact = grid.level.alpha**2
    if kind.__name__ in COMBINE_OUTPUTS:
        options["prediction_type"] = "epsilon"
        if exact[-1] == 0:
            raise ConfigError(
                f"'{kind.__name__}' of diffusers works on eps, which says nothing about x0 at alpha = 0: "
                "start below t = 1, or write sampler='ddim'"
            )
    kept = exact.clone()
    if kept[-1] == 0:
        kept[-1] = min([TINY, *(kept[-2:-1] / 4).tolist()])
    betas = 1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])
    scheduler = kind(num_train_timesteps=len(kept), trained_betas=betas.tolist(), **options)
    # Its own are a product of as many float32 numbers.
    scheduler.alphas_cumprod = kept if hasattr(scheduler, "sigmas") else exact
    return scheduler


def _set_grid(scheduler: Any, grid: _Grid) -> None:
    wanted = grid.wanted()
    if "timestep_spacing" in scheduler.config:
        scheduler.set_timesteps(grid.steps)
    else:
        scheduler.set_timesteps(timesteps=wanted)
    took = scheduler.timesteps.tolist()
    if not all(map(isfinite, took)):
        raise ValueError("float32 does not hold its levels")
    if round(took[0]) != wanted[0] or any(min(abs(n - k) for k in took) > 0.05 for n in wanted):
        raise ValueError(f"it takes the timesteps {took[:4]} and not {wanted[:4]}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of what diffusers does with numpy, which no user of ours can mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
