"""The description of a pipeline as JSON, and the pipeline's fields built from it with fresh weights."""

import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields as dataclass_fields
from typing import Any, cast, Literal, NotRequired, TypedDict

from torch import nn

from halfstep.config import JsonObject, NetConfig
from halfstep.config.validate import is_valid
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import Clipping, PARAMETERISATIONS
from halfstep.diffusion.samplers import PublishedScheduler
from halfstep.diffusion.schedules import Schedule, SCHEDULES
from halfstep.diffusion.time_grids import Direction
from halfstep.errors import CheckpointError, ConfigError, HalfstepError, unknown
from halfstep.models import build, recipe
from halfstep.models.compression.int8 import quantise_like
from halfstep.pipeline.base import Origin, PipelineFields
from halfstep.schema import SchemaError, validated, validated_partly

FORMAT = 1
NetBuilder = Callable[..., nn.Module] | str | None
"""What builds a user's own network: a function, or its name package.module:function."""
PipelineArguments = dict[str, Any]


class _Net(TypedDict):
    build: str
    config: JsonObject


class _Schedule(TypedDict):
    """And the schedule's own fields."""

    name: str


class _Time(TypedDict):
    of: Literal["t", "sigma", "logsnr"]
    scale: float
    offset: float


class _Codec(TypedDict):
    scale: float
    factor: int
    file: NotRequired[str]


class _Scheduler(TypedDict):
    config: JsonObject
    uniform_sigmas: bool
    mu: float | None


class _Origin(TypedDict):
    pipeline: str
    source: str


class LoraAbout(TypedDict):
    """A stage whose weights are an adapter alone: its rank, and its base with `digest_of` its denoiser.

    base      the folder RUN/base as seen from the stage, or the origin's folder or name on the hub
    defaults  whether the stage has a file of the empty text's states and other tensors
    """

    rank: int
    base: str
    digest: str
    defaults: bool


class Description(TypedDict):
    """The content of pipeline.json."""

    format: int
    net: _Net
    schedule: JsonObject
    parameterisation: str
    time: _Time
    shape: list[int]
    times: list[list[float]]
    class_names: list[str]
    null: int | None
    clip: float | None
    sampler: NotRequired[str]
    steps: NotRequired[int]
    codec: NotRequired[_Codec | None]
    guidance_range: NotRequired[tuple[float, float] | None]
    direction: NotRequired[Direction]
    scheduler: NotRequired[_Scheduler | None]
    origin: NotRequired[_Origin | None]
    guidance_norm: NotRequired[int]
    clipping: NotRequired[Clipping]
    fine_times: NotRequired[list[float]]
    quantised: NotRequired[dict[str, str] | None]
    lora: NotRequired[LoraAbout]


DEFAULTS: Mapping[str, Any] = {
    "sampler": "ddim",
    "steps": 64,
    "codec": None,
    "guidance_range": None,
    "direction": "denoise",
    "scheduler": None,
    "origin": None,
    "guidance_norm": 0,
    "clipping": "x0-and-eps",
    "fine_times": [],
    "quantised": None,
}
"""Values that a description leaves out."""


def describe(pipeline: PipelineFields) -> Description:
    """Describe a pipeline's network, schedule, parameterisation, time and sampling."""
    denoiser, codec, scales = pipeline.denoiser, pipeline.codec, pipeline.guidance_range
    name, config = recipe(denoiser.net)
    schedule: Any = denoiser.schedule
    optional = {
        "sampler": pipeline.sampler,
        "steps": pipeline.steps,
        "codec": None if codec is None else {"scale": codec.scale, "factor": codec.factor},
        "guidance_range": None if scales is None else list(scales),
        "direction": pipeline.direction,
        "scheduler": None if pipeline.scheduler is None else asdict(pipeline.scheduler),
        "clipping": pipeline.clipping,
        "fine_times": list(pipeline.fine_times),
        "origin": None if pipeline.origin is None else asdict(pipeline.origin),
        "guidance_norm": pipeline.guidance_norm,
        "quantised": getattr(denoiser.net, "quantised", None),
    }
    about = {
        "format": FORMAT,
        "net": {"build": name, "config": config},
        "schedule": {"name": _name_of(type(schedule), SCHEDULES), **asdict(schedule)},
        "parameterisation": _name_of(denoiser.parameterisation, PARAMETERISATIONS),
        "time": asdict(denoiser.time),
        "shape": list(pipeline.shape),
        "times": [list(times) for times in pipeline.times],
        "class_names": list(pipeline.class_names),
        "null": pipeline.null,
        "clip": pipeline.clip,
        **{name: value for name, value in optional.items() if value != DEFAULTS[name]},
    }
    return cast(Description, about)


