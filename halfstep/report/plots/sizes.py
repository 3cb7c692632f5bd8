"""Quality against cost of networks of several sizes: table, Pareto front, two plots."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import ceil, floor, log10
from typing import TYPE_CHECKING

from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.cost import Cost
from halfstep.evaluation.report_data import Report, Row
from halfstep.report.plots.axes import curve, ends_of, log_y, Series
from halfstep.report.plots.labels import label_ends
from halfstep.report.plots.svg import Drawing, drawn_twice, INK
from halfstep.report.words.numbers import big, figure, places, seconds
from halfstep.report.words.verdict import SAMPLERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {  # colour, marker and line, as in the other plots
    "teacher, DDIM": ("ddim", "s", "-"),
    "teacher, DPM-Solver++(2M)": ("solver", "^", "-"),
    "teacher, Heun": ("heun", "D", "-"),
    "shrunk": ("student", "p", "--"),
}
SPARE = (("other", "v", "-"), ("teacher", "h", "-"), ("muted", "v", "--"))


@dataclass(frozen=True)
class Line:
    """Cost and quality of one sampling setup."""

    role: str
    name: str
    network: str
    parameters: int
    steps: int
    calls: int
    multiply_adds: float
    """Per sample: those of one call times the calls."""
    seconds: float | None
    """Per sample, in the largest batch of the timings."""
    frechet: Interval
    front: bool
    """Whether the row is on the Pareto front of distance and multiply-adds."""


def sizes(report: Report) -> list[Line]:
    """The table of networks of several sizes, cheapest first; empty for a single size."""
    timed = [(row, row.cost) for row in report.rows if row.cost]
    if len({cost.parameters for _, cost in timed}) < 2:
        return []
    if report.guided and all(row.role != "other" for row, _ in timed):
        return []  # the sizes differ only by the input for the guidance scale
    points = [(cost.multiply_adds, row.distances.frechet_distance.value) for row, cost in timed]
    lines = [
        _line(row, cost, front=on_front(point, points))
        for (row, cost), point in zip(timed, points, strict=True)
    ]
    return sorted(lines, key=lambda line: (line.multiply_adds, line.name))


def on_front(point: tuple[float, float], points: Sequence[tuple[float, float]]) -> bool:
    """Whether a point is Pareto optimal: no other is at most as large in both and smaller in one."""
    return not any(
        other != point and other[0] <= point[0] and other[1] <= point[1] for other in points
    )


def _line(row: Row, cost: Cost, *, front: bool) -> Line:
    taken = cost.seconds_per_sample
    seconds = taken[max(taken)] if taken else None
    return Line(
        row.role, row.name, _network(row), cost.parameters, row.steps, row.calls, cost.multiply_adds,
        seconds, row.distances.frechet_distance, front,
    )  # fmt: skip


def _network(row: Row) -> str:
    """The name of the curve of a row."""
    if row.role == "student":
        return "students of this run"
    if row.role in ("teacher", "baseline"):
        return f"teacher, {SAMPLERS.get(row.sampler, row.sampler)}"
    name = row.network or row.name
    return "teacher, DDIM" if name == "teacher, ddim" else name


def series_of(lines: Sequence[Line], at: str) -> list[Series]:
    """A curve for each network, over `multiply_adds` or `seconds`."""
    by: dict[str, list[Line]] = {}
    for line in lines:
        if getattr(line, at):
            by.setdefault(line.network, []).append(line)
    series, spare = list[Series](), cycle(SPARE)
    for name, network_lines in sorted(by.items(), key=lambda pair: pair[1][0].role != "student"):
        points = sorted(
            (float(getattr(line, at)), line.frechet.value, line.frechet.low, line.frechet.high)
            for line in network_lines
        )
        if network_lines[0].role == "student":
            series.append(Series(name, points, "student", strong=True))
        else:
            colour, marker, dash = STYLES.get(name) or next(spare)
            series.append(Series(name, points, colour, marker, dash))
    return series


def drawing(lines: Sequence[Line], at: str, series: Sequence[Series]) -> Drawing:
    """The plot of the table over `multiply_adds` or `seconds`, with the curves of `series_of`."""
    label = {"multiply_adds": "multiply-adds a sample", "seconds": "seconds a sample"}[at]
    words = big if at == "multiply_adds" else seconds
    alt = f"Fréchet distance against {label}, both axes logarithmic. {' '.join(_alt_text(series, words))}"
    front = sorted(
        (getattr(line, at), line.frechet.value)
        for line in lines
        if line.front and getattr(line, at)
    )

    def draw(axis: "Axes") -> None:
        values = [p[1] for s in series for p in s.points]
        bottom, top = 0.8 * min(values), 1.2 * max(p[3] for s in series for p in s.points)
        if at == "multiply_adds" and len(front) > 1:
            x, y = zip(*front, strict=True)
            axis.step(x, y, where="post", color=INK["muted"], linewidth=1, linestyle=":")
        for line in sorted(series, key=lambda s: s.strong):
            curve(axis, line, bottom)
        log_y(axis, bottom, top, "Fréchet distance, lower is better")
        _cost_axis(axis, [p[0] for s in series for p in s.points], words, label)
        label_ends(axis, ends_of(series, bottom))

    return drawn_twice(f"sizes-{at.replace('_', '-')}", draw, alt)


def _alt_text(series: Sequence[Series], words: Callable[[float], str]) -> Iterator[str]:
    for item in series:
        decimals = places(y for _, y, _, _ in item.points)
        points = ", ".join(f"{figure(y, decimals)} at {words(x)}" for x, y, _, _ in item.points)
        yield f"{item.name}: {points}."


def _cost_axis(
    axis: "Axes", at: Sequence[float], words: Callable[[float], str], label: str
) -> None:
    from matplotlib.ticker import NullFormatter

    low, high = min(at) / 1.3, max(at) * 1.3
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    ticks = [10.0**p for p in powers if low <= 10.0**p <= high]
    if len(ticks) < 3:
        ticks = [k * 10.0**p for p in powers for k in (1, 3) if low <= k * 10.0**p <= high]
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    axis.set_xticks(ticks, [words(tick).replace(".00", "").replace(".0 ", " ") for tick in ticks])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(label)
