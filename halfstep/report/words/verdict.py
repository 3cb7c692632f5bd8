"""The verdict: the result of a report in one sentence."""

from typing import Literal

from halfstep.evaluation.gate import decide, Decision
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.report_data import Report, Row
from halfstep.report.words.numbers import calls, exact, figure, interval, places, ratio as shown
from halfstep.training.gate_record import Verdict

Standing = Literal["better", "not better", "undecided"]
SAMPLERS = {
    "ddim": "DDIM",
    "heun": "Heun",
    "dpmpp-2m": "DPM-Solver++(2M)",
    "ancestral": "ancestral",
    "dpmpp-3s": "DPM-Solver++ of order 3",
    "dpm-fast": "DPM-Solver-fast",
    "euler-maruyama": "Euler-Maruyama",
}


def verdict(report: Report) -> str:
    """The result in one sentence.

    A student passes or fails if its whole interval lies on one side of the tolerance, and is undecided
    otherwise.  The gate's ratio counts if it was measured with more samples than the report's.
    """
    full, students = report.teacher, report.students
    if not students:
        return (
            f"No student was measured; the Fréchet distance of the teacher at {calls(full.calls)} is "
            f"{_distance(full)}."
        )
    ratios = [(row, ratio) for row in students if (ratio := decisive_ratio(report, row))]
    if not ratios:
        row = students[-1]
        return (
            f"Nothing is decided, as no ratio was measured: the Fréchet distance is {_distance(row)} at "
            f"{calls(row.calls)}, the teacher's {_distance(full)} at {full.calls}."
        )
    limit = tolerance(report)
    if limit is None:
        return _without_tolerance(report, ratios)
    return _against_tolerance(report, ratios, limit)


def tolerance(report: Report) -> float | None:
    """The tolerance of the run's gate; None without a gate.

    None for a guided run too, whose gate compares with the guided teacher instead of the data.
    """
    gate = report.run.gate
    return None if gate is None or "guidance_scales" in gate.about else gate.tolerance


def best_baseline(report: Report, limit: int) -> Row | None:
    """The baseline nearest to the data with at most `limit` network calls."""
    fitting = [row for row in report.rows_of("baseline") if row.calls <= limit]
    return min(
        fitting, key=lambda row: (row.distances.frechet_distance.value, row.calls), default=None
    )


def decisive_ratio(report: Report, row: Row) -> Interval | None:
    """The student's Fréchet distance over its teacher's; the gate's if measured with more samples."""
    decisions = _gate_decisions(report, row)
    more = [decision for decision in decisions if decision.samples > report.measure.samples]
    best = max(more, key=lambda decision: decision.samples, default=None)
    return best.ratio if best else row.ratio


def _gate_decisions(report: Report, row: Row) -> list[Decision]:
    """The gate's decisions on this student, if the gate has the report's settings."""
    gate, how, full = report.run.gate, report.measure, report.teacher
    if gate is None or full.sampler != "ddim":  # the gate's full steps are DDIM's
        return []
    same = {
        "features": how.features,
        "digest": how.digest,
        "preprocessing": how.preprocessing,
        "data": how.data,
        "samples": how.samples,
        "seed": how.seed,
        "full": full.steps,
    }
    if any(gate.about.get(name) != value for name, value in same.items()):
        return []
    return [decision for decision in gate.decisions if decision.steps == row.steps]


def against_baseline(report: Report, student: Row) -> Standing | None:
    """Whether a student is nearer to the data than the best baseline with at most as many calls.

    None without such a baseline.  Intervals decide between "better" and "undecided": those of the paired,
    and so narrower, ratios to the teacher if both were measured.
    """
    other = best_baseline(report, student.calls)
    if other is None:
        return None
    distance, baseline_distance = (
        student.distances.frechet_distance,
        other.distances.frechet_distance,
    )
    if distance.value >= baseline_distance.value:
        return "not better"
    if student.ratio and other.ratio:
        distance, baseline_distance = student.ratio, other.ratio
    return "better" if distance.high < baseline_distance.low else "undecided"


