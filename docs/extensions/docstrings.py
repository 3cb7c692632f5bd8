"""Google-style docstrings as data, and the arguments of a function or class with their types and defaults."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, MISSING
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, get_args, get_origin, Literal, Union

from annotated_types import Ge, Gt, Le, Lt
from docstring_parser import DocstringStyle, parse

BOUNDS = {Ge: ("ge", "at least"), Gt: ("gt", "above"), Le: ("le", "at most"), Lt: ("lt", "below")}


@dataclass(frozen=True)
class Argument:
    """An argument: its name, its text in the docstring, its annotation and its default."""

    name: str
    text: str
    annotation: Any
    default: Any


@dataclass(frozen=True)
class Documented:
    """A docstring taken apart; `raises` and `returns` are texts by exception, and of the result."""

    summary: str
    body: str
    arguments: dict[str, str]
    returns: str
    raises: dict[str, str]
    example: str


def documented(text: str) -> Documented:
    """The parts of a Google-style docstring; a heading of arguments may name several: `rows, views: ...`."""
    doc = parse(text, DocstringStyle.GOOGLE)
    first, _, body = (doc.description or "").partition("\n\n")
    return Documented(
        summary=" ".join(first.split()),
        body=body,
        arguments={
            name.strip(): p.description or "" for p in doc.params for name in p.arg_name.split(",")
        },
        returns=(doc.returns.description or "") if doc.returns else "",
        raises={r.type_name or "": r.description or "" for r in doc.raises},
        example="\n\n".join(e.description or "" for e in doc.examples),
    )


def arguments(thing: Any) -> list[Argument]:
    """Its arguments in order, without self; those of a dataclass have the text below their field."""
    texts = field_texts(thing) if is_dataclass(thing) else {}
    texts |= documented(thing.__doc__ or "").arguments
    found = []
    for p in parameters(thing):
        hint = annotation_of(thing, p)
        text = texts.get(p.name) or (documented(hint.__doc__).summary if is_dataclass(hint) else "")
        found.append(Argument(p.name, text, hint, default_of(thing, p)))
    return found


def parameters(thing: Any) -> Iterator[inspect.Parameter]:
    """The parameters of its signature; those of a class without one of its own are none."""
    if inspect.isclass(thing) and (
        vars(thing).get("_is_protocol") or issubclass(thing, BaseException)
    ):
        return
    target = thing.__func__ if isinstance(thing, classmethod | staticmethod) else thing
    for p in inspect.signature(target).parameters.values():
        if p.name not in ("self", "cls"):
            yield p


def annotation_of(thing: Any, parameter: inspect.Parameter) -> Any:
    if is_dataclass(thing):
        return next(
            (f.type for f in fields(thing) if f.name == parameter.name), parameter.annotation
        )
    return parameter.annotation


def default_of(thing: Any, parameter: inspect.Parameter) -> Any:
    """The default; of a field that is made anew each time, what is made; MISSING where it is required."""
    if is_dataclass(thing):
        for f in fields(thing):
            if f.name == parameter.name and f.default_factory is not MISSING:
                return f.default_factory()
    return MISSING if parameter.default is parameter.empty else parameter.default


def field_texts(owner: type) -> dict[str, str]:
    """The text below each field of a dataclass and of those it inherits from."""
    texts: dict[str, str] = {}
    for kin in filter(is_dataclass, reversed(owner.__mro__)):
        body = ast.parse(textwrap.dedent(inspect.getsource(kin))).body[0].body
        texts |= {
            field.target.id: inspect.cleandoc(doc.value.value)
            for field, doc in pairwise(body)
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr)
        }
    return texts


def type_text(hint: Any) -> str:
    """A type in words: `int, at least 1`."""
    if isinstance(hint, str):
        return hint
    if hint in (inspect.Parameter.empty, Any):
        return "any"
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return ", ".join([type_text(inner[0]), *bounds(inner[1:])])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(type_text, inner)))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple and inner[-1:] != (...,):
        return f"({', '.join(map(type_text, inner))})"
    return _generic(origin or hint, [part for part in inner if part is not ...])


def _generic(kind: Any, inner: list[Any]) -> str:
    """A class, with what it holds: `Sequence of int`, `Mapping of str to Tensor`."""
    if kind is Callable:
        return "function"
    name = "None" if kind in (None, type(None)) else getattr(kind, "__name__", str(kind))
    return f"{name} of {' to '.join(map(type_text, inner))}" if inner else name


def bounds(constraints: tuple[Any, ...]) -> Iterator[str]:
    for constraint in constraints:
        if type(constraint) in BOUNDS:
            attribute, words = BOUNDS[type(constraint)]
            limit = getattr(constraint, attribute)
            if abs(limit) < 2**24:  # others say only how many bits there are
                yield f"{words} {limit:,}" if isinstance(limit, int) else f"{words} {limit:g}"


def default_text(default: Any) -> str:
    """The default as one would write it, or nothing where it says nothing."""
    if default is MISSING or repr(default) in ("None", "''", "()", "{}"):
        return ""
    if inspect.isfunction(default) or inspect.isclass(default):
        return default.__name__
    text = repr(default)
    return "" if " object at " in text or len(text) > 60 else text
