"""Tables in the terminal, as wide as their numbers; names from files are printed as text."""

from collections.abc import Collection
from textwrap import wrap
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from halfstep.errors import printable

NARROW = 80
"""Columns that a table may take on a narrower terminal."""
LABEL = 10
"""Columns of a line's label."""


class Columns(Table):
    """A table with names aligned to the left, numbers to the right.

    words  heads of later columns that are aligned to the left too
    """

    def __init__(self, *heads: str, words: Collection[str] = ()):
        super().__init__(box=None, pad_edge=False, collapse_padding=True)
        for k, head in enumerate(heads):
            side: Literal["left", "right"] = "left" if not k or head in words else "right"
            self.add_column(printable(head), justify=side, no_wrap=True)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row without control characters."""
        super().add_row(*(printable(str(cell)) for cell in cells), **options)


def say_words(console: Console, label: str, text: str) -> None:
    """Print a sentence in lines of the terminal's width, broken at words."""
    indent = " " * LABEL
    lines = wrap(
        printable(text), max(console.width, 40), initial_indent=f"{label:<{LABEL}}",
        subsequent_indent=indent, break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    for line in lines or [label]:
        console.print(line, markup=False, soft_wrap=True)


def print_wide(console: Console, table: Columns) -> None:
    """Print a table; one that is wider than the terminal, and than 80, has intervals and heads in two lines.

    If that is too wide still, its rows stand one below another, a line for each cell.
    """
    width, room = console.width, max(console.width, NARROW)
    for form in (table, _folded(table)):
        if (needed := _width(console, form)) <= room:
            console.width = max(width, needed)
            console.print(form)
            console.width = width
            return
    heads = [str(column.header) for column in table.columns]
    for k, row in enumerate(table.rows):
        first, *cells = (str(list(column.cells)[k]) for column in table.columns)
        console.print(first, style=row.style, markup=False, soft_wrap=True)
        for head, cell in zip(heads[1:], cells, strict=True):
            if cell.strip():
                line = f"  {head:<{max(map(len, heads))}}  {cell}"
                console.print(line, style=row.style, markup=False, soft_wrap=True)


def _width(console: Console, table: Columns) -> int:
    """The width that a table needs."""
    return console.measure(table, options=console.options.update(width=10_000)).maximum


def _folded(table: Columns) -> Columns:
    """The table with intervals below their values, and heads of several words in two lines."""
    folded = Columns(*(str(column.header) for column in table.columns))
    for column, source in zip(folded.columns, table.columns, strict=True):
        head, column.justify = str(source.header), source.justify
        middle = head.find(" ", len(head) // 2)
        column.header = head if middle < 0 else f"{head[:middle]}\n{head[middle + 1 :]}"
    for k, row in enumerate(table.rows):
        cells = (str(list(column.cells)[k]).replace(" (", "\n(", 1) for column in table.columns)
        Table.add_row(folded, *map(Text, cells), style=row.style)
    return folded
