"""Samplers with their own time grid, by name, as in the published U-ViT results."""

from collections.abc import Callable
from dataclasses import dataclass

from halfstep.diffusion.samplers.sde import euler_maruyama, Fresh
from halfstep.diffusion.samplers.singlestep import dpm_fast, dpmpp_3s
from halfstep.diffusion.samplers.solvers import Step
from halfstep.diffusion.schedules import Schedule
from halfstep.diffusion.time_grids import fast, Times, uniform, uniform_landing


@dataclass(frozen=True)
class SamplerPreset:
    """A time grid and the step made for it, both functions of the number of network calls, one per step."""

    grid: Callable[[int, Schedule], Times]
    step: Callable[[int, Schedule, Fresh], Step]


def _end(schedule: Schedule, smooth: float) -> float:
    """The last time of a grid that ends above 0: a table's first level, or `smooth` for other schedules."""
    levels: int | None = getattr(schedule, "levels", None)
    return 1 / levels if levels else smooth


SAMPLER_PRESETS: dict[str, SamplerPreset] = {
    "dpmpp-3s": SamplerPreset(
        lambda steps, schedule: uniform(steps, end=_end(schedule, 1e-3)),
        lambda steps, schedule, fresh: dpmpp_3s(steps),
    ),
    "dpm-fast": SamplerPreset(
        lambda steps, schedule: fast(steps, schedule, end=_end(schedule, 1e-4)),
        lambda steps, schedule, fresh: dpm_fast(steps),
    ),
    "euler-maruyama": SamplerPreset(
        lambda steps, schedule: uniform_landing(steps),
        lambda steps, schedule, fresh: euler_maruyama(schedule, fresh),
    ),
}
