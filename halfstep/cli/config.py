"""TOML files: options that come from one, and options that are kept in one."""

import json
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, MISSING
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import tyro

from halfstep import files
from halfstep.errors import ConfigError, unknown
from halfstep.kinds import fits, word


def options_of(kind: Any, *, needed: bool = True) -> Iterator[tuple[str, Any, bool]]:
    """(name, type, whether it must be given) of every option, nested ones without prefix."""
    origin = typing.get_origin(kind) or kind
    bound = dict(zip(getattr(origin, "__parameters__", ()), typing.get_args(kind), strict=False))
    hints = typing.get_type_hints(origin)
    marks = typing.get_type_hints(origin, include_extras=True)
    for field in fields(origin):
        if tyro.conf.Positional in getattr(marks[field.name], "__metadata__", ()):
            continue
        inner = bound.get(hints[field.name], hints[field.name])
        bare = needed and field.default is MISSING and field.default_factory is MISSING
        if is_dataclass(inner):
            yield from options_of(inner, needed=bare)
        else:
            yield field.name, inner, bare


def from_file(kind: Any, path: Path) -> list[str]:
    """A TOML file as arguments; unknown keys and wrong types are errors that say what to write."""
    known, args = {name: hint for name, hint, _ in options_of(kind)}, list[str]()
    for key, value in _read(path).items():
        name = key.replace("-", "_")
        if name not in known:
            raise unknown(f"option in '{path.name}' called", key, known)
        if not fits(value, known[name]):
            raise ConfigError(
                f"'{path.name}' says {key} = {_toml(value)}, and {key} is {word(known[name])}"
            )
        args += _as_arguments(name.replace("_", "-"), value)
    return args


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(files.read_text(path))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"the file '{path}' cannot be read ({reason}): give another") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' is not TOML: {error}") from None


def _as_arguments(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, Mapping):
        pairs = [(k, v if isinstance(v, str) else json.dumps(v)) for k, v in value.items()]
        return [f"--{name}", *(word for pair in pairs for word in pair)]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]


def preset_names(prog: str = "") -> list[str]:
    """All presets, or those of this command: a preset says `# command   halfstep ...` at its head."""
    folder = Path(str(resources("halfstep") / "presets"))
    return sorted(
        p.relative_to(folder).with_suffix("").as_posix()
        for p in folder.rglob("*.toml")
        if not prog or f"# command   {prog} " in files.read_text(p)
    )


def preset(name: str) -> Path:
    """The file of a preset; `ConfigError` lists those there are."""
    if name not in (names := preset_names()):
        raise unknown("preset", name, names)
    return Path(str(resources("halfstep") / "presets" / f"{name}.toml"))


def literals(pairs: Mapping[str, str]) -> dict[str, Any]:
    """`embed_dim 64 conv true name x` as {"embed_dim": 64, "conv": True, "name": "x"}."""
    found = {}
    for name, text in pairs.items():
        try:
            found[name] = json.loads(text)
        except (
            ValueError,
            RecursionError,
        ):  # not JSON, or of more digits or depth than Python reads
            found[name] = text
    return found


def save_config(folder: Path, options: Any) -> None:
    """FOLDER/config.toml: the same command with `--config` and it asks for the same run again.

    The folder is there: a run whose folder went away does not get another.
    """
    lines = [
        f"{name} = {_toml(value)}" for name, value in flat(options).items() if value is not None
    ]
    files.write_text(folder / "config.toml", "\n".join(lines) + "\n")


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
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False)
