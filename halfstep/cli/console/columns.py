"""Tables in the terminal, as wide as their numbers; names from files are printed as text."""

from collections.abc import Collection
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from halfstep.errors import printable


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


def print_wide(console: Console, table: Table) -> None:
    """Print a table at its full width, even if the terminal is narrower."""
    width = console.width
    endless = console.options.update(width=10_000)
    console.width = max(width, console.measure(table, options=endless).maximum)
    console.print(table)
    console.width = width
