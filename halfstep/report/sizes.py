"""Quality against cost where networks of several sizes were measured: the table, the front, two drawings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import ceil, floor, log10
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from halfstep.report.curves import curve, log_ticks, Series
from halfstep.report.numbers import big, figure, Measured, places, seconds
from halfstep.report.svg import drawn_twice, INK
from halfstep.report.verdict import frechet, Row, SAMPLERS

LOOKS = {  # as the page has them elsewhere: colour, marker, line
    "teacher, DDIM": ("ddim", "s", "-"),
    "teacher, DPM-Solver++(2M)": ("solver", "^", "-"),
    "teacher, Heun": ("heun", "D", "-"),
    "shrunk": ("student", "p", "--"),
}
SPARE = (("other", "v", "-"), ("teacher", "h", "-"), ("muted", "v", "--"))


@dataclass(frozen=True)
class Line:
    """One way of sampling: what it costs and what it gives."""

    who: str
    name: str
    network: str
    parameters: int
    steps: int
    calls: int
    multiply_adds: float
    """Of a sample: those of one call times the calls."""
    seconds: float | None
    """A sample, in the largest batch that was timed."""
    frechet: Measured
    front: bool
    """Whether nothing has a lower distance for as few multiply-adds, or the same for fewer."""


def sizes(evidence: Mapping[str, Any]) -> list[Line]:
    """The table of networks of several sizes, the cheapest sample first; empty where there is one size."""
    rows = [row for row in evidence["rows"] if row.get("cost") and frechet(row)]
    if len({row["cost"]["parameters"] for row in rows}) < 2:
        return []
    if "guided" in evidence and all(row["who"] != "other" for row in rows):
        return []  # an input more makes no other size
    points = [(row["cost"]["multiply_adds"], _value(row)) for row in rows]
    lines = [
        _line(row, front=on_front(point, points)) for row, point in zip(rows, points, strict=True)
    ]
    return sorted(lines, key=lambda line: (line.multiply_adds, line.name))


def on_front(point: tuple[float, float], points: Sequence[tuple[float, float]]) -> bool:
    """Whether no other point is at most as large in both numbers and smaller in one."""
    return not any(
        other != point and other[0] <= point[0] and other[1] <= point[1] for other in points
    )


def _value(row: Row) -> float:
    found = frechet(row)
    assert found is not None
    return found["value"]


def _line(row: Row, *, front: bool) -> Line:
    cost, found = row["cost"], frechet(row)
    assert found is not None
    taken = cost["seconds_per_sample"] or {}
    return Line(
        row["who"],
        row["name"],
        _network(row),
        cost["parameters"],
        row["steps"],
        row["calls"],
        cost["multiply_adds"],
        taken.get(max(taken, key=int)) if taken else None,
        found,
        front,
    )


def _network(row: Row) -> str:
    """Whose curve it is a point of."""
    if row["who"] == "student":
        return "students of this run"
    if row["who"] in ("teacher", "baseline"):
        sampler = str(row["sampler"])
        return f"teacher, {SAMPLERS.get(sampler, sampler)}"
    name = str(row.get("network", row["name"]))
    return "teacher, DDIM" if name == "teacher, ddim" else name


def series_of(lines: Sequence[Line], at: str) -> list[Series]:
    """A curve a network, over `multiply_adds` or `seconds`."""
    by: dict[str, list[Line]] = {}
    for line in lines:
        if getattr(line, at):
            by.setdefault(line.network, []).append(line)
    found, spare = list[Series](), cycle(SPARE)
    for name, own in sorted(by.items(), key=lambda pair: pair[1][0].who != "student"):
        points = sorted(
            (float(getattr(one, at)), one.frechet["value"], one.frechet["low"], one.frechet["high"])
            for one in own
        )
        if own[0].who == "student":
            found.append(Series(name, points, "student", strong=True))
        else:
            colour, marker, dash = LOOKS.get(name) or next(spare)
            found.append(Series(name, points, colour, marker, dash))
    return found


def drawing(lines: Sequence[Line], at: str) -> tuple[Markup, list[Series]] | None:
    """The picture of the table over `multiply_adds` or `seconds`, in words too; None without a point."""
    series = series_of(lines, at)
    if not series:
        return None
    what = {"multiply_adds": "multiply-adds a sample", "seconds": "seconds a sample"}[at]
    said = big if at == "multiply_adds" else seconds
    alt = (
        f"Fréchet distance against {what}, both axes logarithmic. {' '.join(_spoken(series, said))}"
    )
    front = sorted(
        (getattr(one, at), one.frechet["value"]) for one in lines if one.front and getattr(one, at)
    )

    def draw(axis: Axes) -> None:
        values = [p[1] for s in series for p in s.points]
        bottom, top = 0.8 * min(values), 1.2 * max(p[3] for s in series for p in s.points)
        if at == "multiply_adds" and len(front) > 1:
            x, y = zip(*front, strict=True)
            axis.step(x, y, where="post", color=INK["muted"], linewidth=1, linestyle=":")
        for one in sorted(series, key=lambda s: s.strong):
            curve(axis, one, bottom)
        axis.set_yscale("log")
        axis.set_ylim(bottom, top)
        _cost_axis(axis, [p[0] for s in series for p in s.points], said, what)
        log_ticks(axis, bottom, top)
        axis.set_title(
            "Fréchet distance, lower is better", loc="left", color=INK["muted"], fontsize=11.5
        )

    return drawn_twice(f"sizes-{at.replace('_', '-')}", draw, alt), series


def _spoken(series: Sequence[Series], said: Any) -> Iterator[str]:
    for one in series:
        decimals = places(y for _, y, _, _ in one.points)
        points = ", ".join(f"{figure(y, decimals)} at {said(x)}" for x, y, _, _ in one.points)
        yield f"{one.name}: {points}."


def _cost_axis(axis: Axes, at: Sequence[float], said: Any, what: str) -> None:
    low, high = min(at) / 1.3, max(at) * 1.3
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    ticks = [10.0**p for p in powers if low <= 10.0**p <= high]
    if len(ticks) < 3:
        ticks = [k * 10.0**p for p in powers for k in (1, 3) if low <= k * 10.0**p <= high]
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    axis.set_xticks(ticks, [said(tick).replace(".00", "").replace(".0 ", " ") for tick in ticks])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(what)
