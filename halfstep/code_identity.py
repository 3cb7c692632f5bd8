"""The identity of a value as JSON, a user's code included, so that different values are told apart.

halfstep's code and that of installed packages is identified by name, as their versions are recorded too.  A
user's code is identified by name and source (by bytecode where there is no source), with its defaults, a
closure's values, a partial's arguments, and the functions, classes and constants of its module that it
reads.  Left out are attributes of other modules, and the lists, dicts and objects of its module: they may
change as it runs, which would make a resumed run another one.

The identity is the same in every process: it has no ids or addresses, and sets are sorted.
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
"""Values that only change when their name is assigned anew."""
GENERATED = ("__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__")
"""Methods that `dataclass` generates from the fields."""
Attributes = dict[str, Any]
Visits = dict[int, tuple[int, Any]]
"""By id the number of an object's first visit, and the object, which keeps its id from being reused."""


def options_of(value: Any) -> Attributes:
    """The identities of an object's fields or attributes by name; and `code` if its class is a user's."""
    options = {name: identity(each) for name, each in _state(value).items()}
    return {**options, **user_code(type(value))}


def user_code(*values: Any) -> Attributes:
    """`{"code": ...}` with the identities of the functions and classes that are a user's; {} without any."""
    code = [identity(value) for value in values if is_user_code(value)]
    return {"code": code} if code else {}


def is_user_code(value: Any) -> bool:
    """Whether a function or class is a user's, also inside a partial, a bound method or a decorator."""
    return any(map(_is_user_code, _layers(value)))


def _is_user_code(value: Any) -> bool:
    """Judged by the module of its code: a decorator copies the wrapped function's module name."""
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
    """The value and the functions inside it: of a partial, a bound method, a decorator."""
    while value is not None:
        yield value
        if isinstance(value, partial | MethodType):
            value = value.func if isinstance(value, partial) else value.__func__
        else:
            value = getattr(value, "__wrapped__", None)


def holds_user_code(value: Any, visits: set[int] | None = None) -> bool:
    """Whether a value is a user's code, or an object or a list that holds some; networks excluded."""
    visits = set() if visits is None else visits
    if isinstance(value, (*PLAIN, Tensor, nn.Module, ModuleType, Logger)) or id(value) in visits:
        return False
    visits.add(id(value))
    if is_user_code(value if isinstance(value, (*CODE, MethodType, partial)) else type(value)):
        return True
    return any(holds_user_code(each, visits) for each in _held_by(value))


def _held_by(value: Any) -> list[Any]:
    if isinstance(value, HOLDERS):
        return list(value.values() if isinstance(value, Mapping) else value)
    if isinstance(value, partial):
        return [*value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__self__]
    return [] if isinstance(value, CODE) else list(_state(value).values())


def identity(value: Any) -> Any:
    """The identity of a value as JSON: equal for equal values only."""
    return _of(value, {})


def _of(value: Any, visits: Visits) -> Any:
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, HOLDERS) and not is_user_code(type(value)):
        return _contents(value, visits)
    if isinstance(value, Tensor):
        return {"tensor": _digest(value)}
    if isinstance(value, CODE):
        return _code(value, visits)
    if isinstance(value, ModuleType | Logger):  # they lead to all other modules and loggers
        return f"{type(value).__name__} {getattr(value, '__name__', '') or value.name}"
    if hasattr(value, "tolist"):
        return _of(value.tolist(), visits)
    return (
        _name(type(value)) + again if (again := _again(value, visits)) else _object(value, visits)
    )


def _again(value: Any, visits: Visits) -> str:
    """The number of an object's first visit, as text; empty at the first."""
    if id(value) in visits:
        return f" again {visits[id(value)][0]}"
    visits[id(value)] = len(visits), value
    return ""


def _contents(value: Any, visits: Visits) -> Any:
    if isinstance(value, Mapping):
        return {_key(name, visits): _of(each, visits) for name, each in value.items()}
    if isinstance(
        value, set | frozenset
    ):  # unordered, so that each element starts from the same visits
        return sorted(json.dumps(_of(each, dict(visits))) for each in value)
    return [_of(each, visits) for each in value]


def _key(name: Any, visits: Visits) -> str:
    return str(name) if isinstance(name, PLAIN) else json.dumps(_of(name, visits))


