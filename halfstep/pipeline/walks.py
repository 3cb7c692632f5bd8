"""Samplers by name."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from halfstep.errors import ConfigError, unknown
from halfstep.noise import key, sample_noise
from halfstep.samplers import ancestral, calls, PREFIX, sample, scheduled, STEPS
from halfstep.samplers.published import WALKS
from halfstep.schedules import Schedule
from halfstep.timegrids import Times


def check_counts(n: int, seed: int, batch: int, first: int) -> None:
    for name, value, least in (("n", n, 0), ("batch", batch, 1), ("first", first, 0)):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}")
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed must lie in [0, 2^64), got {seed}: write for example seed=0")


def check_sampler(sampler: str) -> None:
    if sampler.startswith(PREFIX):
        calls(sampler, 1)  # refuses a name that is none
    elif sampler not in (*STEPS, *WALKS, "ancestral"):
        raise unknown("sampler", sampler, [*STEPS, *WALKS, "ancestral", f"{PREFIX}NAME"])


def walk(
    sampler: str,
    seed: int,
    ids: range,
    shape: tuple[int, ...],
    times: Times,
    schedule: Schedule,
    variance: float,
) -> Callable[..., Tensor]:
    """`sample` or `scheduled`, told how to step; its noise depends on (seed, image) alone."""
    if sampler.startswith(PREFIX):
        own = [torch.Generator().manual_seed(key(seed, k)) for k in ids]
        return partial(scheduled, name=sampler.removeprefix(PREFIX), generators=own)
    fresh = _fresh(seed, ids, shape)
    if sampler == "ancestral":
        return partial(sample, step=ancestral(fresh, variance=variance))
    if sampler in WALKS:
        return partial(sample, step=WALKS[sampler].step(len(times) - 1, schedule, fresh))
    return partial(sample, step=STEPS[sampler])


def _fresh(seed: int, ids: range, shape: tuple[int, ...]) -> Callable[[Tensor, int], Tensor]:
    """Noise of a stochastic step: a function of (seed, image, step)."""

    def draw(like: Tensor, step: int) -> Tensor:
        return sample_noise(seed, ids, shape, step=step).to(like)

    return draw
