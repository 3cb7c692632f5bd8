"""Validate the values of options with pydantic; `ConfigError` says what to write instead."""

import reprlib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, MISSING
from functools import lru_cache
from math import isfinite
from os import fspath, PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    BeforeValidator,
    InstanceOf,
    Strict,
    TypeAdapter,
    ValidationError,
    WrapValidator,
)

from halfstep.errors import ConfigError, unknown

Hints = dict[str, Any]
"""Types by the name of their field or key."""
Count = Annotated[int, Ge(1)]
CountOrNone = Annotated[int, Ge(0)]
"""0 means none, or an automatic choice."""
Updates = Annotated[int, Ge(0), Le(10**9)]
"""The most take a day at 0.1 ms an update, which is faster than any network trains."""
Seed = Annotated[int, Ge(0), Lt(2**32)]
NotNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
Place = Annotated[str, BeforeValidator(lambda v: fspath(v) if isinstance(v, PathLike) else v)]
"""A folder, a file or a name; a `Path` is read as its text."""
Smoothing = Annotated[float, Ge(0), Lt(1)]

_BOUNDS = {Ge: ("ge", "at least"), Gt: ("gt", "above"), Le: ("le", "at most"), Lt: ("lt", "below")}
_RANGE_ERRORS = {"greater_than_equal", "greater_than", "less_than_equal", "less_than"}
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "text",
}


class Validated:
    """A base class of dataclasses: their fields are validated against their annotations.

    An int may stand for a float, and stays an int.  Every number is finite and fits 64 bits.  A list
    becomes a tuple, and a number or list of numpy or torch becomes Python's own.  A dict may hold anything.
    """

    def __post_init__(self) -> None:
        validate_fields(self)


def validate_fields(options: Any) -> None:
    """Validate every field of a dataclass; `ConfigError` names the first that is wrong."""
    hints = _hints(type(options))
    for field in fields(options):
        if hint := hints.get(field.name):
            value = validate(field.name, getattr(options, field.name), hint, field.default)
            object.__setattr__(options, field.name, value)


def validate(name: str, value: Any, hint: Any, default: Any = MISSING) -> Any:
    """The value in Python's own types; `ConfigError` if it is not of the type `hint` or out of range.

    name     of the option in the error
    default  the error's example
    """
    adapter = _adapter(hint)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        errors = {each["type"] for each in error.errors(include_url=False, include_input=False)}
    if hasattr(value, "tolist"):
        return validate(name, value.tolist(), hint, default)
    if _RANGE_ERRORS & errors and all(map(_is_finite, numbers(value))):
        raise _out_of_range(name, value, hint, default)
    raise _wrong_type(name, value, hint, default)


def is_valid(value: Any, hint: Any) -> bool:
    """Whether a value is of this type and in its range; a list counts as a tuple."""
    try:
        _adapter(hint).validate_python(value)
        return True
    except ValidationError:
        return False


def _hints(kind: type) -> Hints:
    """The types of a dataclass's fields; {} if it names a type that cannot be resolved."""
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except NameError:
        return {}


@lru_cache(maxsize=None, typed=True)
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(_strict(hint))


def _strict(hint: Any) -> Any:
    """The type for pydantic, without conversions except of numpy's and torch's numbers and of lists."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return Annotated[_strict(inner[0]), *hint.__metadata__]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(_strict, inner))]  # noqa: UP007  # a tuple of members
    if origin is tuple:
        each = tuple(each if each is ... else _strict(each) for each in inner)
        return tuple[each]  # type: ignore[valid-type]
    if origin is dict:
        return InstanceOf[Mapping[Any, Any]]
    if hint in (int, float, bool, str):
        return Annotated[hint, Strict(), WrapValidator(_unconverted)]
    if hint is Path:
        return InstanceOf[str] | InstanceOf[Path]
    if origin is Literal:
        return Annotated[hint, WrapValidator(_same_type)]
    try:
        isinstance(None, hint)
    except TypeError:  # a type variable, a protocol, a list of something
        return Any
    return InstanceOf[hint]  # type: ignore[misc]


def _unconverted(value: Any, check: Any) -> Any:
    """The value itself, where pydantic would turn an int into a float."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not all(map(_is_finite, numbers(value))):
        raise ValueError("not finite")
    check(value)
    return value


