"""What a value is, as JSON, the code of a user's own included: so that no two are taken for one another.

Of halfstep's own code and of installed packages the name says enough: their versions are written down
beside it.  Of a user's own it is the name and the source, or without a source what Python made of it, with
what it was made with: defaults, a closure's values, arguments of a partial, and the functions and classes of
its own module that it calls.
"""

import hashlib
import inspect
import json
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn, Tensor

PLAIN = (type(None), bool, int, float, str)
GENERATED = ("__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__")
"""What `dataclass` writes into a class: its fields say it."""


def options_of(value: Any) -> dict[str, Any]:
    """A dataclass's fields, or any object's attributes, by name; and `code`, if that is a user's own."""
    found = {name: identity(each) for name, each in _state(value).items()}
    return {**found, **own_code(type(value))}


def own_code(*values: Any) -> dict[str, Any]:
    """`{"code": ...}` of those of them, functions and classes, that are a user's own; empty without any."""
    found = [identity(value) for value in values if is_own(value)]
    return {"code": found} if found else {}


def is_own(value: Any) -> bool:
    """Whether this function or class, or what is inside a partial or a bound method, is a user's own."""
    value = _inside(value)
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    if module is None:  # a notebook's, or made by exec
        return isinstance(value, FunctionType | type)
    top = module.__name__.partition(".")[0]
    if top == "halfstep" or top in sys.stdlib_module_names - {"__main__"}:
        return False
    file = getattr(module, "__file__", None) or ""
    return top == "__main__" or not ("site-packages" in file or "dist-packages" in file)


def holds_own(value: Any, seen: set[int] | None = None) -> bool:
    """Whether it is a user's own, or an object or a list that holds something that is; networks aside."""
    seen = set() if seen is None else seen
    if isinstance(value, (*PLAIN, Tensor, nn.Module)) or id(value) in seen:
        return False
    seen.add(id(value))
    if isinstance(value, FunctionType | MethodType | partial | type):
        return is_own(value)
    if isinstance(value, Mapping):
        return any(holds_own(each, seen) for each in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(holds_own(each, seen) for each in value)
    return is_own(type(value)) or any(holds_own(each, seen) for each in _state(value).values())


def identity(value: Any) -> Any:
    """As JSON: the same for the same, another for every other."""
    return _of(value, set())


def _of(value: Any, seen: set[int]) -> Any:
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, list | tuple):
        return [_of(each, seen) for each in value]
    if isinstance(value, Mapping):
        return {str(name): _of(each, seen) for name, each in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_of(each, seen)) for each in value)
    if isinstance(value, Tensor):
        return {"tensor": _digest(value)}
    if isinstance(value, FunctionType | BuiltinFunctionType | type):
        return _code(value, seen)
    return _held(value, seen)


def _held(value: Any, seen: set[int]) -> Any:
    """What holds others."""
    if hasattr(value, "__wrapped__") and callable(value):  # lru_cache
        return _of(value.__wrapped__, seen)
    if hasattr(value, "tolist"):
        return _of(value.tolist(), seen)
    if id(value) in seen:
        return _name(type(value))
    seen.add(id(value))
    if isinstance(value, partial):
        given = {"args": _of(value.args, seen), "keywords": _of(value.keywords, seen)}
        return {"partial": _of(value.func, seen), **given}
    if isinstance(value, MethodType):
        return {"method": _of(value.__func__, seen), "of": _of(value.__self__, seen)}
    return _object(value, seen)


def _object(value: Any, seen: set[int]) -> Any:
    kind = type(value)
    if isinstance(value, nn.Module):
        weights = {name: _of(each, seen) for name, each in value.state_dict().items()}
        return {**_named(kind, seen), "weights": _short(weights)}
    state = {name: _of(each, seen) for name, each in _state(value).items()}
    if is_dataclass(value) and not is_own(kind):
        return state  # as `asdict` has it
    # What has no attributes of its own (a dtype, a path, a generator) says in words what it is.
    words = {} if state or is_own(kind) or " at 0x" in repr(value) else {"is": repr(value)}
    return {**_named(kind, seen), **state, **words}


def _named(kind: type, seen: set[int]) -> dict[str, Any]:
    return {"code" if is_own(kind) else "type": _code(kind, seen)}


def _state(value: Any) -> dict[str, Any]:
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return dict(getattr(value, "__dict__", {}))


def _inside(value: Any) -> Any:
    """The function of a partial, of a bound method, or behind a decorator."""
    while isinstance(value, partial | MethodType) or hasattr(value, "__wrapped__"):
        if isinstance(value, partial):
            value = value.func
        else:
            value = value.__func__ if isinstance(value, MethodType) else value.__wrapped__
    return value


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', value)}"


def _code(value: Any, seen: set[int]) -> str:
    """module:qualname, and of a user's own what is behind it, in 16 letters."""
    if not is_own(value) or id(value) in seen or isinstance(value, BuiltinFunctionType):
        return _name(value)
    seen.add(id(value))
    parts = _class(value, seen) if isinstance(value, type) else _function(value, seen)
    return f"code {_name(value)} {_short(parts)}"


def _function(value: FunctionType, seen: set[int]) -> Any:
    code, closure = value.__code__, value.__closure__ or ()
    called = [value.__globals__.get(name) for name in sorted(_names(code))]
    near = [
        one
        for one in called
        if isinstance(one, FunctionType | type) and one.__module__ == value.__module__
    ]
    cells = [cell.cell_contents for cell in closure if _filled(cell)]
    behind = [value.__defaults__, value.__kwdefaults__, cells, near]
    return [_source(value), *(_of(each, seen) for each in behind)]


def _class(value: type, seen: set[int]) -> Any:
    """Attribute by attribute: a class's own source is not found where two have one name."""
    found = dict[str, Any]()
    for name, each in sorted(vars(value).items()):
        special = name[:2] == name[-2:] == "__"
        inner = each.__func__ if isinstance(each, staticmethod | classmethod) else each
        inner = getattr(inner, "func", inner) if not isinstance(inner, partial) else inner
        if isinstance(inner, property):
            found[name] = [_of(one, seen) for one in (inner.fget, inner.fset)]
        elif isinstance(inner, FunctionType):
            if not (
                is_dataclass(value) and name in GENERATED and inner.__code__.co_filename[0] == "<"
            ):
                found[name] = _of(inner, seen)
        elif isinstance(inner, (*PLAIN, tuple, list, dict, type, partial)) and not special:
            found[name] = _of(inner, seen)
    return [found, [_code(base, seen) for base in value.__bases__ if base is not object]]


def _source(value: FunctionType) -> Any:
    """Of a lambda what Python made of it: a line of the source may hold two."""
    if value.__name__ != "<lambda>":
        try:
            return textwrap.dedent(inspect.getsource(value))
        except (OSError, TypeError, SyntaxError, IndexError):
            pass
    return _bytes(value.__code__)


def _bytes(code: CodeType) -> Any:
    consts = [
        _bytes(one) if isinstance(one, CodeType) else _constant(one) for one in code.co_consts
    ]
    return [code.co_code.hex(), consts, list(code.co_names), list(code.co_varnames)]


def _constant(value: Any) -> Any:
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _names(code: CodeType) -> set[str]:
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _digest(value: Tensor) -> str:
    whole = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return f"{value.dtype} {list(value.shape)} {hashlib.sha256(whole).hexdigest()[:16]}"


def _short(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
