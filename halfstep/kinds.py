"""Of what kind an option is, and what is not of it."""

import types
import typing
from collections.abc import Callable, Mapping
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


def refuse_kinds(options: Any) -> None:
    """`ConfigError` for the first field of this dataclass whose value is not of the field's type.

    A whole number is a number, too, a list is as good as a tuple, and a dict may hold anything.
    """
    hints = typing.get_type_hints(type(options))
    for field in fields(options):
        hint, value = hints[field.name], getattr(options, field.name)
        if fits(value, hint):
            continue
        if typing.get_origin(hint) is Literal:
            raise unknown(field.name, value, map(str, typing.get_args(hint)))
        instead = "" if field.default is MISSING else f": write for example {field.default!r}"
        raise ConfigError(f"{field.name} is {word(hint)}, got {value!r}{instead}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of this type; a whole number is a number, too."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, kind) for kind in inner)
    if origin is Literal:
        return value in inner
    if origin is dict:
        return isinstance(value, Mapping)
    if origin is Callable:
        return callable(value)
    if origin is tuple:
        return isinstance(value, list | tuple) and _all_fit(value, inner)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, {float: int | float, Path: str | Path}.get(hint, hint))


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
