"""What a pipeline is, as json: how it is told, and how it is built again with fresh weights."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields as dataclass_fields
from typing import Any, TYPE_CHECKING

from torch import nn

from halfstep.denoiser import Denoiser, NetTime
from halfstep.errors import CheckpointError, ConfigError, unknown
from halfstep.nets import build, recipe
from halfstep.nets.quantised import quantised_again
from halfstep.prediction import PARAMETERISATIONS
from halfstep.schedules import Schedule, SCHEDULES

if TYPE_CHECKING:
    from halfstep.pipeline.pipeline import Pipeline

FORMAT = 1


USUAL: dict[str, Any] = {
    "sampler": "ddim",
    "steps": 64,
    "codec": None,
    "guidance": None,
    "made_for": "ddim",
    "quantised": None,
}
"""What is not said of a pipeline where it is so."""


def described(pipeline: "Pipeline") -> dict[str, Any]:
    """Network, schedule, parameterisation and time of its denoiser, and how it is sampled."""
    denoiser, codec = pipeline.denoiser, pipeline.codec
    name, config = recipe(denoiser.net)
    schedule: Any = denoiser.schedule
    rest = {
        "sampler": pipeline.sampler,
        "steps": pipeline.steps,
        "codec": None if codec is None else {"scale": codec.scale, "factor": codec.factor},
        "guidance": None if pipeline.guidance is None else list(pipeline.guidance),
        "made_for": pipeline.made_for,
        "quantised": getattr(denoiser.net, "quantised", None),
    }
    return {
        "format": FORMAT,
        "net": {"build": name, "config": config},
        "schedule": {"name": _name_of(type(schedule), SCHEDULES), **asdict(schedule)},
        "parameterisation": _name_of(denoiser.parameterisation, PARAMETERISATIONS),
        "time": asdict(denoiser.time),
        "shape": list(pipeline.shape),
        "times": [list(times) for times in pipeline.times],
        "classes": list(pipeline.classes),
        "null": pipeline.null,
        "clip": pipeline.clip,
        **{name: value for name, value in rest.items() if value != USUAL[name]},
    }


def fields_from(
    about: Mapping[str, Any], *, net: Callable[..., nn.Module] | str | None, source: str
) -> dict[str, Any]:
    """The fields of the pipeline that `described` told of, with fresh weights and no codec."""
    rest = USUAL | {name: about[name] for name in USUAL if name in about}
    return {
        "denoiser": denoiser_from(about, net=net, source=source),
        "shape": tuple(about["shape"]),
        "times": tuple(tuple(times) for times in about["times"]),
        "classes": tuple(about["classes"]),
        "null": about["null"],
        "clip": about["clip"],
        "sampler": rest["sampler"],
        "steps": rest["steps"],
        "guidance": None if rest["guidance"] is None else tuple(rest["guidance"]),
        "made_for": rest["made_for"],
    }


def denoiser_from(
    about: Mapping[str, Any],
    *,
    net: Callable[..., nn.Module] | str | None = None,
    source: str = "this description",
) -> Denoiser:
    """The denoiser that `described` told of, with fresh weights."""
    if about.get("format") != FORMAT:
        raise CheckpointError(
            f"{source} has format {about.get('format')} and this halfstep reads {FORMAT}: use the "
            "version that wrote it"
        )
    if about["parameterisation"] not in PARAMETERISATIONS:
        raise unknown("parameterisation", about["parameterisation"], PARAMETERISATIONS)
    made = _net(about["net"]["build"], about["net"]["config"], net)
    return Denoiser(
        made if about.get("quantised") is None else quantised_again(made, about["quantised"]),
        schedule_from(about["schedule"]),
        PARAMETERISATIONS[about["parameterisation"]],
        time=NetTime(**about["time"]),
    )


def _net(
    name: str, config: Mapping[str, Any], own: Callable[..., nn.Module] | str | None
) -> nn.Module:
    """A file never names code that is run: a network of the user's own is built by the user's word."""
    if own is None:
        if ":" in name:
            raise CheckpointError(
                f"this pipeline's network is built by '{name}', which is not halfstep's: say so with "
                f"net='{name}' (command line: --net {name})"
            )
        return build(name, config)
    if isinstance(own, str):
        return build(own, config)
    built = own(**config)
    built.recipe = name, dict(config)  # type: ignore[assignment]  # so that it can be saved again
    built.made_by = own  # type: ignore[assignment]
    return built


def schedule_from(about: Mapping[str, Any]) -> Schedule:
    """The schedule that `{"name": ..., **fields}` describes."""
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in about.items() if k != "name"}
    if about["name"] not in SCHEDULES:
        raise unknown("schedule", about["name"], SCHEDULES)
    kind: Any = SCHEDULES[about["name"]]
    known = {field.name: field.default for field in dataclass_fields(kind)}
    for name, value in fields.items():
        if name not in known:
            raise unknown(f"option of the schedule '{about['name']}' called", name, known)
        default = known[name]
        number = isinstance(default, float) and type(value) in (int, float)
        if type(value) is not type(default) and not number:
            raise ConfigError(
                f"{name} = {value!r} cannot be an option of the schedule '{about['name']}': write for "
                f"example {default!r}"
            )
    schedule: Schedule = kind(**fields)
    return schedule


def _name_of(value: object, names: Mapping[str, object]) -> str:
    for name, known in names.items():
        if known == value:
            return name
    raise ConfigError(f"{value!r} is not one that can be saved: use one of {', '.join(names)}")
