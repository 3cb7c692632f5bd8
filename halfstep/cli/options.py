"""Options: frozen dataclasses are the command line, the TOML file and the saved configuration.

The command line wins over the file, the file over the defaults.
"""

import json
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import tyro

from halfstep.errors import ConfigError, unknown

T = TypeVar("T")
Flat = tyro.conf.arg(name="")
"""A nested dataclass whose fields appear without a prefix."""


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where a run lives and how it is carried out."""

    out: Path
    """The run's folder; the same command again goes on where it stopped."""
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU), or one by name: cpu, cuda:1."""
    extend: bool = False
    """Let the run in this folder have more updates, or halve further."""
    from_previous: bool = False
    """Go on from the checkpoint before a damaged one."""
    dry_run: bool = False
    """Print stages, updates, memory and time, and stop."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The data."""

    data: str
    """digits, two-moons, fashion-mnist:FOLDER, cifar10:FOLDER, a folder of images, or a .npy or .npz file."""
    size: int | None = None
    """Side of the images in pixels."""
    channels: int | None = None
    """1 for gray, 3 for colour."""
    flip: bool = False
    """Mirror half of the images, at random."""


def parse(kind: type[T], argv: Sequence[str], *, prog: str) -> T:
    """The options of `kind` from the command line, on top of `--preset NAME` and `--config FILE`."""
    args, asked = list(argv), list[str]()
    for flag in ("--preset", "--config"):
        while flag in args:
            at = args.index(flag)
            if at + 1 >= len(args):
                raise ConfigError(
                    f"{flag} needs a {'name' if flag == '--preset' else 'file'} after it"
                )
            asked += from_file(kind, _source(flag, args[at + 1]))
            del args[at : at + 2]
    return tyro.cli(
        kind,
        args=[*asked, *args],
        prog=prog,
        description=f"{_doc(kind)}\n\n--preset NAME and --config FILE give options from a TOML file: "
        f"presets are {', '.join(preset_names())}.",
    )


def from_file(kind: type[Any], path: Path) -> list[str]:
    """A TOML file as arguments; unknown keys are errors that name the nearest."""
    try:
        content = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"there is no file '{path}'") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' is not TOML: {error}") from None
    known, args = names_of(kind), list[str]()
    for name, value in content.items():
        if name.replace("-", "_") not in known:
            raise unknown(f"option in '{path.name}' called", name, known)
        args += _as_arguments(name.replace("_", "-"), value)
    return args


def _as_arguments(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, Mapping):
        pairs = [(k, v if isinstance(v, str) else json.dumps(v)) for k, v in value.items()]
        return [f"--{name}", *(word for pair in pairs for word in pair)]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]


def names_of(kind: Any) -> list[str]:
    """The names of all fields, nested ones without prefix."""
    found = []
    origin = typing.get_origin(kind) or kind
    bound = dict(zip(getattr(origin, "__parameters__", ()), typing.get_args(kind), strict=False))
    hints = typing.get_type_hints(origin)
    for field in fields(origin):
        inner = bound.get(hints[field.name], hints[field.name])
        found += names_of(inner) if is_dataclass(inner) else [field.name]
    return found


def _doc(kind: Any) -> str:
    return (getattr(typing.get_origin(kind) or kind, "__doc__", None) or "").strip()


def preset_names() -> list[str]:
    folder = files("halfstep") / "presets"
    return sorted(
        p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")
    )


def _source(flag: str, name: str) -> Path:
    if flag == "--config":
        return Path(name)
    if name not in preset_names():
        raise unknown("preset", name, preset_names())
    return Path(str(files("halfstep") / "presets" / f"{name}.toml"))


def literals(pairs: Mapping[str, str]) -> dict[str, Any]:
    """`embed_dim 64 conv true name x` as {"embed_dim": 64, "conv": True, "name": "x"}."""
    found = {}
    for name, text in pairs.items():
        try:
            found[name] = json.loads(text)
        except json.JSONDecodeError:
            found[name] = text
    return found


def save_config(folder: Path, options: Any) -> None:
    """FOLDER/config.toml: `halfstep ... --config` with it asks for the same run again."""
    lines = [
        f"{name} = {_toml(value)}" for name, value in flat(options).items() if value is not None
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text("\n".join(lines) + "\n")


def flat(options: Any) -> dict[str, Any]:
    """All fields of nested dataclasses in one dict."""
    found: dict[str, Any] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        found.update(flat(value) if is_dataclass(value) else {field.name: value})
    return found


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(str(value) if isinstance(value, Path) else value)
