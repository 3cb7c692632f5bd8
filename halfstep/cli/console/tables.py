"""Reports as tables in the terminal."""

from pathlib import Path

from rich.console import Console

from halfstep.cli.console.columns import Columns, print_wide, say_words
from halfstep.cli.console.progress import say, span
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.report_data import (
    AnyReport,
    GuidedTable,
    Measurement,
    Reconstruction,
    Report,
    Row,
)
from halfstep.evaluation.verdicts import ratio_less_floor
from halfstep.report.plots.figures import without_figures
from halfstep.report.plots.sizes import sizes
from halfstep.report.words.numbers import big, percent, real_images, seconds

STYLES = {"student": "bold green", "baseline": "dim"}


def print_report(console: Console, report: AnyReport) -> None:
    """All tables of a report."""
    if not isinstance(report, Report):
        return print_wide(console, reconstruction_table(report.reconstruction))
    print_rows(console, report)
    print_sizes(console, report)
    print_compressed(console, report)
    if report.guided:
        print_guided(console, report.guided)


def say_report(console: Console, page: Path) -> None:
    """Print the path of a report's page, and the line that installs what its figures lack."""
    say(console, "report", page)
    if lacking := without_figures():
        say(console, "figures", f"{lacking}, then halfstep report {page.parent}")


def print_rows(console: Console, report: Report) -> None:
    """Print a row for each network and sampler, with intervals, and the sampling floor."""
    table = Columns("", "calls", "Fréchet distance", "/ teacher", "rmse to teacher")
    for row in report.rows:
        table.add_row(
            row.name,
            str(row.calls),
            str(row.distances.frechet_distance),
            _cell(row.ratio),
            _cell(row.fidelity.rmse if row.fidelity else None),
            style=STYLES.get(row.role, ""),
        )
    print_wide(console, table)
    say(console, "against", real_images(report.measure))
    _say_floor(
        console,
        report.measure,
        f"{report.measure.samples:,} perfect samples would score on average",
    )


def _say_floor(console: Console, measure: Measurement, whose: str) -> None:
    """Say the floor and its note."""
    if measure.floor or not measure.floor_note:
        say(console, "floor", f"{measure.floor:.3f} is what {whose}")
    if measure.floor_note:
        say_words(console, "" if measure.floor else "floor", measure.floor_note)


def print_guided(console: Console, guided: GuidedTable) -> None:
    """Print the students against the guided teacher, a block for every scale."""
    table = Columns("", "guidance", "calls", "to guided teacher", "/ its own", "rmse")
    for row in guided.rows:
        table.add_row(
            row.name,
            f"{row.guidance_scale:g}",
            str(row.calls),
            str(row.distance),
            _cell(row.floor_ratio),
            _cell(row.rmse),
            style=STYLES.get(row.role, ""),
        )
    print_wide(console, table)
    n = guided.reference.samples
    say(console, "read", f"Fréchet distance to {n:,} samples of the guided teacher, of other noise")


def print_demo(console: Console, report: Report) -> None:
    """Print the students of the demo, each above the teacher's samplers at about as many calls."""
    full = report.teacher.distances.frechet_distance.value
    table = Columns("", "calls", "Fréchet", "- teacher", "/ teacher", "less floor", "rmse", "ms")

    def add(name: str, row: Row) -> None:
        assert row.cost is not None
        distance = row.distances.frechet_distance.value
        numbers = (
            f"{distance:.3f}",
            f"{distance - full:+.3f}",
            f"{distance / full:.3f}",
            "-" if (less := ratio_less_floor(report, row)) is None else f"{less:.3f}",
            f"{row.fidelity.rmse.value if row.fidelity else 0:.3f}",
            f"{1000 * row.cost.seconds_per_sample[64]:.2f}",
        )
        table.add_row(name, str(row.calls), *numbers, style=STYLES.get(row.role, ""))

    add(f"teacher, {report.teacher.steps} steps", report.teacher)
    names = {"ddim": "DDIM", "heun": "Heun", "dpmpp-2m": "DPM++"}
    fewer = [row.calls for row in report.students[1:]] + [0]
    for row, below in zip(report.students, fewer, strict=True):
        add("student", row)
        for other in report.rows:
            if other.role == "baseline" and below < other.calls <= row.calls:
                add(f"  teacher, {names[other.sampler]}", other)
    print_wide(console, table)
    _say_floor(console, report.measure, f"{report.measure.samples:,} perfect samples would score;")
    say(console, "", "'less floor' is the ratio with it taken from student and teacher")
    for name in ("teacher", "halvings"):
        if cost := getattr(report.run.cost, name):
            text = f"{cost.forwards:,} forwards, {span(cost.seconds)} of training"
            say(console, name, text)


def print_sizes(console: Console, report: Report) -> None:
    """Print quality and cost of a sample for networks of several sizes; nothing for a single size."""
    if not (lines := sizes(report)):
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
            f"{line.frechet.value:.3f}",
            "yes" if line.front else "",
            style=STYLES["student"] if line.role == "student" else "",
        )
    print_wide(console, table)
    for row in report.rows:
        if row.student_ratio:
            say(console, "smaller", f"{row.student_ratio} times the distance of {row.name}")
    say(console, "best", "nothing measured has a lower distance for as few multiply-adds")


def print_compressed(console: Console, report: Report) -> None:
    """Print size, speed and quality of each variant and its student."""
    rows = [(row, row.compressed) for row in report.rows if row.compressed]
    if not rows:
        return
    table = Columns(
        "", "bytes", "zeros", "/ student", "rmse to student", "ms, batch 1", "ms, batch 64"
    )
    for row, made in rows:
        taken = row.cost.seconds_per_sample if row.cost else {}
        table.add_row(
            row.name,
            big(made.bytes, "B"),
            percent(made.zeros).lstrip("+"),
            _cell(made.ratio),
            _cell(made.rmse),
            *(f"{1000 * taken[b]:.3g}" if b in taken else "" for b in (1, 64)),
            style=STYLES["student"] if row.role == "student" else "",
        )
    print_wide(console, table)


def reconstruction_table(reconstruction: Reconstruction) -> Columns:
    """The encoders, with their reconstruction errors."""
    table = Columns("", "calls", f"back in {reconstruction.full}", "back in as many")
    for row in reconstruction.rows:
        cells = (str(row.steps), _cell(row.full), _cell(row.same))
        table.add_row(row.name, *cells, style=STYLES.get(row.role, ""))
    return table


def _cell(interval: Interval | None) -> str:
    return "" if interval is None else str(interval)
