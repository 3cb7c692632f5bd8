"""TOML files: options that come from one, and options that are kept in one."""

import json
import shlex
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, MISSING
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import tyro

from halfstep import files
from halfstep.errors import ConfigError, unknown
from halfstep.kinds import fits, word
from halfstep.schema import from_toml, literal
from halfstep.training.run_config import toml, write_config


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


PLACES: dict[str, tuple[str, ...]] = {
    "features": ("classifier", "inception"),
    "gate_features": ("classifier", "inception"),
    "sampler": ("diffusers",),
    "full_sampler": ("diffusers",),
    "baselines": ("diffusers",),
}
"""What may stand before a colon in a file, by option; anything else would be package.module:function."""
NO_CODE = ("data", "held_out", "images", "validate", "init", "device", "prompt")
"""Options of text that is never taken for the name of a function."""


def from_file(kind: Any, path: Path, typed: Sequence[str] = ()) -> list[str]:
    """A TOML file as arguments; unknown keys and wrong types are errors that say what to write.

    A file never names code that is run: what would be imported is refused, unless the same option is
    among those that were `typed`, which win.
    """
    known, args = {name: hint for name, hint, _ in options_of(kind)}, list[str]()
    over = {word[2:].partition("=")[0].replace("-", "_") for word in typed if word[:2] == "--"}
    for key, value in _read(path).items():
        name = key.replace("-", "_")
        if name not in known:
            raise unknown(f"option in '{path.name}' called", key, known)
        if not fits(value, known[name]):
            raise ConfigError(
                f"'{path.name}' says {key} = {toml(value)}, and {key} is {word(known[name])}"
            )
        if name in over:
            continue
        _refuse_code(path, name, known[name], value)
        words = _as_arguments(name.replace("_", "-"), value)
        _refuse_options(path, name, words[1:])
        args += words
    return args


def _refuse_options(path: Path, name: str, words: list[str]) -> None:
    """Words that would be read as options of their own, and not as parts of this one."""
    if odd := [each for each in words if each.startswith("-") and not _is_number(each)]:
        raise ConfigError(
            f"'{path.name}' says {name} = ... {toml(odd[0])}, and what begins with '-' is an option: write "
            "that as an option of its own"
        )


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        float(text)
        return True
    return False


def _refuse_code(path: Path, name: str, hint: Any, value: Any) -> None:
    if name in NO_CODE or "Path" in str(hint):
        return
    for text in _texts(value):
        before, colon, after = text.partition(":")
        if colon and after and before not in PLACES.get(name, ()):
            raise ConfigError(
                f"'{path.name}' says {name} = {toml(text)}, and a file never names code that is run: if you "
                f"trust it, type --{name.replace('_', '-')} {shlex.quote(text)} on the command line"
            )


def _texts(value: Any) -> Iterator[str]:
    """All of them, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for pair in value.items() for each in pair for text in _texts(each))
    elif isinstance(value, list):
        yield from (text for each in value for text in _texts(each))


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"the file '{path}' cannot be read ({reason}): give another") from None
    return from_toml(text, dict[str, Any], f"'{path}'", error=ConfigError)


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
    return {name: literal(text) for name, text in pairs.items()}


def flat(options: Any) -> dict[str, Any]:
    """All fields of nested dataclasses in one dict."""
    found: dict[str, Any] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        found.update(flat(value) if is_dataclass(value) else {field.name: value})
    return found


def save_config(folder: Path, options: Any) -> None:
    """FOLDER/config.toml of these options of a command."""
    write_config(folder, flat(options))
