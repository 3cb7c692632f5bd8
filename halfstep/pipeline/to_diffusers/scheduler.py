"""The scheduler of diffusers that walks a student's grid exactly, built and compared before it is written.

On a table: DDIM where the steps divide the table, DPM-Solver++ of order 1 where they do not, as DDIM in
diffusers steps to n - T // N and not to its next timestep.  A closed-form schedule becomes `trained_betas`.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from halfstep.config import JsonObject
from halfstep.diffusion.denoiser import NetTime
from halfstep.diffusion.prediction import Parameterisation, Velocity
from halfstep.diffusion.samplers.published_scheduler import PREDICTION_TYPES
from halfstep.diffusion.samplers.scheduler_setup import quiet_numpy, scheduler_class
from halfstep.diffusion.schedules import BetaTable, RectifiedFlow, Schedule
from halfstep.diffusion.time_grids import Times, trailing
from halfstep.errors import ConfigError
from halfstep.pipeline.base import PipelineFields
from halfstep.pipeline.to_diffusers.flow import flow_config, sigmas_of

DDIM, DPM = "DDIMScheduler", "DPMSolverMultistepScheduler"
FLOW = "FlowMatchEulerDiscreteScheduler"
NEAR = 1e-5
"""Largest difference of an alpha that float32 makes of a product of betas."""


@dataclass(frozen=True)
class StudentScheduler:
    """What samples a student in diffusers.

    name    the class
    config  the content of scheduler_config.json
    call    arguments of the pipeline's call that the config cannot hold
    shift   what the student's network adds to diffusers' timestep, for `network.shifted_time`
    """

    name: str
    config: JsonObject
    call: JsonObject = field(default_factory=dict)
    shift: float = 0.0


def student_scheduler(
    pipeline: PipelineFields, times: Times, *, uniform_sigmas: bool, corrects_eps: bool
) -> StudentScheduler:
    """The scheduler that samples as the student does by DDIM on these times.

    uniform_sigmas  the pipeline passes sigmas from 1 to 1 / steps
    corrects_eps    the pipeline's call takes `use_clipped_model_output`

    `ConfigError` where no scheduler does; alphas and sigmas are compared with the schedule's.
    """
    if isinstance(pipeline.denoiser.schedule, RectifiedFlow):
        return _flow(pipeline, times, uniform_sigmas)
    return _table(pipeline, times, corrects_eps)


def _table(pipeline: PipelineFields, times: Times, corrects_eps: bool) -> StudentScheduler:
    schedule, time = pipeline.denoiser.schedule, pipeline.denoiser.time
    levels = _levels(schedule, time)
    steps = len(times) - 1
    expected = _timesteps(times, levels)
    prediction = _prediction_type(pipeline.denoiser.parameterisation)
    recomputes = pipeline.clip is not None and pipeline.clipping == "x0-and-eps" and steps > 1
    divides = levels % steps == 0 and (corrects_eps or not recomputes)
    config = {
        "num_train_timesteps": levels,
        "prediction_type": prediction,
        "timestep_spacing": "trailing",
        "steps_offset": 1,  # of no use here, but Stable Diffusion's pipelines ask for it
    }
    call: JsonObject = {}
    if divides:
        name = DDIM
        config |= _betas(schedule, levels)
        config |= {"set_alpha_to_one": True, "clip_sample": pipeline.clip is not None}
        if pipeline.clip is not None:
            config["clip_sample_range"] = pipeline.clip
        if recomputes:
            call = {"use_clipped_model_output": True}
    else:
        name = DPM
        config |= (
            _betas(schedule, levels)
            if _has_signal(schedule)
            else _nearly_zero_snr(schedule, levels)
        )
        config |= {
            "solver_order": 1,
            "algorithm_type": "dpmsolver++",
            "final_sigmas_type": "zero",
            **_thresholding(pipeline, steps),
        }
    _check_table(name, config, expected, schedule, times)
    return StudentScheduler(name, config, call, time.offset + 1)


def _levels(schedule: Schedule, time: NetTime) -> int:
    """The number T of levels: the network reads T t, plus an offset."""
    if not schedule.variance_preserving:
        raise ConfigError(
            f"diffusers has no scheduler for a student of the schedule {type(schedule).__name__}: write "
            "format='torch-export'"
        )
    levels, own = round(time.scale), getattr(schedule, "levels", None)
    if time.of != "t" or levels != time.scale or levels < 2 or own not in (None, levels):
        raise ConfigError(
            f"diffusers tells a network the number of its level, and this one reads {time.scale:g} "
            f"{time.of}{'' if own is None else f' on a table of {own}'}: write format='torch-export', or "
            "train with time t and its number of levels as scale"
        )
    return levels


def _timesteps(times: Times, levels: int) -> list[int]:
    """diffusers' timesteps T t - 1 of a grid; `ConfigError` unless it is the trailing grid."""
    steps = len(times) - 1
    expected = trailing(steps, levels=levels) if steps <= levels else ()
    if len(expected) != len(times) or not np.allclose(times, expected, rtol=0, atol=1e-9):
        raise ConfigError(
            f"diffusers' schedulers take the trailing levels of a table of {levels}, and these {steps} steps "
            f"are on other times ({', '.join(f'{t:g}' for t in times[:4])}, ...): distil on grid='trailing', "
            f"or with steps that divide {levels}"
        )
    return [round(levels * t) - 1 for t in times[:-1]]


