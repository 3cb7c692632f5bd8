"""The noise schedule, the parameterisation and the network's time of a scheduler of diffusers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halfstep.diffusion.denoiser import NetTime
from halfstep.diffusion.prediction import Parameterisation, Velocity
from halfstep.diffusion.samplers import PublishedScheduler
from halfstep.diffusion.samplers.published_scheduler import dynamic_mu, PREDICTION_TYPES, shift_of
from halfstep.diffusion.samplers.scheduler_setup import quiet_numpy, scheduler_class
from halfstep.diffusion.schedules import BetaTable, RectifiedFlow, Schedule
from halfstep.errors import ConfigError, unknown
from halfstep.pipeline.from_diffusers.families import Family

KINDS = ("linear", "scaled_linear", "squaredcos_cap_v2")
NOT_A_TABLE = (
    "EDM",
    "KarrasVe",
    "CMStochastic",
    "SCM",
    "ScoreSde",
    "VQ",
    "Repaint",
    "UnCLIP",
    "IPNDM",
    "Amused",
)
"""Beginnings of schedulers that are of other models than a table of betas or a straight path."""


@dataclass(frozen=True)
class ImportedSchedule:
    """What a scheduler's config says of a model.

    clip  the bound of `clip_sample`, which leaves the noise as it was predicted; None without
    published  the scheduler itself; None for one that reads learned variances, which are cut off
    """

    schedule: Schedule
    parameterisation: Parameterisation
    time: NetTime
    clip: float | None
    published: PublishedScheduler | None


def imported_schedule(config: Mapping[str, Any], family: Family, tokens: int) -> ImportedSchedule:
    """Read a scheduler's config.

    tokens  number of image tokens, on which a dynamic shift depends
    """
    name = str(config.get("_class_name"))
    cls = scheduler_class(name)
    if cls is None or name.startswith(NOT_A_TABLE):
        raise ConfigError(
            f"the scheduler '{name}' is of no table of betas and no flow matching, which halfstep distils: "
            "save the model with one that is, such as DDIMScheduler or FlowMatchEulerDiscreteScheduler"
        )
    with quiet_numpy():
        full = {**dict(cls.from_config(dict(config)).config), "_class_name": name}
    full |= {key: value for key, value in family.scheduler.items() if key in full}
    if full.get("thresholding"):
        raise ConfigError(
            "this scheduler has thresholding, which no student's sampler does: save the model with "
            "thresholding=False"
        )
    levels = int(full.get("num_train_timesteps", 1000))
    is_flow = name.startswith("FlowM") or full.get("use_flow_sigmas")
    mu = dynamic_mu(full, tokens)
    published = PublishedScheduler(_plain(full), family.uniform_sigmas, mu)
    if is_flow:
        time = NetTime("sigma", family.time_scale * levels / 1000)
        return ImportedSchedule(
            RectifiedFlow(shift_of(full, mu)), Velocity(), time, None, published
        )
    prediction = str(full.get("prediction_type", "epsilon"))
    if prediction not in PREDICTION_TYPES:
        raise unknown("prediction_type", prediction, PREDICTION_TYPES)
    clip = float(full.get("clip_sample_range", 1.0)) if full.get("clip_sample") else None
    time = NetTime("t", float(levels), -1.0)
    learned = str(full.get("variance_type")).startswith("learned")
    return ImportedSchedule(
        _table(cls, full, levels),
        PREDICTION_TYPES[prediction],
        time,
        clip,
        None if learned else published,
    )


def _table(cls: Any, config: Mapping[str, Any], levels: int) -> BetaTable:
    """The table of betas; that of a kind that only diffusers has is kept number by number."""
    zero_snr = bool(config.get("rescale_betas_zero_snr", False))
    kind = str(config.get("beta_schedule", "linear"))
    if config.get("trained_betas") is None and kind in KINDS:
        ends = float(config["beta_start"]), float(config["beta_end"])
        return BetaTable(kind, levels, *ends, zero_snr=zero_snr)
    with quiet_numpy():
        plain = cls.from_config({**config, "rescale_betas_zero_snr": False})
    betas = tuple(plain.betas.double().tolist())
    return BetaTable("trained_betas", levels, betas=betas, zero_snr=zero_snr)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what diffusers keeps for itself."""
    own = {k: v for k, v in config.items() if not k.startswith("_") or k == "_class_name"}
    return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in own.items()}
