"""Of what kind an option is, and what is not of it."""

import types
import typing
from collections.abc import Mapping
from dataclasses import fields, MISSING
from pathlib import Path
from typing import Any, Literal

from halfstep.errors import ConfigError, unknown

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "text",
}


def hold_to_kinds(options: Any) -> None:
    """Hold a dataclass's fields to their types; `ConfigError` for the first value of another kind.

    A whole number is a number, too, and a dict may hold anything.  A list becomes a tuple, and what numpy
    or torch have for a number or a list becomes Python's own, so that it can be written down.
    """
    hints = _hints(type(options))
    for field in fields(options):
        if field.name not in hints:
            continue
        hint, value = hints[field.name], _plain(getattr(options, field.name), hints[field.name])
        if not fits(value, hint):
            raise _refusal(field.name, value, hint, field.default)
        object.__setattr__(options, field.name, value)


def _hints(kind: type) -> dict[str, Any]:
    """By field; none at all where a user's dataclass names a type that cannot be found."""
    try:
        return typing.get_type_hints(kind)
    except NameError:
        return {}


def _plain(value: Any, hint: Any) -> Any:
    """A value that does not fit as it would be without numpy, torch or lists."""
    if not fits(value, hint) and hasattr(value, "tolist"):
        value = value.tolist()
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        inner = typing.get_args(hint)
        each = inner[:1] * len(value) if inner[1:] == (...,) else inner
        if len(each) == len(value):
            return tuple(map(_plain, value, each))
    return value


def _refusal(name: str, value: Any, hint: Any, default: Any) -> ConfigError:
    if typing.get_origin(hint) is Literal:
        return unknown(name, value, map(str, typing.get_args(hint)))
    instead = f": write for example {default!r}" if default is not MISSING and default else ""
    return ConfigError(f"{name} is {word(hint)}, got {value!r}{instead}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of this type; of a type that cannot be looked at, anything is."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, kind) for kind in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin is dict:
        return isinstance(value, Mapping)
    if origin is tuple:
        return isinstance(value, list | tuple) and _all_fit(value, inner)
    if (isinstance(value, bool) and hint in (int, float)) or hint is bool:
        return isinstance(value, bool) and hint is bool
    try:
        return isinstance(value, {float: int | float, Path: str | Path}.get(hint, hint))
    except TypeError:  # a type variable, a protocol, a list of something
        return True


def _all_fit(values: typing.Sequence[Any], kinds: tuple[Any, ...]) -> bool:
    if kinds[1:] == (...,):
        kinds = kinds[:1] * len(values)
    return len(values) == len(kinds) and all(map(fits, values, kinds))


def word(hint: Any) -> str:
    """What a value of this type is, in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(word(kind) for kind in inner if kind is not type(None))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is dict:
        return "a table of names and values"
    if origin is tuple and inner[1:] == (...,):
        each = word(inner[0])
        return f"a list of which each is {each}" if " each" in each else f"a list, {each} each"
    if origin is tuple:
        return f"a list of {len(inner)}, {word(inner[0])} each"
    return _WORDS.get(hint) or f"a {getattr(hint, '__name__', hint)}"
