"""`halfstep runs DIR`: list the runs in a folder."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console

from halfstep.cli.console.columns import Columns, print_wide
from halfstep.cli.console.progress import say, span, terminal
from halfstep.cli.parse import parse
from halfstep.config.fields import POSITIONAL
from halfstep.workflows.runs import list_runs, REFRESH, RunRow, write_runs_page


@dataclass(frozen=True, kw_only=True)
class RunsOptions:
    """List the runs in a folder: method, steps kept, ratio to the teacher, state, time left."""

    folder: Annotated[Path, POSITIONAL]
    """The folder that the runs are in; folders in it are searched too."""
    html: bool = False
    """Also write FOLDER/runs.html, a page that links every report."""
    watch: bool = False
    """List the runs again every ten seconds, until none is running."""


def main(argv: Sequence[str]) -> int:
    """Print the table, again and again with --watch; write the page."""
    console = terminal()
    options = parse(RunsOptions, argv, prog="halfstep runs")
    while True:
        rows = list_runs(options.folder)
        print_runs(console, rows)
        page = write_runs_page(rows, options.folder) if options.html else None
        if not (options.watch and any(row.state == "running" for row in rows)):
            break
        time.sleep(REFRESH)
        console.print()
    if page is not None:
        say(console, "page", page)
    say(console, "next", next_command(rows, options.folder))
    return 0


def print_runs(console: Console, rows: Sequence[RunRow]) -> None:
    """Print a row a run, and a sentence for each damaged one."""
    heads = "run", "method", "steps kept", "ratio to teacher", "state", "time left"
    table = Columns(*heads, words=("method", "state"))
    for row in rows:
        left = "" if row.seconds_left is None else span(row.seconds_left)
        done = "" if row.state in ("finished", "damaged") else f" {int(100 * row.done)} %"
        table.add_row(
            row.name,
            row.method.partition(" ")[2] or row.method,
            "" if row.steps is None else row.steps,
            "" if row.ratio is None else row.ratio,
            f"{row.state}{done}",
            "" if row.state in ("finished", "damaged") else left,
        )
    print_wide(console, table)
    for row in rows:
        if row.damage:
            say(console, "damaged", row.damage)


def next_command(rows: Sequence[RunRow], folder: Path) -> str:
    """The command to type next: evaluate a finished run, go on with a stopped one, or export a student.

    Of a teacher alone, halve its steps.
    """
    students = [row for row in rows if row.steps is not None and row.state == "finished"]
    stopped = [row for row in rows if row.state == "stopped"]
    for row in students:
        if row.report is None:
            return f"halfstep evaluate {shlex.quote(str(row.folder))}"
    for row in stopped:
        if (config := row.folder / "config.toml").exists():
            return f"halfstep {row.method} --config {shlex.quote(str(config))}"
    if any(row.state == "running" for row in rows):
        return f"halfstep runs {shlex.quote(str(folder))} --watch"
    for row in students:
        out = shlex.quote(str(row.folder))
        return f"halfstep export {out} --out {out}-{row.steps}-steps"
    teachers = [row.folder for row in rows if row.method == "train denoiser"]
    teacher = shlex.quote(str(teachers[0])) if teachers else "TEACHER"
    return f"halfstep distill progressive --teacher {teacher} --data DATA --start 64 --out STUDENT"
