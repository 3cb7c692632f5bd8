"""The verdict: one sentence that says what was kept, from the numbers of RUN/report.json."""

from collections.abc import Mapping
from typing import Any, Literal

from halfstep.evaluation.gate import decide
from halfstep.evaluation.intervals import Interval
from halfstep.report.numbers import (
    calls,
    exact,
    figure,
    interval,
    Measured,
    places,
    ratio as shown,
)
from halfstep.training.gate_record import Verdict

Row = Mapping[str, Any]
"""One entry of evidence["rows"]."""
Word = Literal["within", "outside", "undecided"]
Standing = Literal["better", "not better", "undecided"]
STANDING: dict[Verdict, Word] = {
    "passed": "within", "broken": "outside", "undecided": "undecided",
}  # fmt: skip

SAMPLERS = {
    "ddim": "DDIM",
    "heun": "Heun",
    "dpmpp-2m": "DPM-Solver++(2M)",
    "ancestral": "ancestral",
    "dpmpp-3s": "DPM-Solver++ of order 3",
    "dpm-fast": "DPM-Solver-fast",
    "euler-maruyama": "Euler-Maruyama",
}


def verdict(evidence: Mapping[str, Any]) -> str:
    """What the evidence shows, in one sentence.

    A student is within the tolerance when its whole interval is, outside it when its whole interval is,
    and undecided otherwise.  Where the gate looked at more samples than the report, its ratio counts.
    """
    full, students = teacher_of(evidence), rows_of(evidence, "student")
    if full is None:
        return "No teacher was measured, so nothing can be said of what was kept."
    if not students:
        return (
            f"No student was measured; the Fréchet distance of the teacher at {calls(full['calls'])} is "
            f"{_distance(full)}."
        )
    known = [row for row in students if judged(evidence, row)]
    if not known:
        row = students[-1]
        return (
            f"Nothing is decided, as no ratio was measured: the Fréchet distance is {_distance(row)} at "
            f"{calls(row['calls'])}, the teacher's {_distance(full)} at {full['calls']}."
        )
    limit = tolerance(evidence)
    if limit is None:
        return _without_tolerance(evidence, full, known)
    return _against_tolerance(evidence, full, known, limit)


def tolerance(evidence: Mapping[str, Any]) -> float | None:
    """What the gate was asked to hold, or None."""
    gate = evidence["run"].get("gate")
    if gate is None or "guidance" in gate.get("about", {}):
        return None  # a guided student's gate holds it against its guided teacher, not the data
    found: float | None = gate.get("tolerance")
    return found


def teacher_of(evidence: Mapping[str, Any]) -> Row | None:
    """The teacher at full steps."""
    found = [row for row in evidence["rows"] if row["who"] == "teacher"]
    return max(found, key=lambda row: row["calls"], default=None)


def rows_of(evidence: Mapping[str, Any], who: str) -> list[Row]:
    """The rows of a teacher, baseline or student, most network calls first."""
    found = [row for row in evidence["rows"] if row["who"] == who]
    return sorted(found, key=lambda row: -row["calls"])


def frechet(row: Row) -> Measured | None:
    """Its Fréchet distance to the data, or None if it has none."""
    found: Measured | None = row["distances"].get("frechet_distance")
    return found


def best_baseline(evidence: Mapping[str, Any], limit: int) -> Row | None:
    """The undistilled teacher that comes nearest to the data in not more than `limit` network calls."""
    found = [(d["value"], row) for row in rows_of(evidence, "baseline") if (d := frechet(row))]
    fitting = [(value, row) for value, row in found if row["calls"] <= limit]
    return min(fitting, key=lambda pair: (pair[0], pair[1]["calls"]), default=(0.0, None))[1]


def judged(evidence: Mapping[str, Any], row: Row) -> Measured | None:
    """The student's Fréchet distance over its teacher's: the gate's where that saw more samples."""
    more = [one for one in _looks(evidence, row) if one["samples"] > evidence["measure"]["samples"]]
    best = max(more, key=lambda one: one["samples"], default=None)
    found: Measured | None = best["ratio"] if best else row.get("ratio")
    return found


def _looks(evidence: Mapping[str, Any], row: Row) -> list[Mapping[str, Any]]:
    """What the gate saw of this student, if it measured as the report did."""
    gate, measure, full = (
        evidence["run"].get("gate") or {},
        evidence["measure"],
        teacher_of(evidence),
    )
    about = gate.get("about") or {}
    same = all(
        about.get(key) == measure.get(key)
        for key in ("features", "digest", "preprocessing", "data", "samples")
    )
    if not same or full is None or about.get("noise") != measure.get("seed"):
        return []
    if about.get("full") != full["steps"] or full["sampler"] != "ddim":
        return []  # the gate's own full steps are DDIM's
    return [one for one in gate.get("tried") or [] if one["steps"] == row["steps"] and one["ratio"]]


def standing(ratio: Measured, limit: float) -> Word:
    """Where the whole interval lies, by the rule of the gate."""
    return STANDING[decide(Interval(**ratio), limit)]


def against_baseline(evidence: Mapping[str, Any], student: Row) -> Standing | None:
    """Whether it comes nearer to the data than the best baseline at not more calls; None without one.

    Intervals decide between "better" and "undecided": those of the ratios to the teacher, which are paired
    and so narrower, where both were measured.
    """
    other, own = best_baseline(evidence, student["calls"]), frechet(student)
    theirs = frechet(other) if other else None
    if other is None or own is None or theirs is None:
        return None
    if own["value"] >= theirs["value"]:
        return "not better"
    paired = student.get("ratio") and other.get("ratio")
    high = student["ratio"]["high"] if paired else own["high"]
    low = other["ratio"]["low"] if paired else theirs["low"]
    return "better" if high < low else "undecided"


