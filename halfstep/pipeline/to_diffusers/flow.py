"""Equal steps of flow matching in the config of diffusers' Euler scheduler."""

from math import copysign, sqrt

import torch
from torch import Tensor

from halfstep.config import JsonObject
from halfstep.diffusion.samplers import PublishedScheduler
from halfstep.errors import ConfigError


def flow_config(shift: float, steps: int, levels: int, *, uniform_sigmas: bool) -> JsonObject:
    """The config with which `steps` equal steps of a flow of this shift are taken.

    shift   s of sigma = s u / (1 + (s - 1) u), u = 1 - k / steps (Esser et al. 2024, eq. 23)
    levels  number of training timesteps T; the network reads T sigma
    uniform_sigmas  the pipeline passes u; else the scheduler makes its own grid from 1 to sigma_min, which
            the config bends and stretches to the one that is wanted
    """
    config: JsonObject = {"num_train_timesteps": levels, "shift": shift}
    if uniform_sigmas or steps == 1:
        return config
    last = shift / (steps + shift - 1)
    return {**config, "shift": own_shift(shift, steps, levels), "shift_terminal": last}


def own_shift(shift: float, steps: int, levels: int) -> float:
    """The shift s' that with `shift_terminal` makes the scheduler's own grid that of N steps of shift s.

    The scheduler takes v = 1 - c k, c = (1 - sigma_min) / (N - 1), sigma_min = s' / (T + s' - 1), bends it to
    s' v / (1 + (s' - 1) v) and stretches it linearly.  That is a k / (s' - (s' - 1) c k) below 1, and wanted
    is k / (s N - (s - 1) k): s' / ((s' - 1) c) = s N / (s - 1).  So s'^2 + (T - 1 - K) s' + K = 0 with
    K = s N (T - 1) / ((s - 1) (N - 1)).
    """
    if shift == 1:
        return 1.0
    k = shift * steps * (levels - 1) / ((shift - 1) * (steps - 1))
    b = k - (levels - 1)
    square = b * b - 4 * k
    if square < 0:
        raise ConfigError(
            f"no scheduler config of {levels} levels holds {steps} equal steps of a flow of shift {shift:g}: "
            "distil to fewer steps"
        )
    return 2 * k / (b + copysign(sqrt(square), b))


def sigmas_of(config: JsonObject, steps: int, *, uniform_sigmas: bool) -> Tensor:
    """The sigmas of the scheduler with this config, float64 [steps + 1], the last 0."""
    named = {**config, "_class_name": "FlowMatchEulerDiscreteScheduler"}
    sigmas: Tensor = PublishedScheduler(named, uniform_sigmas).build(steps).sigmas
    return sigmas.to(torch.float64)
