"""TOML files: options that come from one, and options that are kept in one."""

import hashlib
import json
import shlex
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, MISSING
from importlib.resources import files as resources
from pathlib import Path
from typing import Any, TypedDict

import tyro

from halfstep import files, storage
from halfstep.errors import CheckpointError, ConfigError, unknown
from halfstep.kinds import fits, word
from halfstep.schema import from_toml, known, literal, Wrong


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
                f"'{path.name}' says {key} = {_toml(value)}, and {key} is {word(known[name])}"
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
            f"'{path.name}' says {name} = ... {_toml(odd[0])}, and what begins with '-' is an option: write "
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
                f"'{path.name}' says {name} = {_toml(text)}, and a file never names code that is run: if you "
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


class _Kept(TypedDict, total=False):
    """What is read again of a run's own config.toml."""

    data: str
    size: int
    channels: int
    teacher: str
    model: str
    weights: str
    codec: str
    text: str


def kept_config(folder: Path) -> dict[str, Any]:
    """What FOLDER/config.toml says, which `save_config` wrote; {} where there is none."""
    path = folder / "config.toml"
    if not path.exists():
        return {}
    with storage.reading(path):
        text = path.read_bytes()
    content = from_toml(text, dict[str, Any], f"'{path}'")
    try:
        body, mark, digest = text.rpartition(MARK.encode())
        if not mark or digest.strip() != _digest(body):
            raise Wrong(
                "it is not as the run wrote it; run the same command again, which writes it"
            )
        return known(content, _Kept)
    except Wrong as wrong:
        raise CheckpointError(f"'{path}' is damaged: {wrong}") from None


MARK = "# checksum "
"""Of the lines above, on the last line of a config.toml."""


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def save_config(folder: Path, options: Any) -> None:
    """FOLDER/config.toml: the same command with `--config` and it asks for the same run again.

    The folder is there: a run whose folder went away does not get another.
    """
    lines = [
        f"{name} = {_toml(value)}" for name, value in flat(options).items() if value is not None
    ]
    text = "\n".join(lines) + "\n"
    digest = _digest(files.encoded(text, f"cannot write '{folder / 'config.toml'}'")).decode()
    files.write_text(folder / "config.toml", f"{text}{MARK}{digest}\n")


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
