"""What a value is, as JSON, the code of a user's own included: so that no two are taken for one another.

Of halfstep's own code and of installed packages the name says enough: their versions are written down
beside it.  Of a user's own it is the name and the source, or without a source what Python made of it, with
what it was made with: defaults, a closure's values, arguments of a partial; and what it reads of its module:
functions, classes and constants.  Not seen are what it reaches as an attribute of another module, and lists,
dicts and objects of its module: they may change as it runs, and it would be another's run that goes on.

It is the same in every process: no ids and no addresses are in it, and sets have the order of what they hold.
"""

import dis
import hashlib
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cached_property, partial
from logging import Logger
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn, Tensor

PLAIN = (type(None), bool, int, float, str)
HOLDERS = (list, tuple, Mapping, set, frozenset)
CODE = (FunctionType, BuiltinFunctionType, type)
FIXED = (*PLAIN, *CODE, tuple, frozenset, Tensor, partial, ModuleType)
"""What a name of a module stays, unless it is given another value."""
GENERATED = ("__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__")
"""What `dataclass` writes into a class: its fields say it."""
Seen = dict[int, tuple[int, Any]]
"""By id which visit an object had, and the object: while it is held, no other has its id."""


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
    return any(map(_is_own, _layers(value)))


def _is_own(value: Any) -> bool:
    """By where its code is: a decorator gives its function the name of another's module."""
    of_code = value.__globals__.get("__name__") if isinstance(value, FunctionType) else None
    module = sys.modules.get(of_code or getattr(value, "__module__", None) or "")
    if module is None:  # a notebook's, or made by exec
        return isinstance(value, FunctionType | type)
    top = module.__name__.partition(".")[0]
    if top == "halfstep" or top in sys.stdlib_module_names - {"__main__"}:
        return False
    file = getattr(module, "__file__", None) or ""
    return top == "__main__" or not ("site-packages" in file or "dist-packages" in file)


def _layers(value: Any) -> Iterator[Any]:
    """It, and what is inside a partial, a bound method, a decorator."""
    while value is not None:
        yield value
        if isinstance(value, partial | MethodType):
            value = value.func if isinstance(value, partial) else value.__func__
        else:
            value = getattr(value, "__wrapped__", None)


def holds_own(value: Any, seen: set[int] | None = None) -> bool:
    """Whether it is a user's own, or an object or a list that holds something that is; networks aside."""
    seen = set() if seen is None else seen
    if isinstance(value, (*PLAIN, Tensor, nn.Module, ModuleType, Logger)) or id(value) in seen:
        return False
    seen.add(id(value))
    if is_own(value if isinstance(value, (*CODE, MethodType, partial)) else type(value)):
        return True
    return any(holds_own(each, seen) for each in _held_by(value))


def _held_by(value: Any) -> list[Any]:
    if isinstance(value, HOLDERS):
        return list(value.values() if isinstance(value, Mapping) else value)
    if isinstance(value, partial):
        return [*value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__self__]
    return [] if isinstance(value, CODE) else list(_state(value).values())


def identity(value: Any) -> Any:
    """As JSON: the same for the same, another for every other."""
    return _of(value, {})


def _of(value: Any, seen: Seen) -> Any:
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, HOLDERS) and not is_own(type(value)):
        return _contents(value, seen)
    if isinstance(value, Tensor):
        return {"tensor": _digest(value)}
    if isinstance(value, CODE):
        return _code(value, seen)
    if isinstance(value, ModuleType | Logger):  # through which all others are reached
        return f"{type(value).__name__} {getattr(value, '__name__', '') or value.name}"
    if hasattr(value, "tolist"):
        return _of(value.tolist(), seen)
    return _name(type(value)) + again if (again := _again(value, seen)) else _object(value, seen)


def _again(value: Any, seen: Seen) -> str:
    """Which visit this object had, in words; empty at the first."""
    if id(value) in seen:
        return f" again {seen[id(value)][0]}"
    seen[id(value)] = len(seen), value
    return ""


def _contents(value: Any, seen: Seen) -> Any:
    if isinstance(value, Mapping):
        return {_key(name, seen): _of(each, seen) for name, each in value.items()}
    if isinstance(value, set | frozenset):  # in no order, so none is a visit before another's
        return sorted(json.dumps(_of(each, dict(seen))) for each in value)
    return [_of(each, seen) for each in value]


def _key(name: Any, seen: Seen) -> str:
    return str(name) if isinstance(name, PLAIN) else json.dumps(_of(name, seen))


