"""The verdict: the result of a report in sentences, with the numbers."""

from collections.abc import Sequence

from halfstep.evaluation.gate import decide
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.report_data import Report, Row
from halfstep.evaluation.standing import Better, GoodEnough
from halfstep.evaluation.verdicts import (
    against,
    AT,
    best_baseline,
    decisive_ratio,
    floor_multiple,
    is_poor,
    MOST,
    tolerance,
    tolerance_test,
    verdicts,
)
from halfstep.report.words.guided_verdict import guided_verdict
from halfstep.report.words.numbers import (
    calls,
    DASH,
    exact,
    figure,
    interval,
    listed,
    places,
    ratio as shown,
    rounded_up,
)
from halfstep.training.gate_record import Verdict

SAMPLERS = {
    "ddim": "DDIM",
    "heun": "Heun",
    "dpmpp-2m": "DPM-Solver++(2M)",
    "ancestral": "ancestral",
    "dpmpp-3s": "DPM-Solver++ of order 3",
    "dpm-fast": "DPM-Solver-fast",
    "euler-maruyama": "Euler-Maruyama",
}
GOOD_ENOUGH = "good enough"
BETTER = "better than the undistilled teacher"
"""The two questions, as pages and terminal name them; the student's calls, or fewer, are the teacher's."""
GOOD_WORDS: dict[GoodEnough, str] = {
    "yes": "yes",
    "no": "no",
    "cannot tell": "cannot tell",
    "poor teacher": "as its poor teacher",
    "no tolerance": "no tolerance set",
    "not measured": DASH,
}
BETTER_WORDS: dict[Better, str] = {
    "yes": "yes",
    "as good": "as good",
    "no": "no",
    "cannot tell": "cannot tell",
    "no baseline": "no baseline",
}


def verdict(report: Report) -> str:
    """The result in sentences: the teacher if it is poor, the tolerance, the undistilled teacher.

    A student passes or fails if its whole interval lies on one side of the tolerance, and is undecided
    otherwise.  The gate's ratio counts if it was measured with more samples than the report's.
    """
    test = tolerance_test(report, report.students[0]) if report.students else None
    parts = [poor_teacher(report)]
    if test is None or not test.guided:
        parts.append(_against_teacher(report))
    if report.guided is not None and report.guided.rows:
        parts.append(guided_verdict(report.guided))
    if test is not None and test.guided and test.limit is not None:
        parts.append(f"The tolerance is {exact(test.limit)}.")
    return " ".join([*filter(None, parts), against_baselines(report)]).strip()


def _against_teacher(report: Report) -> str:
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
    most = tolerance(report)
    if most is None or is_poor(report):
        return _without_tolerance(report, ratios, most)
    return _against_tolerance(report, ratios, most)


def poor_teacher(report: Report) -> str:
    """A sentence if the teacher's distance is many times the floor; else empty."""
    if not is_poor(report):
        return ""
    floor, times = report.measure.floor, figure(floor_multiple(report) or 0.0, 0)
    if report.measure.samples == AT:
        much = (
            f", {times} times the {figure(floor, places([floor]))} that perfect samples would score"
        )
    else:
        much = f"; with {AT:,} samples it would be {times} times that of perfect samples"
    return (
        f"The teacher itself is poor: its Fréchet distance is {_distance(report.teacher)}{much}. A student "
        "that keeps its quality is poor as well: train the teacher for longer, then distil it."
    )


def against_baselines(report: Report) -> str:
    """A sentence on all students against the undistilled teacher at equal calls; empty without a baseline."""
    by: dict[Better, list[Row]] = {}
    for row in report.students:
        by.setdefault(against(best_baseline(report, row)), []).append(row)
    clauses = []
    if rows := by.get("yes"):
        clauses.append(f"the student is better than the undistilled teacher at {_at(rows)}")
    if rows := by.get("as good"):
        clauses.append(
            f"the undistilled teacher is as good at {_at(rows)} ({_rivals(report, rows)})"
        )
    if rows := by.get("no"):
        clauses.append(
            f"the undistilled teacher is better at {_at(rows)} ({_rivals(report, rows)})"
        )
    return _capital("; ".join(clauses)) + "." if clauses else ""


def too_few_samples(report: Report) -> list[str]:
    """A sentence for each question that the samples cannot answer, and how many samples would."""
    answers = list(zip(report.students, verdicts(report), strict=True))
    good = [(row, answer) for row, answer in answers if answer.good_enough == "cannot tell"]
    better = [(row, answer) for row, answer in answers if answer.better == "cannot tell"]
    sentences = []
    if good:
        rows = [row for row, _ in good]
        sentences.append(
            f"{_samples(report, rows[0])} cannot tell whether the student is good enough at {_at(rows)}"
            f"{_would([answer.good_samples for _, answer in good], tolerance_test(report, rows[0]).block)}."
        )
    if better:
        rows = [row for row, _ in better]
        sentences.append(
            f"{report.measure.samples:,} samples cannot tell whether the student is better than the "
            f"undistilled teacher at {_at(rows)} ({_rivals(report, rows)})"
            f"{_would([answer.better_samples for _, answer in better], report.measure.samples)}."
        )
    return sentences


