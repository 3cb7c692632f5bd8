"""DDIM steps of a network with a bank of heads: each is a block of fine steps, whose heads are combined."""

from dataclasses import replace

import torch
from torch import Tensor

from halfstep.batch import Cond
from halfstep.diffusion.block_weights import block_weights
from halfstep.diffusion.denoiser import Denoises
from halfstep.diffusion.prediction import Prediction
from halfstep.diffusion.schedules import Schedule
from halfstep.diffusion.time_grids import Times
from halfstep.errors import ConfigError


class InBlocks:
    """A denoiser with a head for each fine step, as the denoiser of the steps of a grid (Shaul et al. 2026).

    A step of the grid from t_n to t_e is one call, with the convex combination of heads n ... e - 1.

    Args:
        denoiser: one that reads `Cond.heads`, guided or not.
        times: the grid that is sampled on.
        fine: the grid of the fine steps, with all times of the other.

    Raises:
        ConfigError: a grid with other times, or a call at another time.
    """

    def __init__(self, denoiser: Denoises, times: Times, fine: Times):
        self.denoiser = denoiser
        self.weights = weights_of_steps(denoiser.schedule, times, fine)
        self._step = {t: k for k, t in enumerate(times[:-1])}

    @property
    def schedule(self) -> Schedule:
        """The denoiser's schedule."""
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        first = float(t[0])
        if first not in self._step:
            raise ConfigError(
                f"a block of heads begins at a time of its grid, and t = {first:g} is none: give the grid "
                "that is sampled on"
            )
        heads = self.weights[self._step[first]].to(x_t.device, t.dtype)
        told = replace(cond or Cond(), heads=heads.expand(x_t.shape[0], -1))
        return self.denoiser(x_t, t, told)


def weights_of_steps(schedule: Schedule, times: Times, fine: Times) -> Tensor:
    """The weights of all heads in each step of a grid, float64 [steps, N].

    Args:
        schedule: the noise schedule.
        times: the grid, whose times are all among the fine ones.
        fine: the fine grid of N steps.

    Raises:
        ConfigError: a grid with other times.
    """
    place = {t: k for k, t in enumerate(fine)}
    if not set(times) <= place.keys():
        raise ConfigError(
            f"a grid of {len(times) - 1} steps has other times than the {len(fine) - 1} fine steps whose "
            "heads it combines: give times that are among theirs"
        )
    ends = torch.tensor([place[t] for t in times])
    return block_weights(schedule, fine, ends[:-1], ends[1:])
