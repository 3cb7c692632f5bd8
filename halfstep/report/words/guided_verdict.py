"""The verdict of a guided run: each student's distance to the guided teacher, at its worst scale."""

from collections.abc import Sequence

from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.report_data import GuidedTable
from halfstep.evaluation.verdicts import worst_ratio
from halfstep.report.words.numbers import ratio


def guided_verdict(guided: GuidedTable) -> str:
    """The result in one sentence: each student's largest ratio over all scales.

    Ratios are distances to the guided teacher's samples of other noise, over the teacher's own.
    """
    teacher = max(row.calls for row in guided.rows if row.role == "teacher")
    over, n = _range(guided.scales), guided.reference.samples
    parts = [(_calls(calls), ratio(worst)) for calls, worst in _worst(guided)]
    if not parts:
        return "No student was measured, so there is no verdict."
    (calls, first), *others = parts
    text = (
        f"At {calls} instead of {teacher:,} the student is at most {first} times as far from the guided "
        "teacher as the teacher from itself"
    )
    return f"{text}{''.join(f', at {calls} {times}' for calls, times in others)} ({over}, {n:,} samples)."


def _worst(guided: GuidedTable) -> list[tuple[int, Interval]]:
    """Each student's calls and largest ratio, most calls first."""
    calls = {row.steps: row.calls for row in guided.rows if row.role == "student"}
    worst = ((calls[steps], worst_ratio(guided, steps)) for steps in sorted(calls, reverse=True))
    return [(count, ratio) for count, ratio in worst if ratio is not None]


def _range(scales: Sequence[float]) -> str:
    low, high = scales[0], scales[-1]
    return f"guidance {low:g}" if low == high else f"guidance {low:g} to {high:g}"


def _calls(n: int) -> str:
    return f"{n:,} call{'s' if n != 1 else ''}"
