"""The table of a run's compressed students."""

from typing import Any

from rich.console import Console

from halfstep.cli.columns import Columns, print_wide
from halfstep.evaluation.intervals import Interval
from halfstep.report.numbers import big, percent


def print_compressed(console: Console, found: dict[str, Any]) -> None:
    """What each variant costs and loses beside its student."""
    rows = [row for row in found["rows"] if row.get("compressed")]
    if not rows:
        return
    table = Columns(
        "", "bytes", "zeros", "/ student", "rmse to student", "ms, batch 1", "ms, batch 64"
    )
    for row in rows:
        own, cost = row["compressed"], row["cost"]
        seconds = cost["seconds_per_sample"] if cost else {}
        table.add_row(
            row["name"],
            big(own["bytes"], "B"),
            percent(own["zeroed"]).lstrip("+"),
            str(Interval(**own["ratio"])) if own["ratio"] else "",
            str(Interval(**own["rmse"])) if own["rmse"] else "",
            *(f"{1000 * seconds[b]:.3g}" if b in seconds else "" for b in ("1", "64")),
            style="bold green" if row["who"] == "student" else "",
        )
    print_wide(console, table)
