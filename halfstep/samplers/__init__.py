"""One loop, many steps.  A step is a pure function of where the walk has been and where it goes.

`scheduled` is the other loop, in which one of diffusers' schedulers makes the steps.
"""

from halfstep.samplers.editing import inpainting, noised
from halfstep.samplers.encode import encode
from halfstep.samplers.published import SAMPLER_PRESETS, SamplerPreset
from halfstep.samplers.schedulers import fitting, scheduled
from halfstep.samplers.sde import euler_maruyama, Fresh
from halfstep.samplers.singlestep import dpm_fast, dpmpp_3s
from halfstep.samplers.steps import (
    ancestral,
    ddim,
    dpmpp_2m,
    heun,
    ModelFn,
    ModelOutput,
    Step,
    STEPS,
    TimePoint,
)
from halfstep.samplers.stochastic import stochastic
from halfstep.samplers.walk import calls, noise_of, PREFIX, sample, start

__all__ = [
    "PREFIX",
    "SAMPLER_PRESETS",
    "STEPS",
    "Fresh",
    "ModelFn",
    "ModelOutput",
    "SamplerPreset",
    "Step",
    "TimePoint",
    "ancestral",
    "calls",
    "ddim",
    "dpm_fast",
    "dpmpp_2m",
    "dpmpp_3s",
    "encode",
    "euler_maruyama",
    "fitting",
    "heun",
    "inpainting",
    "noise_of",
    "noised",
    "sample",
    "scheduled",
    "start",
    "stochastic",
]
