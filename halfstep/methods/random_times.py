"""Random times of training."""

import torch
from torch import Tensor

from halfstep.diffusion.schedules import Schedule
from halfstep.diffusion.time_grids import on_schedule
from halfstep.rng import Draw

EDGE = 2.0**-24
"""Continuous times keep this distance from 0 and 1, where some log-SNR is infinite."""


def levels_for(levels: int, schedule: Schedule) -> int | None:
    """The number of levels for `random_times`: `levels`, else the table's; None means all of (0, 1).

    `ConfigError` where the schedule has no level at one of these times.
    """
    count: int | None = levels or getattr(schedule, "levels", None)
    if count:  # of very many only the lowest, where a table has its gap
        on_schedule(tuple(k / count for k in range(count, 0, -1)[-1000:]), schedule)
    return count


def random_times(draw: Draw, levels: int | None) -> Tensor:
    """Random times, float64 [B]: uniform in (0, 1), or with `levels` uniform on {1 / levels, ..., 1}."""
    if levels is None:
        return draw.uniform().clamp(EDGE, 1 - EDGE)
    chosen = draw.integers(levels) + 1
    return chosen.to(torch.float32 if chosen.device.type == "mps" else torch.float64) / levels
