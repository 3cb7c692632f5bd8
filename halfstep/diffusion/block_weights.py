"""Weights of the predictions of fine steps in the one step of a block of them.

A DDIM step from t to e with prediction x0 is x_e / sigma_e = x_t / sigma_t + (rho_e - rho_t) x0, where rho is
alpha / sigma.  So the steps n ... end - 1 of a grid are one step whose x0 is a convex combination of theirs.
"""

from collections.abc import Hashable
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from halfstep.diffusion.schedules import arriving, Schedule
from halfstep.diffusion.time_grids import Times


def block_weights(schedule: Schedule, times: Times, n: Tensor, end: Tensor) -> Tensor:
    """w_k = (rho_{k+1} - rho_k) / (rho_end - rho_n) of the fine steps k = n ... end - 1, and 0 of all others.

    They are at least 0 and sum to 1. A step to t = 0 returns its x0, so that the weights of a block that
    ends there are 0, ..., 0, 1.

    Args:
        schedule: the noise schedule.
        times: the fine grid of N steps, noise first.
        n: int64 [B], the first step of each block, from 0.
        end: int64 [B], the step after its last, n < end <= N; with end = n all weights are 0.

    Returns:
        float64 [B, N] (float32 on a device without it).
    """
    rise = _rises(cast(Hashable, schedule), times, n.device)
    steps = torch.arange(len(rise), device=n.device)
    inside = (steps >= n[:, None]) & (steps < end[:, None])
    # A step to t = 0 rises to infinity: its share is all, and that of the others nothing.
    last = inside & rise.isinf()
    weights = torch.where(
        last.any(1, keepdim=True), last.to(rise), inside * rise.nan_to_num(posinf=0)
    )
    total = weights.sum(1, keepdim=True)
    return weights / total.where(total > 0, 1)


@lru_cache(maxsize=16)  # a copy to the device waits for it, so not one every update
def _rises(schedule: Hashable, times: Times, device: torch.device) -> Tensor:
    """rho_{k+1} - rho_k of every fine step; infinite of a step to t = 0."""
    grid = torch.tensor(times, dtype=torch.float64)
    levels = cast(Schedule, schedule)
    start, to = levels.at(grid[:-1]), arriving(levels, grid[1:])
    rise = (to.alpha * start.sigma - start.alpha * to.sigma) / (start.sigma * to.sigma)
    return rise.to(device, torch.float32 if device.type == "mps" else torch.float64)
