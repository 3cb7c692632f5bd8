"""The four tiles at the head of a page: steps kept, ratio, times faster, training cost."""

from dataclasses import dataclass

from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.report_data import AnyReport, EncoderReport, Report, Row, RunSummary
from halfstep.evaluation.setups import plural
from halfstep.evaluation.verdicts import good_enough, tolerance_test
from halfstep.report.words.numbers import big, DASH, ends, exact, figure, places, seconds


@dataclass(frozen=True)
class Tile:
    """A number, its name, and a line of small print."""

    name: str
    value: str
    under: str


def tiles(report: AnyReport) -> list[Tile]:
    """The tiles of a report; a dash for numbers that were not measured."""
    if isinstance(report, EncoderReport):
        return _of_encoders(report)
    row = chosen(report)
    return [
        _steps(report),
        _ratio(report, row),
        _faster(report.teacher, row),
        _training(report.run),
    ]


def chosen(report: Report) -> Row | None:
    """The student of the tiles: the fewest steps that are good enough, else the best ratio."""
    kept = [row for row in report.students if good_enough(report, row) == "yes"]
    if kept:
        return min(kept, key=lambda row: row.steps)
    ratios = [
        (ratio.value, -row.steps, row)
        for row in report.students
        if (ratio := tolerance_test(report, row).ratio)
    ]
    last = report.students[-1] if report.students else None
    return min(ratios, key=lambda entry: entry[:2])[2] if ratios else last


def _steps(report: Report) -> Tile:
    answers = {good_enough(report, row): row for row in report.students}
    full = f"of the teacher's {report.teacher.steps:,}"
    kept = answers.get("yes")
    if kept is not None:
        value, under = f"{kept.steps:,}", full
    elif "poor teacher" in answers:
        value, under = DASH, "the teacher is poor"
    elif "cannot tell" in answers:
        value, under = "?", "too few samples to tell"
    elif "no" in answers:
        value, under = "none", full
    else:
        value, under = DASH, "no tolerance was set" if "no tolerance" in answers else "not measured"
    return Tile("steps kept", value, under)


def _ratio(report: Report, row: Row | None) -> Tile:
    name = "times the teacher's distance"
    test = tolerance_test(report, row) if row else None
    if row is None or test is None or test.ratio is None:
        return Tile(name, DASH, "not measured")
    if test.guided:
        name = "times the guided teacher's distance"
    limit = "" if test.limit is None else f", tolerance {exact(test.limit)}"
    return Tile(
        name, figure(test.ratio.value, 2), f"{ends(test.ratio, 2)} at {plural(row.steps)}{limit}"
    )


def _faster(teacher: Row, row: Row | None) -> Tile:
    if row is None:
        return Tile("times faster", DASH, "not measured")
    before, after = (r.cost.seconds_per_sample if r.cost else {} for r in (teacher, row))
    if both := sorted(set(before) & set(after)):
        batch = both[-1]
        under = f"at {plural(row.steps)}, {seconds(after[batch])} a sample"
        return Tile("times faster", _times(before[batch] / after[batch]), under)
    under = f"{row.calls:,} of {teacher.calls:,}; time was not measured"
    return Tile("times fewer network calls", _times(teacher.calls / row.calls), under)


def _training(run: RunSummary) -> Tile:
    cost = run.cost.halvings if run.cost else None
    if cost is None:
        return Tile("training", DASH, "not recorded")
    under = f"{cost.updates:,.0f} updates, {big(cost.forwards)} forwards"
    return Tile("training", seconds(cost.seconds), under)


def _of_encoders(report: EncoderReport) -> list[Tile]:
    rows, full = report.reconstruction.rows, report.reconstruction.full
    students = [row for row in rows if row.role == "student"]
    last = min(students or rows[:1], key=lambda row: row.steps)
    teacher = rows[0].full if rows[0].role == "teacher" else None
    steps = f"{last.steps:,}" if students else DASH
    return [
        Tile("steps to encode", steps, f"of the teacher's {full:,}"),
        _error(last.full, teacher if students else None),
        Tile("times fewer network calls", _times(full / last.steps), f"{last.steps:,} of {full:,}"),
        _training(report.run),
    ]


def _error(error: Interval, teacher: Interval | None) -> Tile:
    decimals = places([error.value])
    beside = "" if teacher is None else f"; the teacher's {figure(teacher.value, decimals)}"
    return Tile(
        "error of images back", figure(error.value, decimals), ends(error, decimals) + beside
    )


def _times(value: float) -> str:
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
