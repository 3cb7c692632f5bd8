"""`halfstep evaluate` of runs with networks of several sizes: what is measured beside, and the table."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from halfstep import files
from halfstep.cli.columns import Columns, print_wide
from halfstep.cli.judging import students_of
from halfstep.cli.progress import say
from halfstep.errors import ConfigError
from halfstep.evaluation.intervals import Interval
from halfstep.evaluation.setups import counted, Evaluation
from halfstep.methods.shrink import SHRUNK
from halfstep.pipeline import Pipeline
from halfstep.report.numbers import big, seconds
from halfstep.report.sizes import sizes
from halfstep.training.run_folder import RunFolder

FEW = (16, 8, 4)
"""Steps at which two teachers are compared where no student says which."""
Other = tuple[str, Pipeline, int]


def others_of(
    kept: RunFolder,
    teacher: Pipeline,
    students: Sequence[Pipeline],
    asked: Evaluation,
    beside: Sequence[Path],
    net: str | None,
) -> list[Other]:
    """(name, pipeline, steps) of the networks of other sizes that belong to the picture."""
    found, shrunk = list[Other](), kept.stage(SHRUNK, net=net)
    if shrunk is not None:
        halved = [len(one.times[0]) - 1 for one in students if (kept.folder / _stage(one)).exists()]
        for steps in [asked.full, *counted(halved, asked)] if halved else FEW:
            found.append((SHRUNK, shrunk, steps))
        if not halved:
            found += [("teacher, ddim", teacher, steps) for steps in FEW]
    for folder in beside:
        found += _students_of(folder, kept, asked, net)
    return found


def _stage(student: Pipeline) -> Path:
    return Path("stages") / f"{len(student.times[0]) - 1:04d}-steps"


def _students_of(
    folder: Path, kept: RunFolder, asked: Evaluation, net: str | None
) -> Iterator[Other]:
    """The students of another run, refused unless they have the same teacher."""
    other = RunFolder.open(folder)
    if other.options.get("teacher") != kept.options.get("teacher"):
        raise ConfigError(
            f"'{folder}' was made from another teacher than '{kept.folder}', and only students of one can "
            "be seen beside each other: compare what was measured of both with --compare"
        )
    name = folder.name or files.name_of(folder)
    for student in students_of(other, net):
        steps = len(student.times[0]) - 1
        if not asked.counts or steps in asked.counts:
            yield name, student, steps


def print_sizes(console: Console, found: dict[str, Any]) -> None:
    """Quality against what a sample costs, of networks of several sizes; nothing of one size alone."""
    if "reconstruction" in found or not (lines := sizes(found)):
        return
    table = Columns(
        "", "parameters", "calls", "multiply-adds", "a sample", "Fréchet distance", "best"
    )
    for line in lines:
        table.add_row(
            line.name,
            f"{line.parameters:,}",
            str(line.calls),
            big(line.multiply_adds),
            seconds(line.seconds),
            f"{line.frechet['value']:.3f}",
            "yes" if line.front else "",
            style="bold green" if line.who == "student" else "",
        )
    print_wide(console, table)
    for row in found["rows"]:
        if over := row.get("student_over_it"):
            say(console, "smaller", f"{Interval(**over)} times the distance of {row['name']}")
    say(console, "best", "nothing measured has a lower distance for as few multiply-adds")
