"""The samplers that come with a grid of their own, by name: as U-ViT's results were published."""

from collections.abc import Callable
from dataclasses import dataclass

from halfstep.diffusion.samplers.sde import euler_maruyama, Fresh
from halfstep.diffusion.samplers.singlestep import dpm_fast, dpmpp_3s
from halfstep.diffusion.samplers.solvers import Step
from halfstep.diffusion.schedules import Schedule
from halfstep.diffusion.time_grids import fast, Times, uniform, uniform_landing


@dataclass(frozen=True)
class SamplerPreset:
    """A grid and the step made for it, both of a number of network calls; one call a step."""

    grid: Callable[[int, Schedule], Times]
    step: Callable[[int, Schedule, Fresh], Step]


def _end(schedule: Schedule, smooth: float) -> float:
    """Where a walk to above t = 0 ends: at a table's first level, at `smooth` where there is no table."""
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