def _would(needed: Sequence[int | None], block: int) -> str:
    """Such as ": about 6,000 to 12,000 would, scored in blocks of 2,000 as the gate scores them"."""
    known = sorted(count for count in needed if count is not None)
    if not known:
        return ""
    if known[0] >= MOST:
        return f": more than {MOST:,} would"
    first, last = (f"{-(-rounded_up(count) // block) * block:,}" for count in (known[0], known[-1]))
    more = "" if first == last else f" to {'more than ' if known[-1] >= MOST else ''}{last}"
    return f": about {first}{more} would, scored in blocks of {block:,} as the gate scores them"


def limit(report: Report) -> float | None:
    """The tolerance that the students are held to."""
    return tolerance_test(report, report.students[0]).limit if report.students else None


def sampler(row: Row) -> str:
    """A sampler's name as in its paper."""
    return SAMPLERS.get(row.sampler, row.sampler)


def rivals(report: Report, row: Row) -> list[Row]:
    """The rows of the best baseline with at most as many calls as a student; several if they tie."""
    best = best_baseline(report, row)
    names = best.names if best else ()
    return [other for other in report.rows_of("baseline") if other.name in names]


def _rivals(report: Report, rows: Sequence[Row]) -> str:
    """Sampler and distance of the best baseline of each student, beside the student's."""
    parts = []
    for row in rows:
        best = rivals(report, row)
        first, second = (r.distances.frechet_distance.value for r in (best[0], row))
        decimals = places([first, second])
        fewer = f" at {calls(best[0].calls)}" if best[0].calls != row.calls else ""
        parts.append(
            f"{listed(list(dict.fromkeys(map(sampler, best))))}{fewer} {figure(first, decimals)}, "
            f"the student {figure(second, decimals)}"
        )
    return "; ".join(parts)


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
        (best, ratio), *others = _nearest(ratios)
        at = [best.calls, *(row.calls for row, _ in others)]
        which = (
            f"the best of them, at {_counted(at)}, has"
            if not others
            else (f"the best of them, at {_counted(at)}, have")
        )
        return (
            f"No student keeps the quality of {calls(full.calls)} within the tolerance of {exact(limit)}: "
            f"{which} {shown(ratio, limit)} times the teacher's Fréchet distance."
        )
    return text + clause + "."


def _next(report: Report, row: Row, ratio: Interval, limit: float) -> str:
    """The clause on the next student."""
    n, noun = row.calls, "call" if row.calls == 1 else "calls"
    if decide(ratio, limit) == "broken":
        value = shown(ratio, limit).split(" ")[0]
        return f"; {n:,} {noun} {'does' if n == 1 else 'do'} not ({value})"
    return f"; of {n:,} {noun} {_samples(report, row)} cannot tell: {shown(ratio, limit)}"


def _without_tolerance(report: Report, ratios: Ratios, limit: float | None) -> str:
    nearest = _nearest(ratios)
    ratio = nearest[0][1]
    at = [row.calls for row, _ in nearest]
    last, last_ratio = ratios[-1]
    text = (
        f"{_capital(_counted(at))} {'has' if at == [1] else 'have'} {shown(ratio)} times the "
        f"Fréchet distance of the teacher's {report.teacher.calls}"
    )
    if last.calls not in at:
        text += f", {calls(last.calls)} {shown(last_ratio)} times"
    return f"{text}." if limit else f"{text}; no tolerance was set."


def _nearest(ratios: Ratios) -> Ratios:
    """The student of the smallest ratio, with those of the same two decimals."""
    least = figure(min(ratio.value for _, ratio in ratios), 2)
    return [pair for pair in ratios if figure(pair[1].value, 2) == least]


def _samples(report: Report, row: Row) -> str:
    """The number of samples that decided on this row."""
    return f"{tolerance_test(report, row).samples:,} samples"


def _distance(row: Row) -> str:
    distance = row.distances.frechet_distance
    return interval(distance, places([distance.value]))


def _at(rows: Sequence[Row]) -> str:
    return _counted([row.calls for row in rows])


def _counted(counts: Sequence[int]) -> str:
    """Such as "8, 4 and 2 network calls"."""
    return f"{listed([f'{n:,}' for n in counts])} network call{'' if list(counts) == [1] else 's'}"


def _keep(row: Row) -> str:
    return "keeps" if row.calls == 1 else "keep"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
