"""The curves of a report, each drawn for wide and for narrow screens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from halfstep.report.plots.axes import calls_x, curve, ends_of, log_y, Series, value_range
from halfstep.report.plots.labels import End, label_ends, label_uprights
from halfstep.report.plots.svg import Drawing, drawn_twice, INK
from halfstep.report.words.numbers import exact

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class ReferenceLine:
    """A horizontal line with an interval."""

    name: str
    value: float
    low: float
    high: float
    colour: str
    line: str = "--"


def quality(
    series: Sequence[Series], levels: Sequence[ReferenceLine], *, title: str, alt: str
) -> Drawing:
    """Plot a measure against network calls, both axes logarithmic, intervals as bands."""
    everything = [p[1] for s in series for p in s.points] + [level.value for level in levels]
    tops = [p[3] for s in series for p in s.points] + [level.high for level in levels]
    bottom, top = value_range([x for x in everything if x > 0], [x for x in tops if x > 0])

    def draw(axis: "Axes") -> None:
        for level in levels:
            colour = INK[level.colour]
            axis.axhline(level.value, color=colour, linestyle=level.line, linewidth=1.3)
            if level.high > level.low:
                axis.axhspan(
                    max(level.low, bottom), level.high, color=colour, alpha=0.12, linewidth=0
                )
        for sampler_series in sorted(series, key=lambda s: s.strong):
            curve(axis, sampler_series, bottom)
        log_y(axis, bottom, top, title)
        calls_x(axis, series)
        right = axis.get_xlim()[1]
        names = [End(right, level.value, level.name, level.colour) for level in levels]
        label_ends(axis, [*ends_of(series, bottom), *names])

    return drawn_twice("quality", draw, alt)


def ratios(
    rows: Sequence[tuple[str, float, float, float]], *, tolerance: float | None, alt: str
) -> Drawing:
    """Plot each student's ratio to the teacher with its interval, and the tolerance."""
    ends = [x for row in rows for x in row[1:]] + [1.0] + ([tolerance] if tolerance else [])
    low, high = min(ends), max(ends)
    margin = max(0.08 * (high - low), 0.01)

    def draw(axis: "Axes") -> None:
        axis.axvline(1, color=INK["teacher"], linewidth=1.3, linestyle="--")
        if tolerance:
            axis.axvspan(low - margin, tolerance, color=INK["student"], alpha=0.08, linewidth=0)
            axis.axvline(tolerance, color=INK["student"], linewidth=1.3)
        for k, (_, value, left, right) in enumerate(rows):
            axis.plot([left, right], [k, k], color=INK["student"], linewidth=2.2)
            axis.plot([value], [k], "o", color=INK["student"], markersize=7.5)
        axis.set_yticks(range(len(rows)), [row[0] for row in rows])
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.set_xlim(low - margin, high + margin)
        axis.grid(axis="x", color=INK["rule"], linewidth=0.8)
        axis.spines["left"].set_visible(False)
        axis.set_xlabel("Fréchet distance over the teacher's at full steps")
        names = [(1.0, "as the teacher", "teacher")]
        names += [(tolerance, f"tolerance {exact(tolerance)}", "student")] if tolerance else []
        label_uprights(axis, names)

    height = 1.1 + 0.5 * len(rows)
    return drawn_twice("ratios", draw, alt, heights=(height, height))


def tradeoff(series: Sequence[Series], scales: Sequence[Sequence[str]], *, alt: str) -> Drawing:
    """Plot Fréchet distance to the data against Inception score, one curve over the guidance scale each.

    scales  labels of the points of each curve
    """
    x, y = ([p[k] for s in series for p in s.points] for k in (0, 1))
    margin = 0.06 * (max(x) - min(x)) or 0.1
    bottom, top = min(y) / 1.2, max(y) * 1.12

    def draw(axis: "Axes") -> None:
        for sampler_series in series:
            curve(axis, sampler_series, bottom)
        log_y(axis, bottom, top, "Fréchet distance to the data, lower is better")
        axis.set_xlim(min(x) - margin, max(x) + margin)
        _names(axis, series, scales)
        axis.set_xlabel("Inception score, higher is clearer")
        label_ends(axis, ends_of(series, bottom))

    return drawn_twice("tradeoff", draw, alt)


def _names(axis: "Axes", series: Sequence[Series], scales: Sequence[Sequence[str]]) -> None:
    """Label each point, below it if possible, unless there is no room."""
    at = [[axis.transData.transform(p[:2]) for p in curve_series.points] for curve_series in series]
    taken = [(x, y) for places in at for x, y in places]
    for curve_series, places, names in zip(series, at, scales, strict=True):
        for (x, y), name, point in zip(places, names, curve_series.points, strict=True):
            half = 3.5 * len(name)
            for dx, dy in ((8, -13), (8, 5), (-6 - 2 * half, 5), (-6 - 2 * half, -13)):
                a, b = x + dx + half, y + dy + 4  # its middle
                if all(abs(a - c) > half + 6 or abs(b - d) > 8 for c, d in taken):
                    ink, unit_of = INK[curve_series.colour], "offset points"
                    axis.annotate(name, point[:2], (dx, dy), textcoords=unit_of, color=ink)
                    taken.append((a, b))
                    break


def fidelity(series: Sequence[Series], *, title: str, alt: str) -> Drawing:
    """Plot errors against network calls, both axes logarithmic."""
    bottom, top = value_range(
        *([p[k] for s in series for p in s.points if p[k] > 0] for k in (1, 3))
    )

    def draw(axis: "Axes") -> None:
        for errors in series:
            curve(axis, errors, bottom)
        log_y(axis, bottom, top, title)
        calls_x(axis, series)
        label_ends(axis, ends_of(series, bottom))

    return drawn_twice("fidelity", draw, alt, heights=(4.2, 4.2))
