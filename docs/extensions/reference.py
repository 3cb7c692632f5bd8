"""Autodoc with tables: a docstring's arguments and errors become tables, with types, ranges and defaults."""

import inspect
import re
from functools import cached_property
from typing import Any

from docstrings import Argument, arguments, default_text, documented, MISSING, type_text

import halfstep
from halfstep import errors

CODE = re.compile(r"(``[^`]+``|`[^`\n]+(?:\n[^`\n]+)?`)")
TORCHS = {"forward", "train", "eval"}
"""Members that mean what they mean in torch."""


def rst(text: str) -> str:
    """Docstring prose as reStructuredText: `code` is code, and a link where it names a public thing."""
    parts = CODE.split(text)
    return "".join(_code(p) if k % 2 else _escaped(p) for k, p in enumerate(parts))


def _escaped(text: str) -> str:
    return re.sub(r"_(?=\W|$)", r"\\_", re.sub(r"([*|\\])", r"\\\1", text))


def _code(part: str) -> str:
    text = " ".join(part.strip("`").split())
    name = text.removeprefix("halfstep.")
    first, _, member = name.partition(".")
    if first in halfstep.__all__ and re.fullmatch(r"[\w.]+", name):
        thing = getattr(halfstep, first)
        if not member:
            return f":py:obj:`{name} <halfstep.{name}>`"
        if inspect.isclass(thing) and is_shown(thing, member):
            return f":py:obj:`{name} <halfstep.{name}>`"
    if inspect.isclass(vars(errors).get(name)):
        return f":py:exc:`{name} <halfstep.errors.{name}>`"
    return f"``{text}``"


def is_shown(owner: type, member: str) -> bool:
    """Whether the reference has this member: public, with a docstring of its own, and no field."""
    value = vars(owner).get(member)
    return not member.startswith("_") and _is_member(value) and bool(value.__doc__)


def indented(text: str, by: int) -> list[str]:
    return [f"{'':{by}}{line}".rstrip() for line in text.splitlines()]


def rendered(thing: Any, text: str, kind: str) -> list[str]:
    """The lines of reStructuredText for a docstring."""
    doc = documented(text)
    lines = [*rst(doc.summary).splitlines(), ""]
    for paragraph in filter(None, doc.body.split("\n\n")):
        literal = paragraph.startswith(" ")
        lines += [*(paragraph if literal else rst(paragraph)).splitlines(), ""]
    if kind in ("class", "function", "method") and (table := arguments(thing)):
        lines += _table("Argument", [(_head(a), rst(a.text)) for a in table])
    if doc.returns:
        lines += ["**Returns**", "", *rst(doc.returns).splitlines(), ""]
    if doc.raises:
        rows = [(_code(f"`{name}`"), rst(why)) for name, why in doc.raises.items()]
        lines += _table("Error", rows)
    if doc.example:
        lines += [".. code-block:: python", "", *indented(doc.example, 3), ""]
    return lines


def _head(argument: Argument) -> str:
    """Name, type and default of an argument, as a cell."""
    notes = [type_text(argument.annotation)]
    if argument.default is MISSING:
        notes.append("required")
    elif default := default_text(argument.default):
        notes.append(f"default ``{default}``")
    kind = "; ".join(_escaped(n) if "``" not in n else n for n in notes)
    return f"``{argument.name}``\n\n.. rst-class:: type\n\n{kind}"


def _table(title: str, rows: list[tuple[str, str]]) -> list[str]:
    lines = [
        ".. list-table::",
        "   :class: arguments",
        "   :header-rows: 1",
        "   :widths: 34 66",
        "",
    ]
    for head, text in [(title, "Meaning" if title == "Argument" else "When"), *rows]:
        lines += [f"   * - {indented(head, 7)[0].strip()}", *indented(head, 7)[1:]]
        body = indented(text, 7) or [""]
        lines += [f"     - {body[0].strip()}", *body[1:]]
    return [*lines, ""]


def process(app, what, name, obj, options, lines):
    if what in ("class", "function", "method", "property", "exception", "data"):
        lines[:] = rendered(obj, "\n".join(lines), what)


def skip(app, what, name, obj, skip, options):
    """Leave out fields of dataclasses, which are in the table of arguments, and members of torch."""
    if what == "class" and (name in TORCHS or not _is_member(obj)):
        return True
    return None


def _is_member(thing: Any) -> bool:
    kinds = (classmethod, staticmethod, property, cached_property)
    return inspect.isroutine(thing) or isinstance(thing, kinds)


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True}
