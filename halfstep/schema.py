"""What a JSON or TOML file holds, held to one schema: else one sentence that names file and key.

A schema is a type: `int`, `float`, `str`, `bool`, unions, literals, lists, tuples, `dict[str, ...]`,
TypedDicts and dataclasses of them; `Any` and `object` are whatever JSON can say.  A TypedDict has no other
keys than its own, a dataclass has exactly its fields (`build`, `plain`).
"""

import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import Field, fields, is_dataclass
from functools import cache
from math import isfinite
from typing import Any, TypeVar

from halfstep.config.validate import describe, ends_of, is_valid
from halfstep.errors import CheckpointError, HalfstepError

T = TypeVar("T")
DEEPEST = 64
"""Lists in lists: beyond it whoever copies or writes them would come to the end of Python's stack."""
LARGEST = 2**63
"""Whole numbers lie below it: torch has no larger ones."""


class SchemaError(Exception):
    """What is wrong with a text, in words; the caller says of which file."""


def from_json(
    text: str | bytes, schema: type[T], source: str, *, error: type[HalfstepError] = CheckpointError
) -> T:
    """The value of a JSON text; `error` where it is damaged or not of the schema.

    source  names the file in a refusal
    """
    try:
        value = json.loads(_decoded(text), object_pairs_hook=_pairs, parse_constant=_constant)
        found: T = validated(value, schema)
        return found
    except (SchemaError, ValueError, RecursionError) as wrong:
        raise error(f"{source} is damaged: {_reason(wrong)}") from None


def from_toml(
    text: str | bytes, schema: type[T], source: str, *, error: type[HalfstepError] = CheckpointError
) -> T:
    """The value of a TOML text, as `from_json`."""
    try:
        found: T = validated(tomllib.loads(_decoded(text)), schema)
        return found
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as wrong:
        raise error(f"{source} is not TOML: {wrong}") from None
    except (SchemaError, ValueError, RecursionError) as wrong:
        raise error(f"{source} is damaged: {_reason(wrong)}") from None


def literal(text: Any) -> Any:
    """64 as 64, true as True and [1, 2] as a list, where they were typed on a line; all else as it is."""
    if not isinstance(text, str):
        return text
    try:
        return validated(json.loads(text, parse_constant=_constant), Any)
    except (SchemaError, ValueError, RecursionError):
        return text


def literals(pairs: Mapping[str, str]) -> dict[str, Any]:
    """`embed_dim 64 conv true name x` as {"embed_dim": 64, "conv": True, "name": "x"}."""
    return {name: literal(text) for name, text in pairs.items()}


def validated(value: Any, schema: Any) -> Any:
    """The same value; `SchemaError` names the first key that is not of the schema."""
    _check_plain(value)
    _check(value, schema, "")
    return value


def build(value: Any, kind: type[T]) -> T:
    """Build a dataclass from its table (see `plain`); `SchemaError` names the first wrong key."""
    validated(value, kind)
    built: T = _built(value, kind)
    return built