def fields_from(about: Description, *, net: NetBuilder, source: str) -> PipelineArguments:
    """The fields of the described pipeline, with fresh weights and without codec and text states.

    net     builds a user's own network
    source  names the description in an error
    """
    _check(validated, about, Description, source)
    if about["format"] != FORMAT:
        raise CheckpointError(
            f"{source} has format {about['format']} and this halfstep reads {FORMAT}: use the "
            "version that wrote it"
        )
    options: dict[str, Any] = {**DEFAULTS, **about}
    scales = options["guidance_range"]
    return {
        "denoiser": _denoiser(about, net, source),
        "shape": tuple(about["shape"]),
        "times": tuple(tuple(times) for times in about["times"]),
        "class_names": tuple(about["class_names"]),
        "null": about["null"],
        "clip": about["clip"],
        "sampler": options["sampler"],
        "steps": options["steps"],
        "guidance_range": None if scales is None else tuple(scales),
        "direction": options["direction"],
        "scheduler": options["scheduler"] and PublishedScheduler(**options["scheduler"]),
        "guidance_norm": options["guidance_norm"],
        "origin": options["origin"] and Origin(**options["origin"]),
        "clipping": options["clipping"],
        "fine_times": tuple(options["fine_times"]),
    }


def _denoiser(about: Description, builder: NetBuilder, source: str) -> Denoiser:
    if about["parameterisation"] not in PARAMETERISATIONS:
        with as_checkpoint_error(source):
            raise unknown("parameterisation", about["parameterisation"], PARAMETERISATIONS)
    net = _net(about["net"]["build"], about["net"]["config"], builder, source)
    if (quantised := about.get("quantised")) is not None:
        net = quantise_like(net, quantised)
    with as_checkpoint_error(source):
        return Denoiser(
            net,
            schedule_from(about["schedule"]),
            PARAMETERISATIONS[about["parameterisation"]],
            time=NetTime(**about["time"]),
        )


@contextmanager
def as_checkpoint_error(source: str) -> Iterator[None]:
    """Turn a `ConfigError` into a `CheckpointError` that names the file with the wrong value."""
    try:
        yield
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from None


def _net(name: str, config: NetConfig, builder: NetBuilder, source: str) -> nn.Module:
    """Build the described network; code named in a file is not run, only that of `builder`."""
    if builder is None:
        if ":" in name:
            raise CheckpointError(
                f"this pipeline's network is built by '{name}', which is not halfstep's: say so with "
                f"net='{name}' (command line: --net {name})"
            )
        return _built_in(name, config, source)
    if isinstance(builder, str):
        return build(builder, config)
    net = builder(**config)
    net.recipe = name, dict(config)  # type: ignore[assignment]  # so that it can be saved again
    net.made_by = builder  # type: ignore[assignment]
    return net


def _built_in(name: str, config: NetConfig, source: str) -> nn.Module:
    """Build one of halfstep's networks; any error of its constructor is one of the file."""
    try:
        with as_checkpoint_error(source):
            return build(name, config)
    except HalfstepError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CheckpointError(
            f"{source} says net.config of '{name}', and no such network can be built ({reason}): copy the "
            "file back from where it is whole"
        ) from error


def _check(validator: Callable[[Any, Any], Any], value: object, schema: Any, source: str) -> None:
    try:
        validator(value, schema)
    except SchemaError as error:
        raise CheckpointError(f"{source} is damaged: {error}") from None


def schedule_from(about: JsonObject) -> Schedule:
    """Build the schedule that `{"name": ..., **fields}` describes."""
    _check(validated_partly, about, _Schedule, "the schedule")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in about.items() if k != "name"}
    if about["name"] not in SCHEDULES:
        raise unknown("schedule", about["name"], SCHEDULES)
    kind: Any = SCHEDULES[about["name"]]
    defaults = {field.name: field.default for field in dataclass_fields(kind)}
    hints = typing.get_type_hints(kind)
    for name, value in fields.items():
        if name not in defaults:
            raise unknown(f"option of the schedule '{about['name']}' called", name, defaults)
        default = defaults[name]
        if not is_valid(value, hints[name]):
            raise ConfigError(
                f"{name} = {value!r} cannot be an option of the schedule '{about['name']}': write for "
                f"example {default!r}"
            )
    schedule: Schedule = kind(**fields)
    return schedule


def _name_of(value: object, registry: Mapping[str, Any]) -> str:
    for name, entry in registry.items():
        if entry == value:
            return name
    raise ConfigError(f"{value!r} is not one that can be saved: use one of {', '.join(registry)}")