def _prediction_type(parameterisation: Parameterisation) -> str:
    types = {value: name for name, value in PREDICTION_TYPES.items()}
    name = types.get(parameterisation)
    if name in (None, "flow_prediction"):
        raise ConfigError(
            f"diffusers' schedulers on a table read v, x0 or eps, and this student predicts "
            f"{type(parameterisation).__name__}: reparameterise it (halfstep distill reparameterise)"
        )
    return str(name)


def _betas(schedule: Schedule, levels: int) -> JsonObject:
    """The options for the table of betas."""
    if not isinstance(schedule, BetaTable):
        return {"trained_betas": trained_betas(schedule, levels)}
    options: JsonObject = {"rescale_betas_zero_snr": schedule.zero_snr}
    if schedule.betas:
        return {**options, "trained_betas": list(schedule.betas)}
    return {
        **options,
        "beta_schedule": schedule.kind,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
    }


def trained_betas(schedule: Schedule, levels: int) -> list[float]:
    """The betas of a schedule at t = 1/T, ..., 1: beta_n = 1 - alpha_n^2 / alpha_(n-1)^2 (Ho et al. 2020)."""
    t = (torch.arange(levels, dtype=torch.float64) + 1) / levels
    alphas2 = schedule.at(t).alpha ** 2
    before = torch.cat([alphas2.new_ones(1), alphas2[:-1]])
    betas: list[float] = (1 - alphas2 / before).tolist()
    return betas


def _has_signal(schedule: Schedule) -> bool:
    return bool(schedule.at(torch.ones((), dtype=torch.float64)).alpha > 0)


def _nearly_zero_snr(schedule: Schedule, levels: int) -> JsonObject:
    """The table with the least signal at its end that float32 holds: DPM-Solver++ divides by it.

    Its own `rescale_betas_zero_snr` leaves alpha = 2^-12 there, this 2^-12 of the level before.
    """
    betas = trained_betas(schedule, levels)
    return {"trained_betas": [*betas[:-1], 1 - 2.0**-24]}


def _thresholding(pipeline: PipelineFields, steps: int) -> JsonObject:
    """Clipping at 1 in DPM-Solver++, whose thresholds lie between 1 and `sample_max_value`."""
    if pipeline.clip is None:
        return {}
    if pipeline.clip != 1 or (pipeline.clipping == "x0" and steps > 1):
        raise ConfigError(
            f"diffusers' {DPM} clips images at 1 with the noise that goes with them, and this student is "
            f"sampled with clip={pipeline.clip:g} and clipping='{pipeline.clipping}': write steps that "
            "divide the table"
        )
    return {"thresholding": True, "sample_max_value": 1.0}


def _check_table(
    name: str, config: JsonObject, expected: list[int], schedule: Schedule, times: Times
) -> None:
    """`ConfigError` unless the scheduler takes these timesteps, at the schedule's alphas."""
    with quiet_numpy():
        scheduler = scheduler_class(name).from_config(config)
        scheduler.set_timesteps(len(expected))
    actual = scheduler.timesteps.tolist()
    if actual != expected:
        raise ConfigError(
            f"diffusers' {name} takes the timesteps {actual[:5]} for {len(expected)} steps, and this student "
            f"{expected[:5]}: write steps that divide {config['num_train_timesteps']}"
        )
    alphas = scheduler.alphas_cumprod[scheduler.timesteps.long()].double().sqrt()
    own: Tensor = schedule.at(torch.tensor(times[:-1], dtype=torch.float64)).alpha
    error = float((alphas - own).abs().max())
    if error > NEAR:
        raise ConfigError(
            f"diffusers' {name} has other levels than this student's schedule (alpha differs by "
            f"{error:.1e}): write format='torch-export'"
        )


def _flow(pipeline: PipelineFields, times: Times, uniform_sigmas: bool) -> StudentScheduler:
    """Euler's scheduler of flow matching, on a straight path."""
    denoiser, published = pipeline.denoiser, pipeline.scheduler
    if denoiser.parameterisation != Velocity():
        raise ConfigError(
            "diffusers' schedulers of flow matching read a velocity, and this student predicts "
            f"{type(denoiser.parameterisation).__name__}: reparameterise it (halfstep distill "
            "reparameterise)"
        )
    if pipeline.clip is not None:
        raise ConfigError(
            f"diffusers' {FLOW} does not clip, and this student is sampled with clip={pipeline.clip:g}: "
            "write format='torch-export'"
        )
    schedule = denoiser.schedule
    assert isinstance(schedule, RectifiedFlow)
    time, is_sigma = denoiser.time, schedule.shift == 1 or denoiser.time.of == "sigma"
    levels = published.levels if published else round(time.scale)
    if (
        not is_sigma
        or time.of == "logsnr"
        or time.offset
        or (not published and levels != time.scale)
    ):
        raise ConfigError(
            f"diffusers tells a network of flow matching sigma times a whole number, and this one reads "
            f"{time.scale:g} {time.of} + {time.offset:g}: train with time_of sigma and no offset"
        )
    steps = len(times) - 1
    config = flow_config(schedule.shift, steps, levels, uniform_sigmas=uniform_sigmas)
    wanted = schedule.at(torch.tensor(times, dtype=torch.float64)).sigma
    error = float((sigmas_of(config, steps, uniform_sigmas=uniform_sigmas) - wanted).abs().max())
    if error > NEAR / 10:
        raise ConfigError(
            f"diffusers' {FLOW} takes equal steps of this flow, and this student's {steps} steps are on "
            f"other times ({', '.join(f'{t:g}' for t in times[:4])}, ...; sigma differs by "
            f"{error:.1e}): distil on grid='uniform'"
        )
    return StudentScheduler(FLOW, config)