def _object(value: Any, visits: Visits) -> Any:
    kind = type(value)
    if isinstance(value, partial):
        arguments = {"args": _of(value.args, visits), "keywords": _of(value.keywords, visits)}
        return {"partial": _of(value.func, visits), **arguments}
    if isinstance(value, MethodType):
        return {"method": _of(value.__func__, visits), "of": _of(value.__self__, visits)}
    if isinstance(value, nn.Module):
        weights = {name: _of(each, visits) for name, each in value.state_dict().items()}
        return {**_named(kind, visits), "weights": _short(weights)}
    state = {name: _of(each, visits) for name, each in _state(value).items()}
    if is_dataclass(value) and not is_user_code(kind):
        return state
    if isinstance(value, HOLDERS):
        state["holds"] = _contents(value, visits)
    # An object without attributes (a dtype, a path, a generator) is identified by its repr.
    words = {} if state or is_user_code(kind) or " at 0x" in repr(value) else {"is": repr(value)}
    return {**_named(kind, visits), **state, **words}


def _named(kind: type, visits: Visits) -> Attributes:
    return {"code" if is_user_code(kind) else "type": _code(kind, visits)}


def _state(value: Any) -> Attributes:
    """A dataclass's fields; of other objects, and of a user's dataclass, also attributes and slots.

    Values of cached properties are left out: reading one must not change the identity.
    """
    kind, state = type(value), Attributes()
    if is_dataclass(value):
        state = {field.name: getattr(value, field.name) for field in fields(value)}
    if not is_dataclass(value) or is_user_code(kind):
        state |= getattr(value, "__dict__", {})
        bases = [vars(base).items() for base in kind.__mro__ if is_user_code(base)]
        slots = [name for base in bases for name, each in base if inspect.ismemberdescriptor(each)]
        state |= {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return {
        name: each
        for name, each in state.items()
        if not isinstance(getattr(kind, name, None), cached_property)
    }


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', value)}"


def _code(value: Any, visits: Visits) -> str:
    """module:qualname; of a user's code also a digest of its source and dependencies, in 16 letters."""
    if not is_user_code(value) or isinstance(value, BuiltinFunctionType):
        return _name(value)
    if again := _again(value, visits):
        return _name(value) + again
    parts = _class(value, visits) if isinstance(value, type) else _function(value, visits)
    return f"code {_name(value)} {_short(parts)}"


def _function(value: FunctionType, visits: Visits) -> Any:
    cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
    is_users = _is_user_code(value)  # or an installed decorator around a user's function
    reads = _globals_of(value) if is_users else {}
    context = [value.__defaults__, value.__kwdefaults__, cells, reads]
    source = _source(value) if is_users else f"{_module_of(value)} {value.__code__.co_name}"
    return [source, *(_of(each, visits) for each in context)]


def _module_of(value: FunctionType) -> Any:
    return value.__globals__["__name__"]


def _globals_of(value: FunctionType) -> Attributes:
    """The code and constants of its module that a function reads, by name; no dunder names."""
    names = sorted(name for name in _global_names(value.__code__) if name[:2] != "__")
    values = {name: value.__globals__.get(name, ...) for name in names}
    return {name: each for name, each in values.items() if isinstance(each, FIXED)}


def _global_names(code: CodeType) -> set[str]:
    """The global names that code reads, also in the functions inside it."""
    steps = dis.get_instructions(code)
    names = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return names.union(*map(_global_names, inner))


def _class(value: type, visits: Visits) -> Any:
    """A class attribute by attribute: the source is not found where two classes have one name."""
    attributes = Attributes()
    for name, each in sorted(vars(value).items()):
        inner = each.__func__ if isinstance(each, staticmethod | classmethod) else each
        if isinstance(inner, property):
            attributes[name] = [_of(f, visits) for f in (inner.fget, inner.fset, inner.fdel)]
        elif isinstance(inner, FunctionType):
            generated = name in GENERATED and inner.__code__.co_filename[0] == "<"
            if not (is_dataclass(value) and generated):
                attributes[name] = _of(inner, visits)
        elif not name[:2] == name[-2:] == "__":
            attributes[name] = _of(inner, visits)
    parents = [type(value), *(base for base in value.__bases__ if base is not object)]
    return [attributes, [_code(parent, visits) for parent in parents]]


def _source(value: FunctionType) -> Any:
    """A function's source; of a lambda the bytecode, as a line of source may hold two."""
    if value.__code__.co_name != "<lambda>":
        try:  # from the code object: from a function, inspect would follow __wrapped__
            return textwrap.dedent(inspect.getsource(value.__code__))
        except (OSError, TypeError, SyntaxError, IndexError):
            pass
    return _bytes(value.__code__)


def _bytes(code: CodeType) -> Any:
    consts = [_bytes(c) if isinstance(c, CodeType) else _constant(c) for c in code.co_consts]
    counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
    names = [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars]
    return [code.co_code.hex(), code.co_exceptiontable.hex(), consts, counts, names]


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
