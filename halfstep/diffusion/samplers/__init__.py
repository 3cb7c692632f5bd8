"""One sampling loop for many solver steps; a step is a pure function of the trajectory and its next time.

`sample_with_scheduler` is the other loop, in which one of diffusers' schedulers makes the steps.
"""

from halfstep.diffusion.samplers.diffusers_schedulers import sample_with_scheduler
from halfstep.diffusion.samplers.editing import inpainting, noised
from halfstep.diffusion.samplers.in_blocks import InBlocks
from halfstep.diffusion.samplers.invert import encode
from halfstep.diffusion.samplers.presets import SAMPLER_PRESETS, SamplerPreset
from halfstep.diffusion.samplers.published_scheduler import (
    PublishedScheduler,
    sample_published,
)
from halfstep.diffusion.samplers.registry import calls, draws_noise, PREFIX, SCHEDULER, STEPS
from halfstep.diffusion.samplers.sample import noise_of, sample, start
from halfstep.diffusion.samplers.scheduler_setup import supported_schedulers
from halfstep.diffusion.samplers.sde import euler_maruyama, Fresh
from halfstep.diffusion.samplers.singlestep import dpm_fast, dpmpp_3s
from halfstep.diffusion.samplers.solvers import (
    ancestral,
    ddim,
    dpmpp_2m,
    heun,
    ModelFn,
    ModelOutput,
    Step,
    TimePoint,
)
from halfstep.diffusion.samplers.stochastic import stochastic
from halfstep.diffusion.samplers.toward_next import TowardNext
from halfstep.diffusion.samplers.walk_points import (
    check_solver,
    check_walk,
    solver_grid,
    step_ends,
    walk_points,
)

__all__ = [
    "PREFIX",
    "SAMPLER_PRESETS",
    "SCHEDULER",
    "STEPS",
    "Fresh",
    "InBlocks",
    "ModelFn",
    "ModelOutput",
    "PublishedScheduler",
    "SamplerPreset",
    "Step",
    "TimePoint",
    "TowardNext",
    "ancestral",
    "calls",
    "check_solver",
    "check_walk",
    "ddim",
    "dpm_fast",
    "dpmpp_2m",
    "dpmpp_3s",
    "draws_noise",
    "encode",
    "euler_maruyama",
    "heun",
    "inpainting",
    "noise_of",
    "noised",
    "sample",
    "sample_published",
    "sample_with_scheduler",
    "solver_grid",
    "start",
    "step_ends",
    "stochastic",
    "supported_schedulers",
    "walk_points",
]
