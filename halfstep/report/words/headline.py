"""The headline: the result of a report in at most 12 words."""

from collections.abc import Sequence
from dataclasses import replace
from typing import overload

from halfstep.evaluation.metrics.reconstruction import sentence
from halfstep.evaluation.report_data import AnyReport, EncoderReport, EncoderRow, Report, Row
from halfstep.evaluation.setups import plural
from halfstep.evaluation.standing import StudentVerdict
from halfstep.evaluation.verdicts import AT, floor_multiple, is_poor, tolerance_test, verdicts
from halfstep.report.words.numbers import figure, listed, places
from halfstep.report.words.verdict import verdict

MOST_WORDS = 12
"""The longest headline."""


@overload
def summarised(report: Report) -> Report: ...
@overload
def summarised(report: EncoderReport) -> EncoderReport: ...
def summarised(report: AnyReport) -> AnyReport:
    """The report with its headline, its sentence and its verdicts."""
    if isinstance(report, EncoderReport):
        rows = report.reconstruction.rows
        return replace(report, headline=encoder_headline(rows), verdict=sentence(rows))
    return replace(
        report, headline=headline(report), verdict=verdict(report), verdicts=verdicts(report)
    )


def headline(report: Report) -> str:
    """Such as "8 steps keep the quality of 64; 1 step does not"."""
    if is_poor(report):
        times = floor_multiple(report) or 0.0
        return (
            f"The teacher is poor: {figure(times, 0)} times the distance of {AT:,} perfect samples"
        )
    students = list(zip(report.students, verdicts(report), strict=True))
    if not students:
        return "Only the teacher was measured; the run has no student"
    if all(answer.good_enough == "not measured" for _, answer in students):
        return "Nothing is decided: no ratio to the teacher was measured"
    if all(answer.good_enough in ("not measured", "no tolerance") for _, answer in students):
        return _without_tolerance(report)
    return _with_tolerance(report, students)


def encoder_headline(rows: Sequence[EncoderRow]) -> str:
    """The error of the encoder of the fewest steps; the teacher's without a student."""
    last = min((r for r in rows if r.role == "student"), key=lambda r: r.steps, default=rows[0])
    error = figure(last.full.value, places([last.full.value], digits=2))
    who = "" if last.role == "student" else "the teacher's "
    return f"Encoded in {who}{plural(last.steps)}, images come back within {error}"


def _with_tolerance(report: Report, students: list[tuple[Row, StudentVerdict]]) -> str:
    full = report.teacher.steps
    kept = [row for row, answer in students if answer.good_enough == "yes"]
    if kept:
        best = min(kept, key=lambda row: row.steps)
        text = f"{plural(best.steps)} {_keep(best.steps)} the quality of {full}"
        fewer = [(row, answer) for row, answer in students if row.steps < best.steps]
        return text + (_clause(*fewer[0]) if fewer else "")
    unsure = [row for row, answer in students if answer.good_enough == "cannot tell"]
    if unsure:
        samples = f"{tolerance_test(report, unsure[0]).samples:,} samples"
        return f"{samples} are too few to tell whether {plural(unsure[0].steps)} {_suffice(unsure[0].steps)}"
    return f"No student keeps the quality of {plural(full)}"


def _clause(row: Row, answer: StudentVerdict) -> str:
    one = row.steps == 1
    if answer.good_enough == "no":
        return f"; {plural(row.steps)} {'does' if one else 'do'} not"
    if answer.good_enough == "cannot tell":
        return f"; {plural(row.steps)} {'is' if one else 'are'} undecided"
    return ""


def _without_tolerance(report: Report) -> str:
    tests = [(row, tolerance_test(report, row)) for row in report.students]
    values = [(test.ratio.value, -row.steps, test.guided) for row, test in tests if test.ratio]
    least = figure(min(values)[0], 2)
    tied = [f"{-steps}" for value, steps, _ in values if figure(value, 2) == least]
    which = f"{listed(tied)} step{'s' if tied != ['1'] else ''}"
    if values[0][2]:
        of = "distance" if tied[1:] else "distance from itself"
        return f"{which}: at most {least} times the guided teacher's {of}"
    said = "" if tied[1:] else "; no tolerance was set"
    return f"{which}: {least} times the teacher's distance{said}"


def _keep(steps: int) -> str:
    return "keeps" if steps == 1 else "keep"


def _suffice(steps: int) -> str:
    return "suffices" if steps == 1 else "suffice"
