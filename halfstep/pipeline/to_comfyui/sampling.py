"""How ComfyUI samples a student: by euler on the schedule simple, if these are the student's levels."""

from dataclasses import dataclass, replace

import torch

from halfstep.config import JsonObject
from halfstep.diffusion.prediction import Eps, V, Velocity, X0
from halfstep.diffusion.samplers import PublishedScheduler
from halfstep.diffusion.samplers.comfyui import discrete_table, FlowTable, simple
from halfstep.diffusion.schedules import BetaTable, RectifiedFlow
from halfstep.diffusion.time_grids import Times
from halfstep.errors import ConfigError
from halfstep.pipeline.base import PipelineFields
from halfstep.pipeline.samplers import PARALLEL_DECODING
from halfstep.pipeline.to_comfyui.models import ComfyModel

STABLE_DIFFUSION = BetaTable("scaled_linear", 1000, 0.00085, 0.012)
"""ComfyUI's only table of betas."""
SAMPLINGS = {V(): "v_prediction", Eps(): "eps", X0(): "x0"}
"""ComfyUI's words for what a network predicts."""
PREDICTION_TYPES = {"v_prediction": "v_prediction", "eps": "epsilon", "x0": "sample"}
"""diffusers' words for ComfyUI's."""
CLOSE = 1e-6


@dataclass(frozen=True)
class ComfySampling:
    """What ComfyUI's nodes are set to for a student.

    steps      of the sampler
    sampling   what the network predicts: v_prediction, eps or x0; "" in flow matching
    zero_snr   the table has no signal at its last level
    shift      of flow matching
    """

    steps: int
    sampling: str = ""
    zero_snr: bool = False
    shift: float = 1.0

    def scheduler(self) -> PublishedScheduler:
        """The scheduler of diffusers that takes the same steps, exactly."""
        if not self.sampling:
            config: JsonObject = {
                "_class_name": "FlowMatchEulerDiscreteScheduler",
                "num_train_timesteps": 1000,
                "shift": self.shift,
            }
            return PublishedScheduler(config, uniform_sigmas=True)
        return PublishedScheduler(
            {
                "_class_name": "DDIMScheduler",
                "num_train_timesteps": 1000,
                "beta_schedule": STABLE_DIFFUSION.kind,
                "beta_start": STABLE_DIFFUSION.beta_start,
                "beta_end": STABLE_DIFFUSION.beta_end,
                "rescale_betas_zero_snr": self.zero_snr,
                "timestep_spacing": "trailing",
                "set_alpha_to_one": True,
                "clip_sample": False,
                "prediction_type": PREDICTION_TYPES[self.sampling],
            }
        )


def comfy_sampling(pipeline: PipelineFields, model: ComfyModel, times: Times) -> ComfySampling:
    """The nodes' settings for a student on these times; `ConfigError` where ComfyUI samples otherwise."""
    denoiser = pipeline.denoiser
    if pipeline.sampler == PARALLEL_DECODING:
        raise ConfigError(
            f"ComfyUI loads one last layer of a network, and this student has one for each of "
            f"{len(times) - 1} steps: write steps=1 (--steps 1), or format='diffusers'"
        )
    if pipeline.sampler != "ddim" or pipeline.direction != "denoise":
        raise ConfigError(
            f"ComfyUI's euler takes the steps of ddim, and this student was distilled for "
            f"{pipeline.sampler if pipeline.direction == 'denoise' else 'encoding'}: write format='pipeline'"
        )
    if pipeline.clip is not None:
        raise ConfigError(
            "ComfyUI clips nothing, and this student was distilled with clipping: write "
            "format='diffusers'"
        )
    if denoiser.time != model.time:
        raise ConfigError(
            f"ComfyUI gives a {model.name} the time {model.time.scale:g} {model.time.of} + "
            f"{model.time.offset:g}, and this network reads {denoiser.time.scale:g} {denoiser.time.of} + "
            f"{denoiser.time.offset:g}: write format='diffusers'"
        )
    schedule = denoiser.schedule
    if isinstance(schedule, RectifiedFlow):
        return _flow(pipeline, schedule, model, times)
    if not isinstance(schedule, BetaTable) or replace(schedule, zero_snr=False) != STABLE_DIFFUSION:
        raise ConfigError(
            "ComfyUI has one table of betas, Stable Diffusion's (scaled_linear, 0.00085 to 0.012, 1000 "
            "levels), and this student has another schedule: write format='diffusers'"
        )
    if denoiser.parameterisation not in SAMPLINGS:
        raise ConfigError(
            f"ComfyUI samples networks that predict v, x0 or eps, and this one predicts "
            f"{type(denoiser.parameterisation).__name__}: write format='diffusers'"
        )
    levels = schedule.at((torch.arange(1000, dtype=torch.float64) + 1) / 1000)
    table, steps = discrete_table(levels.alpha**2), len(times) - 1
    entries = table.place_of(simple(table, steps)[:-1]).tolist()
    own = [1000 * t - 1 for t in times[:-1]]
    _compare("timesteps", own, entries, times, 1000)
    return ComfySampling(steps, SAMPLINGS[denoiser.parameterisation], schedule.zero_snr)


def _flow(
    pipeline: PipelineFields, schedule: RectifiedFlow, model: ComfyModel, times: Times
) -> ComfySampling:
    """Euler's steps of flow matching; ComfyUI reads a velocity, whatever the network predicts."""
    reads = pipeline.denoiser.parameterisation
    if reads != Velocity():
        raise ConfigError(
            f"ComfyUI reads a {model.name} as a velocity, and this student predicts "
            f"{type(reads).__name__}: reparameterise it (halfstep distill reparameterise)"
        )
    own = schedule.at(torch.tensor(times, dtype=torch.float64)).sigma.tolist()
    steps = len(times) - 1
    sigmas = simple(FlowTable(schedule.shift, model.levels), steps).tolist()
    _compare("sigmas", own[:-1], sigmas[:-1], times, model.levels)
    return ComfySampling(steps, shift=schedule.shift)


def _compare(kind: str, own: list[float], theirs: list[float], times: Times, levels: int) -> None:
    """`ConfigError` unless the student's levels are ComfyUI's, and it ends at clean data."""
    if times[-1] != 0 or any(abs(a - b) > CLOSE for a, b in zip(own, theirs, strict=True)):
        raise ConfigError(
            f"ComfyUI's simple takes the {kind} {_shown(theirs)}, and this student's are {_shown(own)}: "
            f"export one whose steps divide {levels}, such as 4, or write format='diffusers'"
        )


def _shown(values: list[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values[:4]) + ", ..." * (len(values) > 4)
