"""Axes and curves that several plots share."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log2, log10
from typing import TYPE_CHECKING

from halfstep.report.plots.labels import End
from halfstep.report.plots.svg import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GLYPHS = {"o": "●", "s": "□", "^": "△", "D": "◇", "v": "▽", "p": "⬠", "h": "⬡"}
Point = tuple[float, float, float, float]
"""x, value, low, high"""


@dataclass(frozen=True)
class Series:
    """A curve through points, in a colour of `COLOURS`."""

    name: str
    points: Sequence[Point]
    colour: str
    marker: str = "o"
    line: str = "-"
    strong: bool = False


def curve(axis: "Axes", series: Series, bottom: float) -> None:
    """Draw the line of a series and the band of its intervals, cut at `bottom`."""
    points, colour, strong = series.points, INK[series.colour], series.strong
    x = [p[0] for p in points]
    y = [max(p[1], bottom) for p in points]
    low, high = [max(p[2], bottom) for p in points], [max(p[3], bottom) for p in points]
    if len(x) > 1:
        axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    else:
        axis.vlines(x, low, high, color=colour, alpha=0.5, linewidth=3)
    axis.plot(
        x, y, color=colour, marker=series.marker, linestyle=series.line, linewidth=2.6 if strong else 1.5,
        markersize=7.5 if strong else 6, markerfacecolor=colour if strong else "none", markeredgewidth=1.5,
    )  # fmt: skip


def ends_of(series: Sequence[Series], bottom: float) -> list[End]:
    """The last points of curves, labelled with marker and name."""
    lasts = [(s, s.points[-1]) for s in series]
    return [
        End(x, max(y, bottom), f"{GLYPHS[s.marker]} {s.name}", s.colour)
        for s, (x, y, _, _) in lasts
    ]


def value_range(values: Sequence[float], tops: Sequence[float]) -> tuple[float, float]:
    """The ends of a logarithmic axis of these values, which shows these upper ends too."""
    return 0.8 * min(values, default=0.1), 1.2 * max([*values, *tops], default=1.0)


def log_y(axis: "Axes", bottom: float, top: float, title: str = "") -> None:
    """Make the y axis logarithmic; the title of the plot names its values."""
    axis.set_yscale("log")
    axis.set_ylim(bottom, top)
    _log_ticks(axis, bottom, top)
    if title:
        axis.set_title(title, loc="left", color=INK["muted"], fontsize=11.5)


def calls_x(axis: "Axes", series: Sequence[Series]) -> None:
    """Make the x axis a logarithmic axis of network calls."""
    from matplotlib.ticker import NullFormatter

    calls = [p[0] for s in series for p in s.points]
    low, high = min(calls), max(calls)
    ticks = [2**k for k in range(floor(log2(low)), ceil(log2(high)) + 1) if low <= 2**k <= high]
    ticks = ticks if len(ticks) > 1 else sorted({int(x) for x in calls})
    axis.set_xscale("log", base=2)
    axis.set_xlim(low / 1.25, high * 1.25)
    axis.set_xticks(ticks, [f"{k:,}" for k in ticks])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("network calls a sample")


def _log_ticks(axis: "Axes", bottom: float, top: float) -> None:
    """1, or 1 2 5, or more of each power of ten: the fewest that give at least four lines."""
    from matplotlib.ticker import NullFormatter

    powers = range(floor(log10(bottom)), ceil(log10(top)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [k * 10.0**p for p in powers for k in steps if bottom <= k * 10.0**p <= top]
        if len(ticks) >= 4:
            break
    axis.set_yticks(ticks, [f"{tick:.4g}" for tick in ticks])
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(axis="y", color=INK["rule"], linewidth=0.8)
