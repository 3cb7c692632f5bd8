"""Quality against cost where networks of several sizes were measured: the table, the front, two drawings."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import ceil, floor, log10

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.cost import Cost
from halfstep.evaluation.report_data import Report, Row
from halfstep.report.plots.curves import curve, log_ticks, Series
from halfstep.report.plots.svg import drawn_twice, INK
from halfstep.report.words.numbers import big, figure, places, seconds
from halfstep.report.words.verdict import SAMPLERS

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

    role: str
    name: str
    network: str
    parameters: int
    steps: int
    calls: int
    multiply_adds: float
    """Of a sample: those of one call times the calls."""
    seconds: float | None
    """A sample, in the largest batch that was timed."""
    frechet: Interval
    front: bool
    """Whether nothing has a lower distance for as few multiply-adds, or the same for fewer."""


def sizes(report: Report) -> list[Line]:
    """The table of networks of several sizes, the cheapest sample first; empty where there is one size."""
    timed = [(row, row.cost) for row in report.rows if row.cost]
    if len({cost.parameters for _, cost in timed}) < 2:
        return []
    if report.guided and all(row.role != "other" for row, _ in timed):
        return []  # an input more makes no other size
    points = [(cost.multiply_adds, row.distances.frechet_distance.value) for row, cost in timed]
    lines = [
        _line(row, cost, front=on_front(point, points))
        for (row, cost), point in zip(timed, points, strict=True)
    ]
    return sorted(lines, key=lambda line: (line.multiply_adds, line.name))


def on_front(point: tuple[float, float], points: Sequence[tuple[float, float]]) -> bool:
    """Whether no other point is at most as large in both numbers and smaller in one."""
    return not any(
        other != point and other[0] <= point[0] and other[1] <= point[1] for other in points
    )


def _line(row: Row, cost: Cost, *, front: bool) -> Line:
    taken = cost.seconds_per_sample
    return Line(
        row.role,
        row.name,
        _network(row),
        cost.parameters,
        row.steps,
        row.calls,
        cost.multiply_adds,
        taken[max(taken)] if taken else None,
        row.distances.frechet_distance,
        front,
    )


def _network(row: Row) -> str:
    """The curve that a row is a point of."""
    if row.role == "student":
        return "students of this run"
    if row.role in ("teacher", "baseline"):
        return f"teacher, {SAMPLERS.get(row.sampler, row.sampler)}"
    name = row.network or row.name
    return "teacher, DDIM" if name == "teacher, ddim" else name


def series_of(lines: Sequence[Line], at: str) -> list[Series]:
    """A curve a network, over `multiply_adds` or `seconds`."""
    by: dict[str, list[Line]] = {}
    for line in lines:
        if getattr(line, at):
            by.setdefault(line.network, []).append(line)
    found, spare = list[Series](), cycle(SPARE)
    for name, own in sorted(by.items(), key=lambda pair: pair[1][0].role != "student"):
        points = sorted(
            (float(getattr(one, at)), one.frechet.value, one.frechet.low, one.frechet.high)
            for one in own
        )
        if own[0].role == "student":
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
    words = big if at == "multiply_adds" else seconds
    alt = f"Fréchet distance against {what}, both axes logarithmic. {' '.join(_spoken(series, words))}"
    front = sorted(
        (getattr(one, at), one.frechet.value) for one in lines if one.front and getattr(one, at)
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
        _cost_axis(axis, [p[0] for s in series for p in s.points], words, what)
        log_ticks(axis, bottom, top)
        axis.set_title(
            "Fréchet distance, lower is better", loc="left", color=INK["muted"], fontsize=11.5
        )

    return drawn_twice(f"sizes-{at.replace('_', '-')}", draw, alt), series


def _spoken(series: Sequence[Series], words: Callable[[float], str]) -> Iterator[str]:
    for one in series:
        decimals = places(y for _, y, _, _ in one.points)
        points = ", ".join(f"{figure(y, decimals)} at {words(x)}" for x, y, _, _ in one.points)
        yield f"{one.name}: {points}."


def _cost_axis(axis: Axes, at: Sequence[float], words: Callable[[float], str], what: str) -> None:
    low, high = min(at) / 1.3, max(at) * 1.3
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    ticks = [10.0**p for p in powers if low <= 10.0**p <= high]
    if len(ticks) < 3:
        ticks = [k * 10.0**p for p in powers for k in (1, 3) if low <= k * 10.0**p <= high]
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    axis.set_xticks(ticks, [words(tick).replace(".00", "").replace(".0 ", " ") for tick in ticks])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(what)
