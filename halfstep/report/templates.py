"""The templates of the pages, with filters for numbers and sentences."""

import re
from functools import cache
from pathlib import Path

import jinja2

from halfstep import files
from halfstep.errors import ConfigError
from halfstep.report.words import numbers


def template(name: str) -> jinja2.Template:
    """A template of this folder; an undefined name in it is an error."""
    return _environment().get_template(name)


def write_page(path: Path, page: str, *, limit: int, name: str, instead: str) -> Path:
    """Write a page atomically and return its path; `ConfigError` for `limit` bytes or more."""
    size = len(files.encoded(page, f"cannot write '{path}'"))
    if size >= limit:
        raise ConfigError(
            f"{name} would have {size:,} bytes and is to stay under {limit:,}: {instead}"
        )
    files.make_folder(path.parent)
    files.write_text(path, page)
    return path


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("halfstep", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in (
        "figure",
        "ends",
        "percent",
        "seconds",
        "big",
        "calls",
        "exact",
        "interval",
        "real_images",
    ):
        environment.filters[name] = getattr(numbers, name)
    environment.filters["typeset"] = _typeset
    return environment


def _typeset(text: str) -> str:
    """Replace typewriter quotes and spaces of a sentence by typographic ones."""
    text = text.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}")
    return re.sub(r"\(([^ ()]+) (to) ([^ ()]+)\)", "(\\1\N{NBSP}\\2\N{NBSP}\\3)", text)
