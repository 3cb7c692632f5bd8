"""The noise levels that a diffusers scheduler visits: read from it where it lists them, else measured."""

from copy import deepcopy
from dataclasses import dataclass
from inspect import signature
from math import hypot, isinf
from typing import Any, Literal

import torch
from torch import Tensor

from halfstep.errors import ConfigError

Kind = Literal["vp", "flow", "ve"]
"""vp: alpha^2 + sigma^2 = 1 of each level; flow: alpha = 1 - sigma; ve: alpha = 1."""
TABLE_ONLY = (
    "CogVideoXDDIMScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "TCDScheduler",
)
"""Schedulers that list timesteps and no sigmas."""
WITH_SIGMAS = (
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers of a table of betas that list sigma / alpha, or with use_flow_sigmas a flow's sigma."""
FLOW = (
    "FlowMapEulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
)
EXPLODING = ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler")
READABLE = (*TABLE_ONLY, *WITH_SIGMAS, *FLOW, *EXPLODING)
"""Schedulers whose levels are known."""


@dataclass(frozen=True)
class SchedulerLevels:
    """What a scheduler visits after `set_timesteps`.

    timesteps  what it hands to the network, one a call
    sigmas     its sigma at each call and after the last: sigma / alpha of a vp level, else sigma
    reached    the sigma that each call's step ends at; sigmas[1:] where steps follow the list
    """

    kind: Kind
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    reached: tuple[float, ...]


def kind_of(scheduler: Any) -> Kind:
    """How alpha and sigma of this scheduler belong together."""
    name = type(scheduler).__name__
    if name in FLOW or scheduler.config.get("use_flow_sigmas"):
        return "flow"
    return "ve" if name in EXPLODING else "vp"


def level(kind: Kind, sigma: float) -> tuple[float, float]:
    """(alpha, sigma) of x_t = alpha x0 + sigma eps; a vp sigma of inf has alpha = 0."""
    if kind == "flow":
        return 1 - sigma, sigma
    if kind == "ve":
        return 1.0, sigma
    return (0.0, 1.0) if isinf(sigma) else (1 / hypot(1, sigma), sigma / hypot(1, sigma))


def scheduler_levels(scheduler: Any) -> SchedulerLevels:
    """The levels of a scheduler of `READABLE` whose `set_timesteps` was called."""
    kind, timesteps = kind_of(scheduler), tuple(map(float, scheduler.timesteps.tolist()))
    if type(scheduler).__name__ in TABLE_ONLY:
        alphas = scheduler.alphas_cumprod[scheduler.timesteps.long()].double().sqrt()
        reached = _ratios(_measured(scheduler, alphas))
        return SchedulerLevels(
            kind, timesteps, (*_ratios(alphas.tolist()), *reached[-1:]), tuple(reached)
        )
    sigmas = scheduler.sigmas
    if hasattr(scheduler, "sigmas_interpol"):  # KDPM2: every second call lies between two levels
        inner = scheduler.sigmas_interpol[: len(timesteps)]
        odd = torch.arange(len(timesteps)) % 2 == 1
        sigmas = torch.cat([torch.where(odd, inner, sigmas[: len(timesteps)]), sigmas[-1:]])
    values = tuple(map(float, sigmas.tolist()))
    if len(values) != len(timesteps) + 1:
        raise ConfigError(
            f"diffusers' {type(scheduler).__name__} lists {len(timesteps)} timesteps and {len(values)} "
            "sigmas, which is no grid: give another scheduler"
        )
    return SchedulerLevels(kind, timesteps, values, values[1:])


def _ratios(alphas: list[float]) -> list[float]:
    """sigma / alpha of variance-preserving levels; inf at alpha = 0."""
    each = torch.tensor(alphas, dtype=torch.float64).clamp(max=1)
    ratios: list[float] = ((1 - each**2).sqrt() / each).tolist()
    return ratios


@torch.no_grad()
def _measured(scheduler: Any, alphas: Tensor) -> list[float]:
    """The alpha that each step ends at, by stepping with an exact network of the data 1 and of 0.

    Steps are affine in data and noise: with the same noise, the difference is alpha.  The prediction is x0,
    so that nothing is divided by alpha; PNDM reads eps, which is 0 here.
    """
    reads_x0 = type(scheduler).__name__ != "PNDMScheduler"
    options = {"prediction_type": "sample" if reads_x0 else "epsilon", "clip_sample": False}
    ends = []
    for x0 in (1.0, 0.0):
        probe, values = deepcopy(scheduler), []
        probe.register_to_config(**{k: v for k, v in options.items() if k in probe.config})
        for k, (timestep, alpha) in enumerate(zip(probe.timesteps, alphas, strict=True)):
            sample = (alpha * x0).reshape(1, 1, 1, 1)
            values.append(_step(probe, x0 if reads_x0 else 0.0, timestep, sample, k))
        ends.append(torch.stack(values))
    difference: list[float] = (ends[0] - ends[1]).tolist()
    return difference


def _step(scheduler: Any, value: float, timestep: Tensor, sample: Tensor, seed: int) -> Tensor:
    output = torch.full_like(sample, value)
    if "learned" in str(
        scheduler.config.get("variance_type")
    ):  # the network predicts variances too
        output = torch.cat([output, torch.zeros_like(output)], dim=1)
    generator = torch.Generator().manual_seed(seed)
    draws = {"generator": generator} if "generator" in signature(scheduler.step).parameters else {}
    step: Tensor = scheduler.step(output, timestep, sample, **draws)[0]
    return step.flatten()[0]
