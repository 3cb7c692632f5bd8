"""The templates of the pages, and how they write numbers and sentences."""

import re
from functools import cache

import jinja2

from halfstep.report import numbers


def template(name: str) -> jinja2.Template:
    """A template of this folder; a name that it uses and is not given is an error."""
    return _world().get_template(name)


@cache
def _world() -> jinja2.Environment:
    world = jinja2.Environment(
        loader=jinja2.PackageLoader("halfstep", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("figure", "ends", "percent", "seconds", "big", "calls", "exact"):
        world.filters[name] = getattr(numbers, name)
    world.filters |= {"span": _span, "typeset": _typeset}
    return world


def _span(measured: numbers.Measured | None, decimals: int) -> str:
    return numbers.interval(measured, decimals) if measured else "not measured"


def _typeset(text: str) -> str:
    """A sentence written for the terminal, as it is set on paper."""
    text = text.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}")
    return re.sub(r"\(([^ ()]+) (to) ([^ ()]+)\)", "(\\1\N{NBSP}\\2\N{NBSP}\\3)", text)
