"""The rows of the page's tables: students beside baselines, drift, costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.drift import Drift
from halfstep.evaluation.report_data import Report, Row
from halfstep.evaluation.standing import StudentVerdict
from halfstep.evaluation.verdicts import best_baseline, decisive_ratio, ratio_less_floor
from halfstep.report.words import verdict as words


def sampled_rows(report: Report) -> list[Row]:
    """The rows of teacher, baselines, students and compressed students."""
    baselines, compressed = report.rows_of("baseline"), report.rows_of("compressed")
    return [*report.rows_of("teacher"), *baselines, *report.students, *compressed]


def compressed_rows(report: Report) -> list[Row]:
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


@dataclass(frozen=True)
class StudentLine:
    """A student and the best baselines with at most as many calls, several if they tie.

    less_floor  ratio to the teacher with the sampling floor subtracted from both; None if the teacher's
                distance is not surely above the floor, or the floor is unknown
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


def student_line(report: Report, row: Row, answer: StudentVerdict) -> StudentLine:
    distance, teacher = row.distances.frechet_distance, report.teacher.distances.frechet_distance
    return StudentLine(
        row=row,
        distance=distance,
        baselines=words.rivals(report, row),
        baseline_ratio=best.ratio if (best := best_baseline(report, row)) else None,
        ratio=decisive_ratio(report, row),
        difference=distance.value - teacher.value,
        less_floor=ratio_less_floor(report, row),
        good=words.GOOD_WORDS[answer.good_enough],
        better=words.BETTER_WORDS[answer.better],
    )


@dataclass(frozen=True)
class DriftTable:
    """Drift by measure (rows) and student (columns)."""

    students: Sequence[Row]
    table: Mapping[str, Sequence[Drift | None]]


def drift_table(students: Sequence[Row]) -> DriftTable | None:
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


def cost_table(rows: Sequence[Row], full: Row) -> CostTable | None:
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
