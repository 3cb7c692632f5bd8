"""Read options from TOML files, and write values as TOML."""

import json
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from halfstep.config import JsonObject
from halfstep.config.fields import options_of, OptionValues, read_words
from halfstep.config.validate import describe, is_valid
from halfstep.errors import ConfigError, unknown
from halfstep.schema import from_toml

PLACES: dict[str, tuple[str, ...]] = {
    "features": ("classifier", "inception"),
    "sampler": ("diffusers",),
    "full_sampler": ("diffusers",),
    "baselines": ("diffusers",),
}
"""The words allowed before a colon, by option; any other value with a colon is package.module:function."""
NO_CODE = (
    "data", "held_out", "images", "validate", "init", "teacher", "teacher_config", "device", "prompt"
)  # fmt: skip
"""Options of text that never names a function."""


def from_file(kind: Any, path: Path, typed: Collection[str] = ()) -> OptionValues:
    """Read the options in a TOML file; errors for unknown keys and wrong types say what to write.

    A file may not name code to run: a value that would be imported is refused, unless the option is among
    those `typed` on the command line, which override the file.
    """
    return from_table(kind, read_toml(path), path, typed)


def from_table(
    kind: Any, table: Mapping[str, Any], path: Path, typed: Collection[str] = ()
) -> OptionValues:
    """`from_file` of a file that is read already; `path` names it in an error."""
    known, values = options_of(kind), OptionValues()
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            raise unknown(f"option in '{path.name}' called", key, known)
        if not is_valid(value, hint := known[name].type):
            raise ConfigError(
                f"'{path.name}' says {key} = {toml(value)}, and {key} is {describe(hint)}"
            )
        if name not in typed:
            _refuse_code(path, name, hint, value)
            values[name] = value if isinstance(value, bool) else read_words(hint, _words(value))
    return values


def _words(value: Any) -> list[str]:
    """The value as words of a command line."""
    if isinstance(value, Mapping):
        pairs = [(k, v if isinstance(v, str) else json.dumps(v)) for k, v in value.items()]
        return [word for pair in pairs for word in pair]
    return list(map(str, value)) if isinstance(value, list) else [str(value)]


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
    """All texts in a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for pair in value.items() for each in pair for text in _texts(each))
    elif isinstance(value, list):
        yield from (text for each in value for text in _texts(each))


def read_toml(path: Path) -> JsonObject:
    """The contents of a TOML file."""
    try:
        text = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"the file '{path}' cannot be read ({reason}): give another") from None
    return from_toml(text, JsonObject, f"'{path}'", error=ConfigError)


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False)
