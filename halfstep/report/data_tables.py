"""Numbers of tables and figures as CSV and JSON, in full precision."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO

from halfstep.evaluation.metrics.bootstrap import Interval

Value = str | int | float | bool | None
Rows = Sequence[Mapping[str, Value]]
"""Rows of named values."""


def spread(name: str, interval: Interval | None) -> dict[str, Value]:
    """An interval as three columns NAME, NAME_low and NAME_high; None where it was not measured."""
    value, low, high = (interval.value, interval.low, interval.high) if interval else (None,) * 3
    return {name: value, f"{name}_low": low, f"{name}_high": high}


@dataclass(frozen=True)
class DataTable:
    """The numbers of a table or a figure; `name` is that of its files, without suffix."""

    name: str
    rows: Rows

    @property
    def columns(self) -> list[str]:
        """The names of all columns in the order of their appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    @property
    def csv(self) -> str:
        """Comma-separated values with a header; a value that is None is empty."""
        file = StringIO()
        writer = csv.DictWriter(file, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return file.getvalue()

    @property
    def json(self) -> str:
        """A list of objects; a value that is None is null."""
        return json.dumps(list(self.rows), ensure_ascii=False, separators=(",", ":"))
