"""A denoiser on a grid that is told where each of its steps ends: how flow maps are sampled."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Denoises
from halfstep.diffusion.prediction import Prediction
from halfstep.diffusion.schedules import Schedule
from halfstep.diffusion.time_grids import Times
from halfstep.errors import ConfigError


@dataclass(frozen=True)
class TowardNext:
    """A denoiser that reads `Cond.t_end`, told at each time of a grid the next one.

    Args:
        denoiser: guided or not.
        times: the grid that is sampled on.

    Raises:
        ConfigError: a time without a next one on the grid, when it is called.
    """

    denoiser: Denoises
    times: Times

    @property
    def schedule(self) -> Schedule:
        """That of the denoiser."""
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return self.denoiser(x_t, t, replace(cond or Cond(), t_end=self.ends(t)))

    def ends(self, t: Tensor) -> Tensor:
        """The next time of the grid after each, float [B].

        Args:
            t: float [B], times of the grid.
        """
        grid = torch.tensor(self.times, dtype=t.dtype, device=t.device)
        here = t[:, None] == grid[:-1]
        if not bool(here.any(1).all()):
            raise ConfigError(
                f"no step of this grid begins at t = {float(t[~here.any(1)][0]):g}: sample on the grid that "
                "it was made for"
            )
        return grid[1:][here.int().argmax(1)]
