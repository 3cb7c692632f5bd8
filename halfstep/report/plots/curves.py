"""The curves of the page, each drawn for a desk and for a phone."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log2, log10

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter

from halfstep.evaluation.report_data import Update
from halfstep.report.plots.svg import drawn_twice, INK

Point = tuple[float, float, float, float]
"""x, value, low, high"""


@dataclass(frozen=True)
class Series:
    """A curve of points in their order, in a colour of `COLOURS`."""

    name: str
    points: Sequence[Point]
    colour: str
    marker: str = "o"
    line: str = "-"
    strong: bool = False


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
    series: Sequence[Series], levels: Sequence[ReferenceLine], *, what: str, alt: str
) -> Markup:
    """A measure against network calls, both axes logarithmic, intervals as bands.

    Bands that reach below 0 are cut at the lower edge.
    """
    everything = [p[1] for s in series for p in s.points] + [level.value for level in levels]
    tops = [p[3] for s in series for p in s.points] + [level.high for level in levels]
    bottom, top = _range([x for x in everything if x > 0], [x for x in tops if x > 0])

    def draw(axis: Axes) -> None:
        for level in levels:
            colour = INK[level.colour]
            axis.axhline(level.value, color=colour, linestyle=level.line, linewidth=1.3)
            if level.high > level.low:
                axis.axhspan(
                    max(level.low, bottom), level.high, color=colour, alpha=0.12, linewidth=0
                )
        for one in sorted(series, key=lambda s: s.strong):
            curve(axis, one, bottom)
        axis.set_yscale("log")
        axis.set_ylim(bottom, top)
        _calls_axis(axis, [p[0] for s in series for p in s.points])
        log_ticks(axis, bottom, top)
        axis.set_title(what, loc="left", color=INK["muted"], fontsize=11.5)

    return drawn_twice("quality", draw, alt)


def ratios(
    rows: Sequence[tuple[str, float, float, float]], *, tolerance: float | None, alt: str
) -> Markup:
    """One line a student: its ratio to the teacher with its interval, the tolerance as an edge."""
    ends = [x for row in rows for x in row[1:]] + [1.0] + ([tolerance] if tolerance else [])
    low, high = min(ends), max(ends)
    margin = max(0.08 * (high - low), 0.01)

    def draw(axis: Axes) -> None:
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

    height = 1.1 + 0.5 * len(rows)
    return drawn_twice("ratios", draw, alt, heights=(height, height))


def tradeoff(series: Sequence[Series], scales: Sequence[Sequence[str]], *, alt: str) -> Markup:
    """Fréchet distance to the data against Inception score, a curve over the guidance scale each.

    scales  what stands at the points of each curve, where it has room
    """
    x, y = ([p[k] for s in series for p in s.points] for k in (0, 1))
    margin = 0.06 * (max(x) - min(x)) or 0.1
    bottom, top = min(y) / 1.2, max(y) * 1.12

    def draw(axis: Axes) -> None:
        for one in series:
            curve(axis, one, bottom)
        axis.set_yscale("log")
        axis.set_ylim(bottom, top)
        axis.set_xlim(min(x) - margin, max(x) + margin)
        log_ticks(axis, bottom, top)
        _names(axis, series, scales)
        axis.set_xlabel("Inception score, higher is clearer")
        what = "Fréchet distance to the data, lower is better"
        axis.set_title(what, loc="left", color=INK["muted"], fontsize=11.5)

    return drawn_twice("tradeoff", draw, alt)


def _names(axis: Axes, series: Sequence[Series], scales: Sequence[Sequence[str]]) -> None:
    """A name beside each point, below it if it can be, left out where there is no room."""
    unit = axis.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    at = [[axis.transData.transform(p[:2]) / unit for p in one.points] for one in series]
    taken = [(x, y) for own in at for x, y in own]
    for one, own, names in zip(series, at, scales, strict=True):
        for (x, y), name, point in zip(own, names, one.points, strict=True):
            half = 3.5 * len(name)
            for dx, dy in ((8, -13), (8, 5), (-6 - 2 * half, 5), (-6 - 2 * half, -13)):
                a, b = x + dx + half, y + dy + 4  # its middle
                if all(abs(a - c) > half + 6 or abs(b - d) > 8 for c, d in taken):
                    ink, unit_of = INK[one.colour], "offset points"
                    axis.annotate(name, point[:2], (dx, dy), textcoords=unit_of, color=ink)
                    taken.append((a, b))
                    break


def fidelity(series: Sequence[Series], *, what: str, alt: str) -> Markup:
    """Errors against network calls, both axes logarithmic."""
    return drawn_twice("fidelity", _errors(series, what), alt, heights=(4.2, 4.2))


def _errors(series: Sequence[Series], what: str) -> Callable[[Axes], None]:
    bottom, top = _range(
        [p[1] for s in series for p in s.points if p[1] > 0],
        [p[3] for s in series for p in s.points if p[3] > 0],
    )

    def draw(axis: Axes) -> None:
        for one in series:
            curve(axis, one, bottom)
        axis.set_yscale("log")
        axis.set_ylim(bottom, top)
        _calls_axis(axis, [p[0] for s in series for p in s.points])
        log_ticks(axis, bottom, top)
        axis.set_title(what, loc="left", color=INK["muted"], fontsize=11.5)

    return draw


def training(lines: Sequence[Update], *, alt: str) -> Markup:
    """Loss and rate over all stages, one after the other; means of up to 160 pieces a stage, and in which
    range the losses of a piece lie."""
    stages = _pieces(lines)
    log = all(low > 0 for _, rows in stages for _, _, low, _, _ in rows)

    def draw(upper: Axes, lower: Axes) -> None:
        for _, rows in stages:
            x, mean, low, high, rate = zip(*rows, strict=True)
            upper.fill_between(x, low, high, color=INK["student"], alpha=0.18, linewidth=0)
            upper.plot(x, mean, color=INK["student"], linewidth=1.6)
            lower.plot(x, rate, color=INK["muted"], linewidth=1.6)
        if log:
            upper.set_yscale("log")
            bottom, top = _range(
                [r[2] for _, s in stages for r in s], [r[3] for _, s in stages for r in s]
            )
            upper.set_ylim(bottom, top)
            log_ticks(upper, bottom, top)
        else:
            upper.grid(axis="y", color=INK["rule"], linewidth=0.8)
        _stage_marks(upper, lower, [(name, rows[-1][0]) for name, rows in stages])

    return drawn_twice("training", draw, alt, heights=(4.6, 4.6), panels=2)


def _pieces(
    lines: Sequence[Update], most: int = 160
) -> list[tuple[str, list[tuple[float, float, float, float, float]]]]:
    """Per stage (update over all stages, mean loss, lowest, highest, rate), in the order of the lines."""
    by: dict[str, list[Update]] = {}
    for line in lines:
        by.setdefault(line.stage, []).append(line)
    done, before = [], 0
    for name, updates in by.items():
        size = ceil(len(updates) / most)
        rows = []
        for k in range(0, len(updates), size):
            part = updates[k : k + size]
            losses = [one.loss for one in part]
            last = part[-1]
            rows.append(
                (
                    float(before + last.update),
                    sum(losses) / len(losses),
                    min(losses),
                    max(losses),
                    float(last.rate),
                )
            )
        done.append((name, rows))
        before += updates[-1].update
    return done


def _stage_marks(
    upper: Axes, lower: Axes, ends: Sequence[tuple[str, float]], most: int = 12
) -> None:
    """A thin line where a stage ends, and what it distils to above it, where it has room."""
    end, first = ends[-1][1], 0.0
    for name, last in ends:
        for axis in (upper, lower):
            if first:
                axis.axvline(first, color=INK["rule"], linewidth=1)
        if 1 < len(ends) <= most and (last - first) / end > 0.03:
            upper.text(
                (first + last) / 2,
                1.02,
                re.sub(r"^0*(\d+)-steps$", r"\1", name)[:12],
                transform=upper.get_xaxis_transform(),
                ha="center",
                color=INK["muted"],
            )
        first = last
    for axis in (upper, lower):
        axis.set_xlim(0, end)
    upper.tick_params(labelbottom=False)
    upper.set_ylabel("loss")
    lower.set_ylabel("rate")
    lower.set_ylim(bottom=0)
    top = max(lower.get_ylim()[1], 1e-12)
    lower.set_yticks([0, _nice(top)], ["0", f"{_nice(top):g}"])
    lower.xaxis.set_major_formatter("{x:,.0f}")
    lower.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    lower.set_xlabel("updates, over all stages")


def _nice(top: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above."""
    unit = 10 ** floor(log10(top))
    return float(f"{next(k for k in (5, 2, 1) if k * unit <= top * 1.0000001) * unit:.1g}")