def _object(value: Any, seen: Seen) -> Any:
    kind = type(value)
    if isinstance(value, partial):
        given = {"args": _of(value.args, seen), "keywords": _of(value.keywords, seen)}
        return {"partial": _of(value.func, seen), **given}
    if isinstance(value, MethodType):
        return {"method": _of(value.__func__, seen), "of": _of(value.__self__, seen)}
    if isinstance(value, nn.Module):
        weights = {name: _of(each, seen) for name, each in value.state_dict().items()}
        return {**_named(kind, seen), "weights": _short(weights)}
    state = {name: _of(each, seen) for name, each in _state(value).items()}
    if is_dataclass(value) and not is_own(kind):
        return state  # as `asdict` has it
    if isinstance(value, HOLDERS):
        state["holds"] = _contents(value, seen)
    # What has no attributes of its own (a dtype, a path, a generator) says in words what it is.
    words = {} if state or is_own(kind) or " at 0x" in repr(value) else {"is": repr(value)}
    return {**_named(kind, seen), **state, **words}


def _named(kind: type, seen: Seen) -> dict[str, Any]:
    return {"code" if is_own(kind) else "type": _code(kind, seen)}


def _state(value: Any) -> dict[str, Any]:
    """What it has: of a dataclass its fields; of a user's own also other attributes and slots.

    What a property keeps for later is not, or it would be another object once it was asked.
    """
    kind, found = type(value), dict[str, Any]()
    if is_dataclass(value):
        found = {field.name: getattr(value, field.name) for field in fields(value)}
    if not is_dataclass(value) or is_own(kind):
        found |= getattr(value, "__dict__", {})
        bases = [vars(base).items() for base in kind.__mro__ if is_own(base)]
        slots = [name for base in bases for name, one in base if inspect.ismemberdescriptor(one)]
        found |= {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return {
        name: one
        for name, one in found.items()
        if not isinstance(getattr(kind, name, None), cached_property)
    }


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', value)}"


def _code(value: Any, seen: Seen) -> str:
    """module:qualname, and of a user's own what is behind it, in 16 letters."""
    if not is_own(value) or isinstance(value, BuiltinFunctionType):
        return _name(value)
    if again := _again(value, seen):
        return _name(value) + again
    parts = _class(value, seen) if isinstance(value, type) else _function(value, seen)
    return f"code {_name(value)} {_short(parts)}"


def _function(value: FunctionType, seen: Seen) -> Any:
    cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
    own = _is_own(value)  # or somebody else's decorator around a user's own
    said = _source(value) if own else f"{value.__globals__['__name__']} {value.__code__.co_name}"
    behind = [value.__defaults__, value.__kwdefaults__, cells, _near(value) if own else {}]
    return [said, *(_of(each, seen) for each in behind)]


def _near(value: FunctionType) -> dict[str, Any]:
    """What it reads of its module, by name: code, and constants; not where its file is."""
    names = sorted(name for name in _read(value.__code__) if name[:2] != "__")
    found = {name: value.__globals__.get(name, ...) for name in names}
    return {name: one for name, one in found.items() if isinstance(one, FIXED)}


def _read(code: CodeType) -> set[str]:
    """The names that are neither attributes nor variables of its own."""
    steps = dis.get_instructions(code)
    own = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(_read(one) for one in code.co_consts if isinstance(one, CodeType)))


def _class(value: type, seen: Seen) -> Any:
    """Attribute by attribute: a class's own source is not found where two have one name."""
    found = dict[str, Any]()
    for name, each in sorted(vars(value).items()):
        inner = each.__func__ if isinstance(each, staticmethod | classmethod) else each
        if isinstance(inner, property):
            found[name] = [_of(one, seen) for one in (inner.fget, inner.fset, inner.fdel)]
        elif isinstance(inner, FunctionType):
            if not (
                is_dataclass(value) and name in GENERATED and inner.__code__.co_filename[0] == "<"
            ):
                found[name] = _of(inner, seen)
        elif not name[:2] == name[-2:] == "__":
            found[name] = _of(inner, seen)
    above = [type(value), *(base for base in value.__bases__ if base is not object)]
    return [found, [_code(one, seen) for one in above]]


def _source(value: FunctionType) -> Any:
    """Of a lambda what Python made of it: a line of the source may hold two."""
    if value.__code__.co_name != "<lambda>":
        try:  # of the code: of a function it would be that of what it is wrapped around
            return textwrap.dedent(inspect.getsource(value.__code__))
        except (OSError, TypeError, SyntaxError, IndexError):
            pass
    return _bytes(value.__code__)


def _bytes(code: CodeType) -> Any:
    consts = [
        _bytes(one) if isinstance(one, CodeType) else _constant(one) for one in code.co_consts
    ]
    taken = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
    names = [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars]
    return [code.co_code.hex(), code.co_exceptiontable.hex(), consts, taken, names]


def _constant(value: Any) -> Any:
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


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
