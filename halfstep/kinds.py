"""Of what kind an option is, how large it may be, and what is not of it."""

import operator
import reprlib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, MISSING
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

from halfstep.errors import ConfigError, unknown

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "text",
}


@dataclass(frozen=True)
class Bound:
    """An end of what a number may be, in its annotation: `Annotated[float, at_least(0), below(1)]`."""

    words: str
    holds: Callable[[Any, Any], bool]
    end: float


def at_least(end: float) -> Bound:
    return Bound("at least", operator.ge, end)


def above(end: float) -> Bound:
    return Bound("above", operator.gt, end)


def at_most(end: float) -> Bound:
    return Bound("at most", operator.le, end)


def below(end: float) -> Bound:
    return Bound("below", operator.lt, end)


Count = Annotated[int, at_least(1)]
CountOrNone = Annotated[int, at_least(0)]
"""0 says none, or leaves the choice to others."""
Updates = Annotated[int, at_least(0), at_most(10**9)]
"""At a tenth of a millisecond each, faster than any network is trained, the most take a day."""
Seed = Annotated[int, at_least(0), below(2**32)]
NotNegative = Annotated[float, at_least(0)]
Positive = Annotated[float, above(0)]
Share = Annotated[float, at_least(0), at_most(1)]
Smoothing = Annotated[float, at_least(0), below(1)]


def hold_to_kinds(options: Any) -> None:
    """Hold a dataclass's fields to their types and bounds; `ConfigError` for the first that is not.

    A whole number is a number, too, no number is nan or infinite, and a dict may hold anything.  A list
    becomes a tuple, and what numpy or torch have for a number or a list becomes Python's own, so that it
    can be written down.
    """
    hints = _hints(type(options))
    for field in fields(options):
        if field.name not in hints:
            continue
        value = getattr(options, field.name)
        value = held(field.name, value, hints[field.name], field.default)
        object.__setattr__(options, field.name, value)


def held(name: str, value: Any, hint: Any, default: Any = MISSING) -> Any:
    """A value by itself, held to its type and bounds as a field is: an argument of a function."""
    value = _plain(value, hint)
    if not fits(value, hint):
        raise _refusal(name, value, hint, default)
    if bounds := broken(value, hint):
        raise _out_of_range(name, value, bounds, default)
    return value


def _hints(kind: type) -> dict[str, Any]:
    """By field; none at all where a user's dataclass names a type that cannot be found."""
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except NameError:
        return {}


def _bare(hint: Any) -> Any:
    """A type without what is annotated to it."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _plain(value: Any, hint: Any) -> Any:
    """A value that does not fit as it would be without numpy, torch or lists."""
    hint = _bare(hint)
    if not fits(value, hint) and hasattr(value, "tolist"):
        value = value.tolist()
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        each = _each(value, typing.get_args(hint))
        if len(each) == len(value):
            return tuple(map(_plain, value, each))
    return value


def _each(values: typing.Sequence[Any], kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    """The types of a tuple's values."""
    return kinds[:1] * len(values) if kinds[1:] == (...,) else kinds


def broken(value: Any, hint: Any) -> tuple[Bound, ...]:
    """The bounds that a number in a value that fits does not keep; none where all are kept."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        bounds = tuple(one for one in hint.__metadata__ if isinstance(one, Bound))
        number = isinstance(value, int | float)
        out = number and not all(one.holds(value, one.end) for one in bounds)
        return bounds if out else broken(value, inner[0])
    if origin in (typing.Union, types.UnionType):
        pairs = [(value, kind) for kind in inner if fits(value, kind)]
    elif origin is tuple:
        pairs = list(zip(value, _each(value, inner), strict=True))
    else:
        pairs = []
    return next(filter(None, (broken(one, kind) for one, kind in pairs)), ())


def _refusal(name: str, value: Any, hint: Any, default: Any) -> ConfigError:
    hint = _bare(hint)
    if typing.get_origin(hint) is Literal:
        said = value if isinstance(value, str) else shown(value)
        return unknown(name, said, map(str, typing.get_args(hint)))
    instead = f": write for example {default!r}" if default is not MISSING and default else ""
    endless = not all(map(_is_finite, numbers(value)))
    finite = ", finite and of at most 64 bits" if endless else ""
    return ConfigError(f"{name} is {word(hint)}{finite}, got {shown(value)}{instead}")


def _out_of_range(name: str, value: Any, bounds: tuple[Bound, ...], default: Any) -> ConfigError:
    ends = " and ".join(f"{one.words} {one.end:,}" for one in bounds)
    each = "each of " if isinstance(value, tuple) else ""
    least = [one.end for one in bounds if one.words == "at least"]
    instead = next(iter(least), None) if default in (MISSING, None, ()) else default
    hint = "" if instead is None else f": write for example {instead}"
    return ConfigError(f"{each}{name} must be {ends}, got {shown(value)}{hint}")


class _Shown(reprlib.Repr):
    """As `repr`, but short: also numbers of more digits than Python writes."""

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if _is_finite(x) else f"{'-' * (x < 0)}2^{abs(x).bit_length() - 1} or more"


_shown = _Shown()
vars(_shown).update({limit: 200 for limit in vars(_shown) if limit.startswith("max")})


def shown(value: Any) -> str:
    """A value as it is, but what is long is cut, and a number of many digits short, wherever it is."""
    return _shown.repr(value)


def numbers(value: Any) -> Iterator[int | float]:
    """All numbers in a value, in lists of lists and tables, too."""
    if isinstance(value, list | tuple | Mapping):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from numbers(one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _is_finite(value: int | float) -> bool:
    """Whether it is a number that can be counted with: 64 bits hold it."""
    return abs(value) < 2**64 if isinstance(value, int) else isfinite(value)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of this type; of a type that cannot be looked at, anything is.

    Nothing is a number that is nan, infinite or no longer held by 64 bits.
    """
    hint = _bare(hint)
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
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and _is_finite(value)
    try:
        return isinstance(value, {Path: str | Path}.get(hint, hint))
    except TypeError:  # a type variable, a protocol, a list of something
        return True


def _all_fit(values: typing.Sequence[Any], kinds: tuple[Any, ...]) -> bool:
    kinds = _each(values, kinds)
    return len(values) == len(kinds) and all(map(fits, values, kinds))


def word(hint: Any) -> str:
    """What a value of this type is, in words."""
    hint = _bare(hint)
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