def caution(evidence: Mapping[str, Any], student: Row) -> str | None:
    """A sentence where the student does not surely beat the best baseline at not more calls."""
    found, other = against_baseline(evidence, student), best_baseline(evidence, student["calls"])
    if other is None or found not in ("not better", "undecided"):
        return None
    at = calls(student["calls"])
    where = f"the undistilled teacher with {sampler(other)} at {calls(other['calls'])}"
    if found == "not better":
        return (
            f"At {at} the student does not beat {where} ({_versus(student, other)}): it is not worth "
            "having."
        )
    return (
        f"At {at} {evidence['measure']['samples']:,} samples cannot tell whether the student beats {where} "
        f"({_versus(student, other)})."
    )


def sampler(row: Row) -> str:
    """A sampler's name as its paper writes it."""
    return SAMPLERS.get(row["sampler"], str(row["sampler"]))


def _against_tolerance(
    evidence: Mapping[str, Any], full: Row, students: list[Row], limit: float
) -> str:
    by: dict[Word, list[Row]] = {"within": [], "outside": [], "undecided": []}
    for row in students:
        by[standing(_ratio(evidence, row), limit)].append(row)
    if by["within"]:
        best = by["within"][-1]
        text = (
            f"{_capital(calls(best['calls']))} {'keeps' if best['calls'] == 1 else 'keep'} the quality of "
            f"{full['calls']}: Fréchet distance {shown(_ratio(evidence, best), limit)} times the "
            f"teacher's, within the tolerance of {exact(limit)}"
        )
        fewer = [row for row in students if row["calls"] < best["calls"]]
        rest = _next(evidence, fewer[0], limit) if fewer else ""
    elif by["undecided"]:
        best = by["undecided"][0]
        text = (
            f"{_samples(evidence, best)} cannot tell whether {calls(best['calls'])} "
            f"{'keeps' if best['calls'] == 1 else 'keep'} the quality of {full['calls']}: Fréchet distance "
            f"{shown(_ratio(evidence, best), limit)} times the teacher's, the tolerance is {exact(limit)}"
        )
        rest = _next(evidence, by["outside"][0], limit) if by["outside"] else ""
    else:
        best = min(students, key=lambda row: _ratio(evidence, row)["value"])
        return (
            f"No student keeps the quality of {calls(full['calls'])} within the tolerance of {exact(limit)}: "
            f"the best of them, at {calls(best['calls'])}, has "
            f"{shown(_ratio(evidence, best), limit)} times the teacher's Fréchet "
            f"distance{_but(evidence, best)}."
        )
    return text + rest + _but(evidence, best) + "."


def _next(evidence: Mapping[str, Any], row: Row, limit: float) -> str:
    """The clause on the next student."""
    ratio, n = _ratio(evidence, row), row["calls"]
    noun = "call" if n == 1 else "calls"
    if standing(ratio, limit) == "outside":
        value = shown(ratio, limit).split(" ")[0]
        return f"; {n:,} {noun} {'does' if n == 1 else 'do'} not ({value})"
    said = _samples(evidence, row)
    return f"; of {n:,} {noun} {said} cannot tell: {shown(ratio, limit)}"


def _without_tolerance(evidence: Mapping[str, Any], full: Row, students: list[Row]) -> str:
    best = min(students, key=lambda row: _ratio(evidence, row)["value"])
    last = students[-1]
    text = (
        f"{_capital(calls(best['calls']))} {_has(best)} {shown(_ratio(evidence, best))} times the "
        f"Fréchet distance of the teacher's {full['calls']}"
    )
    if last is not best:
        text += f", {calls(last['calls'])} {shown(_ratio(evidence, last))} times"
    return f"{text}{_but(evidence, best)}; no tolerance was set."


def _but(evidence: Mapping[str, Any], student: Row) -> str:
    """The clause that takes it back where a baseline is as good."""
    other = best_baseline(evidence, student["calls"])
    if other is None or against_baseline(evidence, student) != "not better":
        return ""
    n = student["calls"]
    return (
        f"; but the undistilled teacher with {sampler(other)} is as good at {calls(other['calls'])} "
        f"({_versus(other, student)}), so that the student of {calls(n)} is not worth having"
    )


def _versus(a: Row, b: Row) -> str:
    one, other = frechet(a), frechet(b)
    assert one and other
    decimals = places([one["value"], other["value"]])
    return f"{figure(one['value'], decimals)} against {figure(other['value'], decimals)}"


def _ratio(evidence: Mapping[str, Any], row: Row) -> Measured:
    found = judged(evidence, row)
    assert found is not None
    return found


def _samples(evidence: Mapping[str, Any], row: Row) -> str:
    """How many samples decided on this row."""
    seen = [one["samples"] for one in _looks(evidence, row)]
    return f"{max([evidence['measure']['samples'], *seen]):,} samples"


def _distance(row: Row) -> str:
    found = frechet(row)
    return interval(found, places([found["value"]])) if found else "not measured"


def _has(row: Row) -> str:
    return "has" if row["calls"] == 1 else "have"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
