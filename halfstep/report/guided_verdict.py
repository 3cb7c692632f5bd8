"""The verdict of a guided run: how far each student is from the guided teacher, at the worst scale."""

from collections.abc import Mapping
from typing import Any

from halfstep.report.numbers import ratio

Row = Mapping[str, Any]


def guided_verdict(guided: Mapping[str, Any]) -> str:
    """What the table shows, in one sentence, from `guided` of report.json.

    Of every student the scale at which it is farthest; the distances are to the guided teacher's samples
    of other noise, over the teacher's own.
    """
    teacher = max(row["calls"] for row in guided["rows"] if row["who"] == "teacher")
    over, n = _range(guided["scales"]), guided["reference"]["samples"]
    worst = _worst(guided["rows"])
    if not worst:
        return "No student was measured, so nothing can be said of what was kept."
    first, *rest = worst
    text = (
        f"At {_calls(first['calls'])} instead of {teacher:,} the student is at most "
        f"{ratio(first['times_floor'])} times as far from the guided teacher as the teacher from itself"
    )
    rest_text = "".join(f", at {_calls(row['calls'])} {ratio(row['times_floor'])}" for row in rest)
    return f"{text}{rest_text} ({over}, {n:,} samples)."


def _worst(rows: list[Row]) -> list[Row]:
    """Every student's row of the largest ratio, the most calls first."""
    found: dict[int, Row] = {}
    for row in rows:
        if row["who"] != "student":
            continue
        before = found.get(row["steps"])
        if before is None or row["times_floor"]["value"] > before["times_floor"]["value"]:
            found[row["steps"]] = row
    return [found[steps] for steps in sorted(found, reverse=True)]


def _range(scales: list[float]) -> str:
    low, high = scales[0], scales[-1]
    return f"guidance {low:g}" if low == high else f"guidance {low:g} to {high:g}"


def _calls(n: int) -> str:
    return f"{n:,} call{'s' if n != 1 else ''}"