def _same_type(value: Any, check: Any) -> Any:
    """The value of a Literal, where True is not 1."""
    if type(choice := check(value)) is not type(value):
        raise ValueError("of another type")
    return choice


def _wrong_type(name: str, value: Any, hint: Any, default: Any) -> ConfigError:
    hint_type = _without_bounds(hint)
    if typing.get_origin(hint_type) is Literal:
        text = value if isinstance(value, str) else shown(value)
        return unknown(name, text, map(str, typing.get_args(hint_type)))
    example = None if default is MISSING else default
    if not example and is_valid((value,), hint):
        example = (value,)
    if not example and default is None:
        example = next((x for x in (_least(hint), 1) if x and is_valid(x, hint)), None)
    instead = f": write for example {example!r}" if example else ""
    endless = not all(map(_is_finite, numbers(value)))
    finite = ", finite and of at most 64 bits" if endless else ""
    return ConfigError(f"{name} is {describe(hint)}{finite}, got {shown(value)}{instead}")


def _out_of_range(name: str, value: Any, hint: Any, default: Any) -> ConfigError:
    ends = " and ".join(dict.fromkeys(ends_of(hint)))
    each = "each of " if isinstance(value, list | tuple) else ""
    instead = _least(hint) if default in (MISSING, None, ()) else default
    example = "" if instead is None else f": write for example {instead}"
    value = tuple(value) if isinstance(value, list) else value
    return ConfigError(f"{each}{name} must be {ends}, got {shown(value)}{example}")


def _least(hint: Any) -> float | None:
    """The least value of a type's range, if it has one."""
    return next((end for word, end in _bounds(hint) if word == "at least"), None)


def ends_of(hint: Any) -> list[str]:
    """The ends of a type's range, as "at least 1"."""
    return [f"{word} {end:,}" for word, end in _bounds(hint)]


def _bounds(hint: Any) -> Iterator[tuple[str, float]]:
    """The ends of a type's range, in words and as numbers."""
    for mark in getattr(hint, "__metadata__", ()):
        if type(mark) in _BOUNDS:
            attribute, word = _BOUNDS[type(mark)]
            yield word, getattr(mark, attribute)
    for inner in typing.get_args(hint):
        yield from _bounds(inner)


def _without_bounds(hint: Any) -> Any:
    """A type without its annotations."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def describe(hint: Any) -> str:
    """A type in words, as "a whole number"."""
    hint = _without_bounds(hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(kind) for kind in inner if kind is not types.NoneType)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is dict:
        return "a table of names and values"
    if origin is tuple and inner[1:] == (...,):
        each = describe(inner[0])
        return f"a list of which each is {each}" if " each" in each else f"a list, {each} each"
    if origin is tuple:
        return f"a list of {len(inner)}, {describe(inner[0])} each"
    return _WORDS.get(hint) or f"a {getattr(hint, '__name__', hint)}"


class _Shown(reprlib.Repr):
    """`repr`, but short, also for numbers of more digits than Python writes."""

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if _is_finite(x) else f"{'-' * (x < 0)}2^{abs(x).bit_length() - 1} or more"


_shown = _Shown()
vars(_shown).update({limit: 200 for limit in vars(_shown) if limit.startswith("max")})


def shown(value: Any) -> str:
    """A value's repr with long parts cut and numbers of many digits shortened."""
    return _shown.repr(value)


def numbers(value: Any) -> Iterator[int | float]:
    """All numbers in a value, also in nested lists and tables."""
    if isinstance(value, list | tuple | Mapping):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from numbers(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _is_finite(value: int | float) -> bool:
    """Whether 64 bits hold the number."""
    return abs(value) < 2**64 if isinstance(value, int) else isfinite(value)