def curve(axis: Axes, one: Series, bottom: float) -> None:
    """A line through the points of a series, and a band of their intervals, cut at `bottom`."""
    x = [p[0] for p in one.points]
    y = [max(p[1], bottom) for p in one.points]
    low, high = [max(p[2], bottom) for p in one.points], [max(p[3], bottom) for p in one.points]
    colour = INK[one.colour]
    if len(x) > 1:
        axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    else:
        axis.vlines(x, low, high, color=colour, alpha=0.5, linewidth=3)
    axis.plot(
        x,
        y,
        color=colour,
        marker=one.marker,
        linestyle=one.line,
        linewidth=2.6 if one.strong else 1.5,
        markersize=7.5 if one.strong else 6,
        markerfacecolor=colour if one.strong else "none",
        markeredgewidth=1.5,
    )


def _calls_axis(axis: Axes, at: Sequence[float]) -> None:
    low, high = min(at), max(at)
    ticks = [2**k for k in range(floor(log2(low)), ceil(log2(high)) + 1) if low <= 2**k <= high]
    ticks = ticks if len(ticks) > 1 else sorted({int(x) for x in at})
    axis.set_xscale("log", base=2)
    axis.set_xlim(low / 1.25, high * 1.25)
    axis.set_xticks(ticks, [f"{k:,}" for k in ticks])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("network calls a sample")


def _range(values: Sequence[float], tops: Sequence[float]) -> tuple[float, float]:
    return 0.8 * min(values, default=0.1), 1.2 * max([*values, *tops], default=1.0)


def log_ticks(axis: Axes, bottom: float, top: float) -> None:
    """1, or 1 2 5, or more of each power of ten: the fewest that give at least four lines."""
    powers = range(floor(log10(bottom)), ceil(log10(top)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [k * 10.0**p for p in powers for k in steps if bottom <= k * 10.0**p <= top]
        if len(ticks) >= 4:
            break
    axis.set_yticks(ticks, [f"{tick:.4g}" for tick in ticks])
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(axis="y", color=INK["rule"], linewidth=0.8)
