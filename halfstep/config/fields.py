"""Flatten nested option dataclasses into one list of options, and read option values from text."""

import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, Field, fields, is_dataclass, MISSING
from pathlib import Path
from typing import Any, TypeVar

from halfstep.config.validate import validate_fields

T = TypeVar("T")
OptionValues = dict[str, Any]
"""Values of options, by name."""
POSITIONAL = "positional"
"""Marks a positional argument in its annotation: `Annotated[Path, POSITIONAL]`."""


@dataclass(frozen=True)
class Option:
    """An option: a field of an option dataclass, or of one nested in it."""

    name: str
    type: Any
    required: bool
    positional: bool
    default: Any
    owner: type
    """The dataclass that declares it."""
    group: str
    """The outermost field that contains it; "" for a field of the command itself."""

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"


def all_options(kind: Any) -> Iterator[Option]:
    """All options of a dataclass and of the dataclasses in it, positional ones included."""
    yield from _options(kind, None, group="", needed=True)


def options_of(kind: Any) -> dict[str, Option]:
    """The options that have a flag, by name."""
    return {option.name: option for option in all_options(kind) if not option.positional}


def _options(kind: Any, base: Any, *, group: str, needed: bool) -> Iterator[Option]:
    for field, inner, marks in _typed_fields(kind):
        default = _default(field) if base is None else getattr(base, field.name)
        if is_dataclass(inner):
            nested = None if default is MISSING else default
            within = needed and nested is None
            yield from _options(inner, nested, group=group or field.name, needed=within)
        else:
            owner, required = typing.get_origin(kind) or kind, needed and default is MISSING
            positional = POSITIONAL in marks
            yield Option(field.name, inner, required, positional, default, owner, group)


def _typed_fields(kind: Any) -> Iterator[tuple[Field[Any], Any, tuple[Any, ...]]]:
    """Yield (field, its type, its annotations); type variables are resolved by the alias."""
    origin = typing.get_origin(kind) or kind
    bound = dict(zip(getattr(origin, "__parameters__", ()), typing.get_args(kind), strict=False))
    hints = typing.get_type_hints(origin)
    annotated = typing.get_type_hints(origin, include_extras=True)
    for field in fields(origin):
        marks = getattr(annotated[field.name], "__metadata__", ())
        yield field, bound.get(hints[field.name], hints[field.name]), marks


def build(kind: Any, values: OptionValues) -> Any:
    """Build a dataclass, and those in it, from values of options; other options keep their defaults.

    `ConfigError` for the first value of the wrong type or out of range.
    """
    options = _built(kind, values, None)
    _validate_all(options)
    return options


def _built(kind: Any, values: OptionValues, base: Any) -> Any:
    arguments = OptionValues()
    for field, inner, _ in _typed_fields(kind):
        default = _default(field) if base is None else getattr(base, field.name)
        if is_dataclass(inner):
            arguments[field.name] = _built(inner, values, None if default is MISSING else default)
        elif field.name in values or default is not MISSING:
            arguments[field.name] = values.get(field.name, default)
    return (typing.get_origin(kind) or kind)(**arguments)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _validate_all(options: Any) -> None:
    validate_fields(options)
    for field in fields(options):
        if is_dataclass(inner := getattr(options, field.name)):
            _validate_all(inner)


def flat(options: Any) -> OptionValues:
    """All fields of nested dataclasses in one dict."""
    values = OptionValues()
    for field in fields(options):
        value = getattr(options, field.name)
        values.update(flat(value) if is_dataclass(value) else {field.name: value})
    return values


def arity(hint: Any) -> int | None:
    """The number of words that an option of this type takes; None for any number."""
    hint, inner = _of_union(hint), typing.get_args(_of_union(hint))
    if typing.get_origin(hint) is dict or inner[1:] == (...,):
        return None
    if typing.get_origin(hint) is tuple:
        return len(inner)
    return 0 if hint is bool else 1


def read_words(hint: Any, words: Sequence[str]) -> Any:
    """Read words as a value of this type; `ValueError` if they are none."""
    hint = _of_union(hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        return dict(zip(words[::2], words[1::2], strict=True))
    if origin is tuple:
        kinds = inner[:1] * len(words) if inner[1:] == (...,) else inner
        return tuple(_read(word, kind) for word, kind in zip(words, kinds, strict=True))
    (word,) = words
    return _read(word, hint)


def _read(word: str, kind: Any) -> Any:
    return kind(word) if kind in (int, float, Path) else word


def _of_union(hint: Any) -> Any:
    """The type X of X | None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (each for each in typing.get_args(hint) if each is not types.NoneType)
    return hint
