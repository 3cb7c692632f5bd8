"""What is measured of runs, as tables in the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from halfstep.cli.columns import Columns, print_wide
from halfstep.cli.judging import read_evidence
from halfstep.cli.progress import say
from halfstep.cli.reconstructing import reconstruction_table, refuse_reconstruction
from halfstep.errors import ConfigError
from halfstep.evaluation.comparable import Measured
from halfstep.evaluation.intervals import Interval


def print_rows(console: Console, found: dict[str, Any]) -> None:
    """The table: every way of sampling, with intervals, and the floor under all of them."""
    if "reconstruction" in found:
        return print_wide(console, reconstruction_table(found["reconstruction"]))
    table = Columns("", "calls", "Fréchet distance", "/ teacher", "rmse to teacher")
    for row in found["rows"]:
        ratio, same = row["ratio"], row["fidelity"]
        table.add_row(
            row["name"],
            str(row["calls"]),
            str(Interval(**row["distances"]["frechet_distance"])),
            str(Interval(**ratio)) if ratio else "",
            str(Interval(**same["rmse"])) if same else "",
            style={"student": "bold green", "baseline": "dim"}.get(row["who"], ""),
        )
    print_wide(console, table)
    floor, n = found["measure"]["floor"], found["measure"]["samples"]
    say(console, "floor", f"{floor:.3f} is what {n:,} perfect samples would score")


def print_guided(console: Console, guided: dict[str, Any]) -> None:
    """The students against the guided teacher, a block for every scale."""
    table = Columns("", "guidance", "calls", "to guided teacher", "/ its own", "rmse")
    for row in guided["rows"]:
        ratio, rmse = row["times_floor"], row["rmse"]
        table.add_row(
            row["name"],
            f"{row['guidance']:g}",
            str(row["calls"]),
            str(Interval(**row["distance"])),
            str(Interval(**ratio)) if ratio else "",
            str(Interval(**rmse)) if rmse else "",
            style="bold green" if row["who"] == "student" else "",
        )
    print_wide(console, table)
    n = guided["reference"]["samples"]
    say(console, "read", f"Fréchet distance to {n:,} samples of the guided teacher, of other noise")


def compare(console: Console, folders: Sequence[Path]) -> int:
    """Students of several runs at equal calls, the first run's the measure."""
    if len(folders) < 2:
        raise ConfigError("--compare takes two runs or more: write --compare RUN_A RUN_B")
    found = [read_evidence(folder)[0] for folder in folders]
    for folder, one in zip(folders, found, strict=True):
        refuse_reconstruction(one, str(folder))
    teachers = [_measured(one, one["rows"][0]) for one in found]
    for teacher in teachers:  # before anything is said, and where no two students meet
        teacher.check_comparable(teachers[0])
    students = [_students(one) for one in found]
    table = Columns("calls", *map(str, folders))
    for count in sorted({count for one in students for count in one}, reverse=True):
        table.add_row(str(count), *_cells([one.get(count) for one in students]))
    table.add_row("teacher", *_cells(teachers))
    print_wide(console, table)
    say(console, "read", "Fréchet distance (interval) = its ratio to the first run's")
    return 0


def _cells(cells: Sequence[Measured | None]) -> list[str]:
    """The first as it is, each other with its ratio to the first, if that is surely above 0."""
    first, said = cells[0], []
    for k, cell in enumerate(cells):
        if cell is None:
            said.append("-")
        elif k == 0 or first is None:
            said.append(str(cell.interval))
        elif min(first.interval.low, first.interval.value) <= 0:
            said.append(f"{cell.interval} = ? x")
        else:
            said.append(f"{cell.interval} = {cell.over(first)} x")
    return said


def _students(found: dict[str, Any]) -> dict[int, Measured]:
    """By network calls."""
    rows = [row for row in found["rows"] if row["who"] == "student"]
    return {row["calls"]: _measured(found, row) for row in rows}


def _measured(found: dict[str, Any], row: dict[str, Any]) -> Measured:
    """A row's distance, and how it was measured."""
    how = found["measure"]
    return Measured(
        Interval(**row["distances"]["frechet_distance"]),
        "Fréchet distance",
        how["features"],
        how["digest"],
        how["preprocessing"],
        how["samples"],
        how["data"],
        how["real"],
        how["floor"],
        how.get("guidance", 1.0),
    )
