"""Tables in the terminal: names from files are text in them, and no digit is lost."""

from typing import Any

from rich.console import Console
from rich.table import Table

from halfstep.errors import printable


class Columns(Table):
    """What rows are called to the left, numbers to the right."""

    def __init__(self, *heads: str):
        super().__init__(box=None, pad_edge=False, collapse_padding=True)
        for k, head in enumerate(heads):
            self.add_column(printable(head), justify="right" if k else "left", no_wrap=True)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """With nothing in its cells that a terminal would obey."""
        super().add_row(*(printable(str(cell)) for cell in cells), **options)


def print_wide(console: Console, table: Table) -> None:
    """At its own width: lines that are longer than the terminal's lose no digit."""
    width = console.width
    endless = console.options.update(width=10_000)
    console.width = max(width, console.measure(table, options=endless).maximum)
    console.print(table)
    console.width = width
