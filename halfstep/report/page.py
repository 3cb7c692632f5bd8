"""RUN/report.html: a report as one self-contained page, for screen, phone and paper."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from pathlib import Path

from halfstep.errors import DataError
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.drift import Drift
from halfstep.evaluation.report_data import AnyReport, Report, Row
from halfstep.evaluation.standing import StudentVerdict
from halfstep.evaluation.verdicts import best_baseline, decisive_ratio, verdicts
from halfstep.report.guided_table import guided_pictures, guided_view
from halfstep.report.images.grids import sheets
from halfstep.report.plots.figures import figures, without_figures
from halfstep.report.plots.sizes import sizes
from halfstep.report.plots.svg import COLOURS
from halfstep.report.templates import template, write_page
from halfstep.report.words import numbers, verdict as words
from halfstep.report.words.headline import summarised
from halfstep.report.words.tiles import tiles
from halfstep.schema import plain

LIMIT = 5_000_000
MEASURES = {
    "frechet_distance": "Fréchet distance",
    "frechet_unbiased": "Fréchet distance, endless samples",
    "kernel_distance": "kernel distance",
    "inception_score": "Inception score",
    "precision": "precision",
    "recall": "recall",
}


def write(report: AnyReport, path: Path) -> Path:
    """Write the page, without scripts, and return its path.

    Deterministic to the byte.  `DataError` for numbers that are not finite, `ConfigError` for a page of 5 MB
    or more.
    """
    instead = "give it fewer pictures or a shorter configuration"
    return write_page(path, render(report), limit=LIMIT, name="the report", instead=instead)


def render(report: AnyReport) -> str:
    """The page as text; values that are None are omitted."""
    refuse_not_finite(report)
    if not report.headline:
        report = summarised(report)
    page = partial(
        template("page.html.j2").render,
        report=report,
        figures=figures(report),
        without_figures=without_figures(),
        sheets=sheets(report.pictures),
        config=list(_flat(report.run.config)),
        made=asdict(report.provenance),
        colours=COLOURS,
        words=words,
        tiles=tiles(report),
        dash=numbers.DASH,
    )
    if not isinstance(report, Report):
        return page(encoders=True, guided=None, cautions=[], alarms=[])
    students, rows = report.students, _rows(report)
    measured = [name for name in MEASURES if any(getattr(row.distances, name) for row in rows)]
    return page(
        encoders=False,
        full=report.teacher,
        students=students,
        rows=rows,
        alarms=_alarms(students),
        cautions=words.too_few_samples(report),
        comparison=[
            _student_line(report, row, answer)
            for row, answer in zip(students, report.verdicts or verdicts(report), strict=True)
        ],
        places={name: _places(rows, name) for name in MEASURES},
        measures={name: MEASURES[name] for name in measured},
        guided=guided_view(report.guided),
        sizes=sizes(report),
        smaller=_smaller(report),
        compressed=_compressed(report),
        slider=guided_pictures(report.pictures) is not None,
        drift=_drift(students),
        cost=_cost(rows, report.teacher),
    )


def _smaller(report: Report) -> list[str]:
    """Sentences that compare the students with those of another network at as many steps."""
    by: dict[str, list[str]] = {}
    for row in report.rows:
        if row.student_ratio and row.network:
            ratio = f"{numbers.interval(row.student_ratio, 2)} at {numbers.calls(row.calls)}"
            by.setdefault(row.network, []).append(ratio)
    return [
        f"Fréchet distance of the students over that of {name} at as many steps: {', '.join(ratios)}."
        for name, ratios in by.items()
    ]


def refuse_not_finite(report: AnyReport) -> None:
    """Raise `DataError` for numbers that are not finite."""
    for where, value in _flat(plain(report)):
        if isinstance(value, float) and not isfinite(value):
            raise DataError(
                f"the report has {where} = {value}, which is not finite: write None for what was not measured"
            )


def _flat(tree: object, at: str = "") -> Iterator[tuple[str, object]]:
    """(name, value) of each leaf of nested dicts and lists, with names like "rows[2].ratio.low".

    A list of finite plain values is one leaf, written as JSON.
    """
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flat(value, f"{at}.{key}" if at else str(key))
    elif not isinstance(tree, list | tuple):
        yield at, tree
    elif all(_plain(x) for x in tree):
        yield at, json.dumps(tree, ensure_ascii=False)
    else:
        for k, value in enumerate(tree):
            yield from _flat(value, f"{at}[{k}]")


def _plain(x: object) -> bool:
    if isinstance(x, float):
        return isfinite(x)
    return x is None or isinstance(x, str | int)


def _rows(report: Report) -> list[Row]:
    """The rows of teacher, baselines, students and compressed students."""
    baselines, compressed = report.rows_of("baseline"), report.rows_of("compressed")
    return [*report.rows_of("teacher"), *baselines, *report.students, *compressed]


def _compressed(report: Report) -> list[Row]:
    """Each compressed student, followed by its variants."""
    variants = report.rows_of("compressed")
    rows = list[Row]()
    for student in report.students:
        if student.compressed:
            rows.append(student)
            rows += [
                row for row in variants if row.compressed and row.compressed.student == student.name
            ]
    return rows


def _alarms(students: Sequence[Row]) -> list[str]:
    """A sentence for each student with a drift alarm."""
    sentences = []
    for row in students:
        if alarms := "; ".join(drift.alarm for drift in row.drift or () if drift.alarm):
            sentences.append(f"Drift at {numbers.calls(row.calls)}: {alarms}.")
    return sentences


@dataclass(frozen=True)
class StudentLine:
    """A student and the best baselines with at most as many calls, several if they tie.

    less_floor  ratio to the teacher with the sampling floor subtracted from both; None if the teacher's
                distance is not above the floor
    """

    row: Row
    distance: Interval
    baselines: Sequence[Row]
    baseline_ratio: Interval | None
    ratio: Interval | None
    difference: float
    less_floor: float | None
    good: str
    better: str


def _student_line(report: Report, row: Row, answer: StudentVerdict) -> StudentLine:
    distance, teacher = row.distances.frechet_distance, report.teacher.distances.frechet_distance
    floor = report.measure.floor
    above = teacher.value > floor
    return StudentLine(
        row=row,
        distance=distance,
        baselines=words.rivals(report, row),
        baseline_ratio=best.ratio if (best := best_baseline(report, row)) else None,
        ratio=decisive_ratio(report, row),
        difference=distance.value - teacher.value,
        less_floor=(distance.value - floor) / (teacher.value - floor) if above else None,
        good=words.GOOD_WORDS[answer.good_enough],
        better=words.BETTER_WORDS[answer.better],
    )


@dataclass(frozen=True)
class DriftTable:
    """Drift by measure (rows) and student (columns)."""

    students: Sequence[Row]
    table: Mapping[str, Sequence[Drift | None]]


def _drift(students: Sequence[Row]) -> DriftTable | None:
    drifts = [(row, {drift.measure: drift for drift in row.drift}) for row in students if row.drift]
    names = dict.fromkeys(name for _, by in drifts for name in by)
    table = {name: [by.get(name) for _, by in drifts] for name in names}
    return DriftTable([row for row, _ in drifts], table) if drifts else None


@dataclass(frozen=True)
class CostLine:
    """A row with cost; `faster` is its speedup over the teacher at the largest batch."""

    row: Row
    faster: float | None


@dataclass(frozen=True)
class CostTable:
    """The cost of sampling.

    students  students, their variants and the teacher
    batches   batch sizes of the timings
    timed     whether the teacher has a timing, to compute speedups
    """

    students: Sequence[CostLine]
    baselines: Sequence[CostLine]
    batches: Sequence[int]
    timed: bool


def _cost(rows: Sequence[Row], full: Row) -> CostTable | None:
    batches = sorted({b for row in rows if row.cost for b in row.cost.seconds_per_sample})

    def time(row: Row) -> float | None:
        return row.cost.seconds_per_sample.get(batches[-1]) if row.cost and batches else None

    slow, students, baselines = time(full), list[CostLine](), list[CostLine]()
    for row in rows:
        if row.cost:
            faster = slow / seconds if slow and (seconds := time(row)) else None
            (baselines if row.role == "baseline" else students).append(CostLine(row, faster))
    timed = slow is not None
    return CostTable(students, baselines, batches, timed) if students or baselines else None


def _places(rows: Sequence[Row], name: str) -> int:
    distances = (getattr(row.distances, name) for row in rows)
    return numbers.places(distance.value for distance in distances if distance)
