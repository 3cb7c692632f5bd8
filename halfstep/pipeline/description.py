"""What a pipeline is, as json: how it is told, and how it is built again with fresh weights."""

import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields as dataclass_fields
from pathlib import Path
from typing import Any, Literal, NotRequired, Protocol, TypedDict

from torch import nn

from halfstep import storage
from halfstep.config import JsonObject, NetConfig
from halfstep.config.validate import is_valid
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import PARAMETERISATIONS
from halfstep.diffusion.schedules import Schedule, SCHEDULES
from halfstep.diffusion.time_grids import Direction, Times
from halfstep.errors import CheckpointError, ConfigError, HalfstepError, unknown
from halfstep.models import build, recipe
from halfstep.models.codec import Codec
from halfstep.models.compression.int8 import quantise_like
from halfstep.schema import SchemaError, validated, validated_partly

FORMAT = 1


class _Net(TypedDict):
    build: str
    config: JsonObject


class _Schedule(TypedDict):
    """And the schedule's own fields."""

    name: str


class _Time(TypedDict):
    of: Literal["t", "logsnr"]
    scale: float
    offset: float


class _Codec(TypedDict):
    scale: float
    factor: int
    file: NotRequired[str]


class _Denoiser(TypedDict):
    """What `denoiser_from` reads."""

    format: int
    net: _Net
    schedule: JsonObject
    parameterisation: str
    time: _Time
    quantised: NotRequired[dict[str, str] | None]


class Description(_Denoiser):
    """What pipeline.json says."""

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


USUAL: JsonObject = {
    "sampler": "ddim",
    "steps": 64,
    "codec": None,
    "guidance_range": None,
    "direction": "denoise",
    "quantised": None,
}
"""What is not said of a pipeline where it is so."""


class Describable(Protocol):
    """The fields of a pipeline that its description holds."""

    @property
    def denoiser(self) -> Denoiser: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def times(self) -> tuple[Times, ...]: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def null(self) -> int | None: ...
    @property
    def clip(self) -> float | None: ...
    @property
    def sampler(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def codec(self) -> Codec | None: ...
    @property
    def guidance_range(self) -> tuple[float, float] | None: ...
    @property
    def direction(self) -> Direction: ...


def describe(pipeline: Describable) -> JsonObject:
    """Network, schedule, parameterisation and time of its denoiser, and how it is sampled."""
    denoiser, codec = pipeline.denoiser, pipeline.codec
    name, config = recipe(denoiser.net)
    schedule: Any = denoiser.schedule
    rest = {
        "sampler": pipeline.sampler,
        "steps": pipeline.steps,
        "codec": None if codec is None else {"scale": codec.scale, "factor": codec.factor},
        "guidance_range": None
        if pipeline.guidance_range is None
        else list(pipeline.guidance_range),
        "direction": pipeline.direction,
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
        "class_names": list(pipeline.class_names),
        "null": pipeline.null,
        "clip": pipeline.clip,
        **{name: value for name, value in rest.items() if value != USUAL[name]},
    }


def read_description(folder: Path) -> JsonObject:
    """What FOLDER/pipeline.json says, without a look at the weights; `sha256` is theirs."""
    return storage.read_about(folder / "pipeline", Description, format=FORMAT)


def codec_file(folder: Path) -> dict[str, str]:
    """{"file": sha256 of FOLDER/codec.json}, which holds that of the codec's weights."""
    path = folder / "codec.json"
    return {"file": storage.checksum(path)} if path.exists() else {}


def fields_from(
    about: Mapping[str, Any], *, net: Callable[..., nn.Module] | str | None, source: str
) -> JsonObject:
    """The fields of the pipeline that `describe` told of, with fresh weights and no codec."""
    _hold(about, source, validated, Description)
    rest = USUAL | {name: about[name] for name in USUAL if name in about}
    return {
        "denoiser": denoiser_from(about, net=net, source=source),
        "shape": tuple(about["shape"]),
        "times": tuple(tuple(times) for times in about["times"]),
        "class_names": tuple(about["class_names"]),
        "null": about["null"],
        "clip": about["clip"],
        "sampler": rest["sampler"],
        "steps": rest["steps"],
        "guidance_range": None if rest["guidance_range"] is None else tuple(rest["guidance_range"]),
        "direction": rest["direction"],
    }


def denoiser_from(
    about: Mapping[str, Any],
    *,
    net: Callable[..., nn.Module] | str | None = None,
    source: str = "this description",
) -> Denoiser:
    """The denoiser that `describe` told of, with fresh weights."""
    _hold(about, source, validated_partly, _Denoiser)
    if about["format"] != FORMAT:
        raise CheckpointError(
            f"{source} has format {about['format']} and this halfstep reads {FORMAT}: use the "
            "version that wrote it"
        )
    if about["parameterisation"] not in PARAMETERISATIONS:
        with as_checkpoint_error(source):
            raise unknown("parameterisation", about["parameterisation"], PARAMETERISATIONS)
    made = _net(about["net"]["build"], about["net"]["config"], net, source)
    if about.get("quantised") is not None:
        made = quantise_like(made, about["quantised"])
    with as_checkpoint_error(source):
        return Denoiser(
            made,
            schedule_from(about["schedule"]),
            PARAMETERISATIONS[about["parameterisation"]],
            time=NetTime(**about["time"]),
        )


@contextmanager
def as_checkpoint_error(source: str) -> Iterator[None]:
    """What a constructor refuses is the fault of the file that says it."""
    try:
        yield
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from None


def _net(
    name: str,
    config: NetConfig,
    own: Callable[..., nn.Module] | str | None,
    source: str,
) -> nn.Module:
    """A file never names code that is run: a network of the user's own is built by the user's word."""
    if own is None:
        if ":" in name:
            raise CheckpointError(
                f"this pipeline's network is built by '{name}', which is not halfstep's: say so with "
                f"net='{name}' (command line: --net {name})"
            )
        return _built(name, config, source)
    if isinstance(own, str):
        return build(own, config)
    built = own(**config)
    built.recipe = name, dict(config)  # type: ignore[assignment]  # so that it can be saved again
    built.made_by = own  # type: ignore[assignment]
    return built


def _built(name: str, config: NetConfig, source: str) -> nn.Module:
    """One of halfstep's own networks: what a constructor raises is the fault of its file."""
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


def _hold(
    about: Mapping[str, Any], source: str, hold: Callable[[Mapping[str, Any], Any], Any], kind: Any
) -> None:
    try:
        hold(about, kind)
    except SchemaError as wrong:
        raise CheckpointError(f"{source} is damaged: {wrong}") from None


def schedule_from(about: Mapping[str, Any]) -> Schedule:
    """The schedule that `{"name": ..., **fields}` describes."""
    _hold(about, "the schedule", validated_partly, _Schedule)
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


def _name_of(value: object, names: Mapping[str, object]) -> str:
    for name, one in names.items():
        if one == value:
            return name
    raise ConfigError(f"{value!r} is not one that can be saved: use one of {', '.join(names)}")
