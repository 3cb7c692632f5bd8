"""Validate JSON and TOML files against a schema; an error is one sentence that names file and key.

A schema is a type: `int`, `float`, `str`, `bool`, unions, literals, lists, tuples, `dict[str, ...]`,
TypedDicts and dataclasses of them; `Any` and `object` allow all of JSON.  A TypedDict allows no other keys
than its own, a dataclass needs exactly its fields (`build`, `plain`).
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

from halfstep.config import JsonObject
from halfstep.config.validate import describe, ends_of, Hints, is_valid
from halfstep.errors import CheckpointError, HalfstepError

T = TypeVar("T")
DEEPEST = 64
"""The most lists in lists: copying or writing deeper ones could exhaust Python's stack."""
LARGEST = 2**63
"""Bound of whole numbers, which is torch's."""


class SchemaError(Exception):
    """A value violates its schema; the caller adds the file's name."""


def from_json(
    text: str | bytes, schema: type[T], source: str, *, error: type[HalfstepError] = CheckpointError
) -> T:
    """Parse a JSON text; raises `error` if it is damaged or violates the schema.

    source  names the file in the error
    """
    try:
        value = json.loads(_decoded(text), object_pairs_hook=_pairs, parse_constant=_constant)
        parsed: T = validated(value, schema)
        return parsed
    except (SchemaError, ValueError, RecursionError) as wrong:
        raise error(f"{source} is damaged: {_reason(wrong)}") from None


def from_toml(
    text: str | bytes, schema: type[T], source: str, *, error: type[HalfstepError] = CheckpointError
) -> T:
    """Parse a TOML text, as `from_json`."""
    try:
        parsed: T = validated(tomllib.loads(_decoded(text)), schema)
        return parsed
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as wrong:
        raise error(f"{source} is not TOML: {wrong}") from None
    except (SchemaError, ValueError, RecursionError) as wrong:
        raise error(f"{source} is damaged: {_reason(wrong)}") from None


def literal(text: Any) -> Any:
    """Read typed text as JSON (64, true, [1, 2]); other text, and other values, are returned as they are."""
    if not isinstance(text, str):
        return text
    try:
        return validated(json.loads(text, parse_constant=_constant), Any)
    except (SchemaError, ValueError, RecursionError):
        return text


def literals(pairs: Mapping[str, str]) -> JsonObject:
    """Read each typed value: `embed_dim 64 conv true` is {"embed_dim": 64, "conv": True}."""
    return {name: literal(text) for name, text in pairs.items()}


def validated(value: Any, schema: Any) -> Any:
    """Return the value if it fits the schema; `SchemaError` names the first key that does not."""
    _check_plain(value)
    _check(value, schema, "")
    return value


def build(value: Any, kind: type[T]) -> T:
    """Build a dataclass from its table (see `plain`); `SchemaError` names the first wrong key."""
    validated(value, kind)
    built: T = _built(value, kind)
    return built


def plain(value: Any) -> Any:
    """Turn a dataclass into JSON objects of its fields, in order, without those marked `UNWRITTEN`."""
    if is_dataclass(value):
        kind: Any = type(value)
        return {name: plain(getattr(value, name)) for name in _fields(kind)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


UNWRITTEN = {"unwritten": True}
"""Metadata of a dataclass field that is not written to a file."""


@cache
def _fields(kind: Any) -> Hints:
    """Name and type of each field that is written to a file."""
    hints = typing.get_type_hints(kind, include_extras=True)
    written: list[Field[Any]] = [f for f in fields(kind) if f.metadata != UNWRITTEN]
    return {field.name: hints[field.name] for field in written}


def _built(value: Any, schema: Any) -> Any:
    """Build dataclasses from objects, and tuples from lists, in a value that `_check` accepted."""
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


def validated_partly(content: Mapping[str, Any], schema: Any) -> JsonObject:
    """Return the content if those of its keys that the schema has fit it; others are allowed."""
    hints = typing.get_type_hints(schema)
    validated({name: content[name] for name in content if name in hints}, schema)
    return dict(content)


def add_checksum(content: Mapping[str, Any]) -> JsonObject:
    """The content with its own checksum, by which `remove_checksum` detects any change."""
    return {**validated(content, Any), CHECKSUM: _digest(content)}


def remove_checksum(content: Mapping[str, Any]) -> JsonObject:
    """The content without its checksum; `SchemaError` if that is missing or wrong."""
    others = {name: value for name, value in content.items() if name != CHECKSUM}
    if CHECKSUM not in content:
        raise SchemaError(f"it has no {CHECKSUM}")
    if content[CHECKSUM] != _digest(others):
        raise SchemaError(f"its {CHECKSUM} is not that of its content")
    return others


CHECKSUM = "checksum"
"""The key of the checksum of all other keys of a file, the weights' sha256 among them."""


def _digest(content: Mapping[str, Any]) -> str:
    """sha256 of the content as JSON with sorted keys."""
    plain = json.loads(json.dumps(content))  # so that all keys are texts, which can be sorted
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _decoded(text: str | bytes) -> str:
    """UTF-8, with or without a byte order mark."""
    return text.removeprefix("\ufeff") if isinstance(text, str) else text.decode("utf-8-sig")


def _pairs(pairs: list[tuple[str, Any]]) -> JsonObject:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise SchemaError(f"it says {_short(twice)} twice")
    return table


def _constant(name: str) -> float:
    raise SchemaError(f"{name} is no number")


def _reason(wrong: Exception) -> str:
    if isinstance(wrong, RecursionError):
        return f"it is nested deeper than {DEEPEST} lists"
    return str(wrong).partition(";")[0]  # Python adds more for a number of too many digits


def _check_plain(value: Any) -> None:
    """Refuse what no schema allows: infinite or too large numbers, and too deep lists."""
    layer = [("", value)]
    for _ in range(DEEPEST):
        below = list[tuple[str, Any]]()
        for name, item in layer:
            if isinstance(item, Mapping):
                below += [(_inner(name, key), each) for key, each in item.items()]
            elif isinstance(item, list | tuple):
                below += [(f"{name}[{k}]", each) for k, each in enumerate(item)]
            elif isinstance(item, float) and not isfinite(item):
                raise SchemaError(f"{name or 'it'} is not a finite number, got {item}")
            elif isinstance(item, int) and not -LARGEST <= item < LARGEST:
                raise SchemaError(f"{name or 'it'} is a whole number of {item.bit_length()} bits")
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
    """Check a list of any length with one type for all, or a tuple with a type for each."""
    if not isinstance(value, list | tuple):
        raise _wrong(value, "a list", name)
    if origin is list or inner[1:] == (...,):
        inner = inner[:1] * len(value)
    if len(value) != len(inner):
        raise _wrong(value, f"a list of {len(inner)}", name)
    for k, (each, kind) in enumerate(zip(value, inner, strict=True)):
        _check(each, kind, f"{name}[{k}]")


def _check_table(value: Any, hints: Hints, required: frozenset[str], name: str) -> None:
    """Check the keys and values of a TypedDict or dataclass: all required keys, and no others."""
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
    """Check that one of the types fits; the error is that of the first that is not None."""
    first: SchemaError | None = None
    for kind in sorted(kinds, key=lambda kind: kind is types.NoneType):
        try:
            return _check(value, kind, name)
        except SchemaError as wrong:
            first = first or wrong
    assert first is not None
    raise first


def _wrong(value: Any, expected: str, name: str) -> SchemaError:
    return SchemaError(f"{name or 'it'} must be {expected}, got {_short(value)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _inner(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