def caution(report: Report, student: Row) -> str | None:
    """A sentence if the student does not surely beat the best baseline; else None."""
    standing, other = against_baseline(report, student), best_baseline(report, student.calls)
    if other is None or standing not in ("not better", "undecided"):
        return None
    at = calls(student.calls)
    where = f"the undistilled teacher with {sampler(other)} at {calls(other.calls)}"
    if standing == "not better":
        return (
            f"At {at} the student does not beat {where} ({_versus(student, other)}): it is not worth "
            "having."
        )
    return (
        f"At {at} {report.measure.samples:,} samples cannot tell whether the student beats {where} "
        f"({_versus(student, other)})."
    )


def sampler(row: Row) -> str:
    """A sampler's name as in its paper."""
    return SAMPLERS.get(row.sampler, row.sampler)


Ratios = list[tuple[Row, Interval]]
"""Students with their ratios to the teacher, most calls first."""


def _against_tolerance(report: Report, ratios: Ratios, limit: float) -> str:
    by: dict[Verdict, Ratios] = {"passed": [], "broken": [], "undecided": []}
    for row, ratio in ratios:
        by[decide(ratio, limit)].append((row, ratio))
    full = report.teacher
    if by["passed"]:
        best, ratio = by["passed"][-1]
        text = (
            f"{_capital(calls(best.calls))} {_keep(best)} the quality of "
            f"{full.calls}: Fréchet distance {shown(ratio, limit)} times the "
            f"teacher's, within the tolerance of {exact(limit)}"
        )
        fewer = [pair for pair in ratios if pair[0].calls < best.calls]
        clause = _next(report, *fewer[0], limit) if fewer else ""
    elif by["undecided"]:
        best, ratio = by["undecided"][0]
        text = (
            f"{_samples(report, best)} cannot tell whether {calls(best.calls)} "
            f"{_keep(best)} the quality of {full.calls}: Fréchet distance "
            f"{shown(ratio, limit)} times the teacher's, the tolerance is {exact(limit)}"
        )
        clause = _next(report, *by["broken"][0], limit) if by["broken"] else ""
    else:
        best, ratio = min(ratios, key=lambda pair: pair[1].value)
        return (
            f"No student keeps the quality of {calls(full.calls)} within the tolerance of {exact(limit)}: "
            f"the best of them, at {calls(best.calls)}, has {shown(ratio, limit)} times the teacher's "
            f"Fréchet distance{_but(report, best)}."
        )
    return text + clause + _but(report, best) + "."


def _next(report: Report, row: Row, ratio: Interval, limit: float) -> str:
    """The clause on the next student."""
    n, noun = row.calls, "call" if row.calls == 1 else "calls"
    if decide(ratio, limit) == "broken":
        value = shown(ratio, limit).split(" ")[0]
        return f"; {n:,} {noun} {'does' if n == 1 else 'do'} not ({value})"
    return f"; of {n:,} {noun} {_samples(report, row)} cannot tell: {shown(ratio, limit)}"


def _without_tolerance(report: Report, ratios: Ratios) -> str:
    best, ratio = min(ratios, key=lambda pair: pair[1].value)
    last, last_ratio = ratios[-1]
    text = (
        f"{_capital(calls(best.calls))} {'has' if best.calls == 1 else 'have'} {shown(ratio)} times the "
        f"Fréchet distance of the teacher's {report.teacher.calls}"
    )
    if last is not best:
        text += f", {calls(last.calls)} {shown(last_ratio)} times"
    return f"{text}{_but(report, best)}; no tolerance was set."


def _but(report: Report, student: Row) -> str:
    """The clause on a baseline that is as good as the student; empty without one."""
    other = best_baseline(report, student.calls)
    if other is None or against_baseline(report, student) != "not better":
        return ""
    return (
        f"; but the undistilled teacher with {sampler(other)} is as good at {calls(other.calls)} "
        f"({_versus(other, student)}), so that the student of {calls(student.calls)} is not worth having"
    )


def _versus(a: Row, b: Row) -> str:
    first, second = (row.distances.frechet_distance.value for row in (a, b))
    decimals = places([first, second])
    return f"{figure(first, decimals)} against {figure(second, decimals)}"


def _samples(report: Report, row: Row) -> str:
    """The number of samples that decided on this row."""
    looks = [decision.samples for decision in _gate_decisions(report, row)]
    return f"{max([report.measure.samples, *looks]):,} samples"


def _distance(row: Row) -> str:
    distance = row.distances.frechet_distance
    return interval(distance, places([distance.value]))


def _keep(row: Row) -> str:
    return "keeps" if row.calls == 1 else "keep"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
