"""Samplers by name: checks, grids, and the sampling function of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from halfstep.batch import Cond
from halfstep.capacity import refuse_too_large
from halfstep.config.validate import Count, CountOrNone, Share, shown, validate
from halfstep.diffusion.denoiser import Denoises
from halfstep.diffusion.prediction import Prediction
from halfstep.diffusion.samplers import (
    ancestral,
    calls,
    ddim,
    Fresh,
    InBlocks,
    PREFIX,
    PublishedScheduler,
    sample,
    sample_published,
    sample_with_scheduler,
    SCHEDULER,
    Step,
    STEPS,
    stochastic,
    TowardNext,
)
from halfstep.diffusion.samplers.presets import SAMPLER_PRESETS
from halfstep.diffusion.schedules import Schedule
from halfstep.diffusion.time_grids import Direction, grid, in_spans, Times
from halfstep.errors import ConfigError, unknown
from halfstep.rng import key, sample_noise

FLOW_MAP = "flow-map"
"""DDIM steps of a network that is told where each of them ends."""
PARALLEL_DECODING = "parallel-decoding"
"""DDIM steps of a network with a head for each fine step, told which of them a step combines."""
TOLD: dict[str, Callable[[Denoises, Times, Times], Denoises]] = {
    FLOW_MAP: lambda model, times, fine: TowardNext(model, times),
    PARALLEL_DECODING: InBlocks,
}
"""Samplers whose networks are told more at each DDIM step: the denoiser on a grid, and of these fine times,
that tells them."""
_WHAT = {FLOW_MAP: "where each step ends", PARALLEL_DECODING: "which heads each step combines"}
NAMES = (*STEPS, *SAMPLER_PRESETS, "ancestral", "stochastic", *TOLD, SCHEDULER)
HAVE_GRIDS = (*SAMPLER_PRESETS, SCHEDULER)
"""Samplers with a grid of their own."""
KEEP_EPS = ("ddim", "stochastic", *TOLD, f"{PREFIX}DDIMScheduler")
"""Samplers that step with x0 and eps alone, where clipping x0 may leave eps as predicted."""


def check_counts(
    n: int, seed: int, batch: int, first: int, variance: float = 0.0, shape: tuple[int, ...] = ()
) -> None:
    """`ConfigError` for invalid counts, and for more samples of this shape than memory holds."""
    validate("n", n, CountOrNone)
    validate("batch", batch, Count)
    validate("first", first, CountOrNone)
    validate("seed", seed, Annotated[int, Ge(0), Lt(2**64)])
    validate("variance", variance, Share)
    refuse_too_large(f"n = {shown(n)} samples", (n, *shape), "write a smaller n, more than once")
    if first + n > 2**63:
        raise ConfigError(f"first is the number of a sample, below 2^63, got {shown(first)}")


def check_sampler(sampler: str, published: PublishedScheduler | None) -> None:
    if sampler == SCHEDULER and published is None:
        raise ConfigError(
            "this pipeline was not published with a scheduler of diffusers: write sampler='ddim', or "
            "'diffusers:DDIMScheduler'"
        )
    if sampler.startswith(PREFIX):
        calls(sampler, 1)  # refuses an unknown name
    elif sampler not in NAMES:
        raise unknown("sampler", sampler, [*NAMES, f"{PREFIX}NAME"])


def check_student(sampler: str, trained_for: str, direction: Direction) -> None:
    """`ConfigError` for a sampler that a student distilled for another one cannot use."""
    if direction == "invert":
        raise ConfigError(
            "this student was distilled to go from data to noise: write encode(images), and sample with "
            "its teacher or with another student"
        )
    if sampler in TOLD and trained_for != sampler:
        refuse_untold(sampler, ())
    if sampler == "stochastic" and trained_for != sampler:
        raise ConfigError(
            "the stochastic sampler spans two steps of the grid with one call, and this student was "
            "distilled for one: its images would have too little variance.  Write sampler='ddim', or "
            "distil a student for it (halfstep distill stochastic)"
        )
    if trained_for in TOLD and sampler != trained_for:
        raise ConfigError(
            f"this student was distilled for the sampler '{trained_for}', which tells its network "
            f"{_WHAT[trained_for]}, and '{sampler}' does not: write sampler='{trained_for}'"
        )
    if trained_for == "stochastic" and sampler != trained_for:
        raise ConfigError(
            "this student was distilled for the stochastic sampler, where one call spans two steps of the "
            f"grid, and '{sampler}' would make one step of it: write sampler='stochastic'"
        )


def refuse_untold(sampler: str, times: tuple[Times, ...]) -> None:
    """`ConfigError` for the sampler of another kind of student than this network is."""
    if sampler in TOLD and not times:
        raise ConfigError(
            f"the sampler '{sampler}' tells a network {_WHAT[sampler]}, and this one is not told: write "
            "sampler='ddim'"
        )


def check_sampling(sampler: str, times: Times, schedule: Schedule) -> None:
    """`ConfigError` for a sampler that cannot use these times or this schedule; calls no network."""
    if sampler in SAMPLER_PRESETS or sampler.startswith(PREFIX):
        draw = sampler_fn(sampler, 0, range(1), (1,), times, schedule, 0.0)
        draw(_Blank(schedule), torch.zeros(1, 1), times)


@dataclass(frozen=True)
class _Blank:
    """A denoiser that predicts zeros."""

    schedule: Schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return Prediction(torch.zeros_like(x_t), torch.zeros_like(x_t))


def teacher_grid(
    steps: int, sampler: str, schedule: Schedule, published: PublishedScheduler | None = None
) -> Times:
    """The sampler's own grid of `steps` steps, or the schedule's ('auto' of `time_grids.grid`)."""
    validate("steps", steps, Count)
    if sampler == SCHEDULER and published is not None:
        return published.grid(steps, schedule)
    return (
        SAMPLER_PRESETS[sampler].grid(steps, schedule)
        if sampler in SAMPLER_PRESETS
        else grid("auto", steps, schedule)
    )


def student_grid(
    grids: tuple[Times, ...], trained_for: str, steps: int, sampler: str, fine: Times = ()
) -> Times:
    """A student's grid of `steps` steps; `ConfigError` lists its grids.

    trained_for  the sampler that the student was distilled for
    fine         the grid of its fine steps, if it takes several of them at once
    """
    validate("steps", steps, Count)
    if sampler in HAVE_GRIDS:
        raise ConfigError(
            f"'{sampler}' has a grid of its own, and so has a student: write sampler='ddim'"
        )
    counts = {len(times) - 1: times for times in grids}
    fine = finest(grids, trained_for, fine)
    if fine and steps >= min(counts) and (mixed := in_spans(fine, steps)) is not None:
        return counts.get(steps, mixed)
    if trained_for == "stochastic" and 2 in counts:  # its one call at t = 1 spans both steps
        counts.setdefault(1, counts[2][::2])
    if steps not in counts:
        served = f"{min(counts)} to {len(fine) - 1}" if fine else ""
        raise ConfigError(
            f"this student was not distilled for {steps} steps: it can take "
            f"{served or ' or '.join(map(str, sorted(counts)))}"
        )
    return counts[steps]


def finest(grids: tuple[Times, ...], trained_for: str, fine: Times) -> Times:
    """The grid whose steps a student of `fine_times` takes any number of: its own with the most steps.

    A flow map's steps may be fine ones; heads are only trained for the blocks of their grids.
    """
    return max(grids, key=len) if fine and trained_for == PARALLEL_DECODING else fine


def check_edit(sampler: str, *, masked: bool) -> None:
    """`ConfigError` for a sampler that cannot start from an image, or cannot repaint a part of it."""
    if sampler in HAVE_GRIDS:
        raise ConfigError(
            f"'{sampler}' has a grid of its own, which begins in noise: write sampler='ddim'"
        )
    if masked and sampler.startswith(PREFIX):
        raise ConfigError(
            f"the steps of '{sampler}' are diffusers', between which pixels cannot be restored: write "
            "sampler='ddim'"
        )


def sampler_fn(
    sampler: str,
    seed: int,
    ids: range,
    shape: tuple[int, ...],
    times: Times,
    schedule: Schedule,
    variance: float,
    around: Callable[[Step], Step] = lambda step: step,
    published: PublishedScheduler | None = None,
    fine: Times = (),
) -> Callable[..., Tensor]:
    """`sample` or `sample_with_scheduler` with this sampler; its noise depends only on (seed, image).

    around     wraps each of `sample`'s steps
    published  the pipeline's scheduler, for the sampler of that name
    fine       the pipeline's fine times, for a sampler of `TOLD`
    """
    if sampler == SCHEDULER and published is not None:
        generators = [torch.Generator().manual_seed(key(seed, k)) for k in ids]
        return partial(sample_published, published=published, generators=generators)
    if sampler.startswith(PREFIX):
        generators = [torch.Generator().manual_seed(key(seed, k)) for k in ids]
        name = sampler.removeprefix(PREFIX)
        return partial(sample_with_scheduler, name=name, generators=generators)
    step = _step(sampler, _fresh(seed, ids, shape), times, schedule, variance)
    draw = partial(sample, step=around(step))
    return lambda model, noise, times, **options: draw(
        told(model, sampler, times, fine), noise, times, **options
    )


def told(model: Denoises, sampler: str, times: Times, fine: Times) -> Denoises:
    """The model on this grid: of a sampler of `TOLD` one that is told more at each step.

    fine  the pipeline's fine times
    """
    return TOLD[sampler](model, times, fine) if sampler in TOLD else model


def _step(sampler: str, fresh: Fresh, times: Times, schedule: Schedule, variance: float) -> Step:
    if sampler == "ancestral":
        return ancestral(fresh, variance=variance)
    if sampler == "stochastic":
        return stochastic(times, schedule, fresh)
    if sampler in SAMPLER_PRESETS:
        return SAMPLER_PRESETS[sampler].step(len(times) - 1, schedule, fresh)
    return ddim if sampler in TOLD else STEPS[sampler]


def _fresh(seed: int, ids: range, shape: tuple[int, ...]) -> Fresh:
    """The noise of a stochastic step, a function of (seed, image, step)."""

    def draw(like: Tensor, step: int) -> Tensor:
        return sample_noise(seed, ids, shape, step=step).to(like)

    return draw