def plain(value: Any) -> Any:
    """What JSON can say of a dataclass: a table of its fields, in their order, without `unwritten` ones."""
    if is_dataclass(value):
        kind: Any = type(value)
        return {name: plain(getattr(value, name)) for name in _fields(kind)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


UNWRITTEN = {"unwritten": True}
"""Metadata of a dataclass field that no file holds."""


@cache
def _fields(kind: Any) -> dict[str, Any]:
    """Name and type of each field that a file holds."""
    hints = typing.get_type_hints(kind, include_extras=True)
    written: list[Field[Any]] = [f for f in fields(kind) if f.metadata != UNWRITTEN]
    return {field.name: hints[field.name] for field in written}


def _built(value: Any, schema: Any) -> Any:
    """A value that `_check` let pass, with dataclasses for tables and tuples for lists."""
    origin, inner = typing.get_origin(schema), typing.get_args(schema)
    if origin is typing.Annotated:
        return _built(value, inner[0])
    if is_dataclass(schema) and isinstance(schema, type):
        return schema(**{name: _built(value[name], kind) for name, kind in _fields(schema).items()})
    if origin in (typing.Union, types.UnionType):
        return _built(value, next(kind for kind in inner if _passes(value, kind)))
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return tuple(map(_built, value, kinds))
    if origin is dict:
        return {inner[0](key): _built(each, inner[1]) for key, each in value.items()}
    return value


def _passes(value: Any, schema: Any) -> bool:
    try:
        _check(value, schema, "")
    except SchemaError:
        return False
    return True


def validated_partly(content: Mapping[str, Any], schema: Any) -> dict[str, Any]:
    """The content, whose keys that the schema has are held to it; it may have others."""
    hints = typing.get_type_hints(schema)
    validated({name: content[name] for name in content if name in hints}, schema)
    return dict(content)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its own checksum: one changed digit and `unsealed` refuses it."""
    return {**validated(content, Any), SEAL: _digest(content)}


def unsealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content without its checksum; `SchemaError` where that is missing, or another's."""
    rest = {name: value for name, value in content.items() if name != SEAL}
    if SEAL not in content:
        raise SchemaError(f"it has no {SEAL}")
    if content[SEAL] != _digest(rest):
        raise SchemaError(f"its {SEAL} is not the one of what it says")
    return rest


SEAL = "checksum"
"""Of all the other keys of a file; that of weights beside it is one of them."""


def _digest(content: Mapping[str, Any]) -> str:
    """sha256 of what JSON makes of it, in whatever order."""
    plain = json.loads(json.dumps(content))  # whose keys are texts, which can be sorted
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _decoded(text: str | bytes) -> str:
    """UTF-8, with or without a byte order mark."""
    return text.removeprefix("\ufeff") if isinstance(text, str) else text.decode("utf-8-sig")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise SchemaError(f"it says {_short(twice)} twice")
    return found


def _constant(name: str) -> float:
    raise SchemaError(f"{name} is no number")


def _reason(wrong: Exception) -> str:
    if isinstance(wrong, RecursionError):
        return f"it is nested deeper than {DEEPEST} lists"
    return str(wrong).partition(";")[0]  # of a number of too many digits Python says more


def _check_plain(value: Any) -> None:
    """Refuse what no schema allows: numbers without end, depth without end."""
    layer = [("", value)]
    for _ in range(DEEPEST):
        below = list[tuple[str, Any]]()
        for name, one in layer:
            if isinstance(one, Mapping):
                below += [(_inner(name, key), each) for key, each in one.items()]
            elif isinstance(one, list | tuple):
                below += [(f"{name}[{k}]", each) for k, each in enumerate(one)]
            elif isinstance(one, float) and not isfinite(one):
                raise SchemaError(f"{name or 'it'} is not a finite number, got {one}")
            elif isinstance(one, int) and not -LARGEST <= one < LARGEST:
                raise SchemaError(f"{name or 'it'} is a whole number of {one.bit_length()} bits")
        if not below:
            return
        layer = below
    raise SchemaError(f"it is nested deeper than {DEEPEST} lists, at {layer[0][0][:60]}")


def _check(value: Any, schema: Any, name: str) -> None:
    origin, inner = typing.get_origin(schema), typing.get_args(schema)
    if typing.is_typeddict(schema):
        _check_table(value, typing.get_type_hints(schema), schema.__required_keys__, name)
    elif is_dataclass(schema) and isinstance(schema, type):
        _check_table(value, _fields(schema), frozenset(_fields(schema)), name)
    elif origin in (typing.Union, types.UnionType):
        _check_union(value, inner, name)
    elif schema is dict or origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(value, "a table of names and values", name)
        for key, each in value.items() if inner else ():
            if inner[0] is int and not str(key).isdecimal():
                raise _wrong(key, "a whole number", _inner(name, _short(key)))
            _check(each, inner[1], _inner(name, key))
    elif origin in (list, tuple):
        _check_list(value, origin, inner, name)
    elif schema is not Any and not is_valid(value, schema):
        raise _wrong(value, ", ".join([describe(schema), *ends_of(schema)]), name)


def _check_list(value: Any, origin: Any, inner: tuple[Any, ...], name: str) -> None:
    """Of any length with one type for all, or a tuple of some types."""
    if not isinstance(value, list | tuple):
        raise _wrong(value, "a list", name)
    if origin is list or inner[1:] == (...,):
        inner = inner[:1] * len(value)
    if len(value) != len(inner):
        raise _wrong(value, f"a list of {len(inner)}", name)
    for k, (each, kind) in enumerate(zip(value, inner, strict=True)):
        _check(each, kind, f"{name}[{k}]")


def _check_table(value: Any, hints: Mapping[str, Any], required: frozenset[str], name: str) -> None:
    """The keys and values of a TypedDict or dataclass: all that it needs, and nothing besides."""
    if not isinstance(value, Mapping):
        raise _wrong(value, "a table of names and values", name)
    for key in sorted(required):
        if key not in value:
            raise SchemaError(f"it lacks {_inner(name, key)}")
    for key, each in value.items():
        if key not in hints:
            raise SchemaError(f"{_inner(name, _short(key))} is no key of it")
        _check(each, hints[key], _inner(name, key))


def _check_union(value: Any, kinds: tuple[Any, ...], name: str) -> None:
    """One of them; the refusal is that of the first that is not None."""
    first: SchemaError | None = None
    for kind in sorted(kinds, key=lambda kind: kind is types.NoneType):
        try:
            return _check(value, kind, name)
        except SchemaError as wrong:
            first = first or wrong
    assert first is not None
    raise first


def _wrong(value: Any, wanted: str, name: str) -> SchemaError:
    return SchemaError(f"{name or 'it'} must be {wanted}, got {_short(value)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _inner(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
