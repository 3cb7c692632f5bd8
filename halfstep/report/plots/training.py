"""The plot of training: loss and learning rate over all stages."""

import re
from collections.abc import Sequence
from math import ceil, floor, log10
from typing import TYPE_CHECKING

from markupsafe import Markup

from halfstep.evaluation.report_data import Update
from halfstep.report.plots.axes import log_y, value_range
from halfstep.report.plots.svg import drawn_twice, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def training(lines: Sequence[Update], *, alt: str) -> Markup:
    """Plot loss and learning rate over all stages, as mean and range of up to 160 pieces of each stage."""
    stages = _pieces(lines)
    log = all(low > 0 for _, rows in stages for _, _, low, _, _ in rows)

    def draw(upper: "Axes", lower: "Axes") -> None:
        for _, rows in stages:
            x, mean, low, high, rate = zip(*rows, strict=True)
            upper.fill_between(x, low, high, color=INK["student"], alpha=0.18, linewidth=0)
            upper.plot(x, mean, color=INK["student"], linewidth=1.6)
            lower.plot(x, rate, color=INK["muted"], linewidth=1.6)
        if log:
            lows, highs = ([row[k] for _, rows in stages for row in rows] for k in (2, 3))
            log_y(upper, *value_range(lows, highs))
        else:
            upper.grid(axis="y", color=INK["rule"], linewidth=0.8)
        _stage_marks(upper, lower, [(name, rows[-1][0]) for name, rows in stages])

    return drawn_twice("training", draw, alt, heights=(4.6, 4.6), panels=2)


def _pieces(
    lines: Sequence[Update], most: int = 160
) -> list[tuple[str, list[tuple[float, float, float, float, float]]]]:
    """(update over all stages, mean loss, lowest, highest, rate) of each piece, by stage."""
    by: dict[str, list[Update]] = {}
    for line in lines:
        by.setdefault(line.stage, []).append(line)
    pieces, before = [], 0
    for name, updates in by.items():
        size = ceil(len(updates) / most)
        rows = []
        for k in range(0, len(updates), size):
            part = updates[k : k + size]
            losses, last = [update.loss for update in part], part[-1]
            mean = sum(losses) / len(losses)
            at, rate = float(before + last.update), float(last.rate)
            rows.append((at, mean, min(losses), max(losses), rate))
        pieces.append((name, rows))
        before += updates[-1].update
    return pieces


def _stage_marks(
    upper: "Axes", lower: "Axes", ends: Sequence[tuple[str, float]], most: int = 12
) -> None:
    """Mark the ends of the stages, with the steps of each above it if there is room."""
    from matplotlib.ticker import MaxNLocator

    end, first = ends[-1][1], 0.0
    for name, last in ends:
        for axis in (upper, lower):
            if first:
                axis.axvline(first, color=INK["rule"], linewidth=1)
        if 1 < len(ends) <= most and (last - first) / end > 0.03:
            text, place = re.sub(r"^0*(\d+)-steps$", r"\1", name)[:12], upper.get_xaxis_transform()
            middle = (first + last) / 2
            upper.text(middle, 1.02, text, transform=place, ha="center", color=INK["muted"])
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
    """The largest number of the form 1, 2 or 5 times a power of ten that is not above `top`."""
    unit = 10 ** floor(log10(top))
    return float(f"{next(k for k in (5, 2, 1) if k * unit <= top * 1.0000001) * unit:.1g}")
