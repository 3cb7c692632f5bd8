"""The plot of training: loss and learning rate over all stages."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, floor, log10
from typing import TYPE_CHECKING

from halfstep.evaluation.report_data import Update
from halfstep.report.plots.axes import log_y, value_range
from halfstep.report.plots.labels import axes_size, LINE, rows_of_labels, text_width
from halfstep.report.plots.svg import Drawing, drawn_twice, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Piece:
    """Successive logged updates of a stage: number of the last, mean, lowest and highest loss, last rate."""

    update: int
    loss: float
    low: float
    high: float
    rate: float


@dataclass(frozen=True)
class Span:
    """A stage on the axis: its pieces, from `start` to `start + width` of an axis from 0 to 1."""

    name: str
    pieces: Sequence[Piece]
    start: float
    width: float

    @property
    def updates(self) -> int:
        return self.pieces[-1].update

    @property
    def middle(self) -> float:
        return self.start + self.width / 2

    @property
    def x(self) -> list[float]:
        """Positions of the pieces; a single one lies in the middle."""
        if len(self.pieces) == 1:
            return [self.middle]
        return [self.start + self.width * piece.update / self.updates for piece in self.pieces]


def training(lines: Sequence[Update], *, alt: str) -> Drawing:
    """Plot loss and learning rate over all stages, as mean and range of up to 160 pieces of each stage."""
    spans = stage_spans(lines)
    pieces = [piece for span in spans for piece in span.pieces]

    def draw(upper: "Axes", lower: "Axes") -> None:
        for span in spans:
            loss, rate = [p.loss for p in span.pieces], [p.rate for p in span.pieces]
            low, high = [p.low for p in span.pieces], [p.high for p in span.pieces]
            marker = "o" if len(loss) == 1 else "None"  # a line of one point is not drawn
            if len(loss) > 1:
                upper.fill_between(span.x, low, high, color=INK["student"], alpha=0.18, linewidth=0)
            elif high > low:
                upper.vlines(span.x, low, high, color=INK["student"], alpha=0.5, linewidth=3)
            for axis, y, ink in ((upper, loss, "student"), (lower, rate, "muted")):
                axis.plot(span.x, y, color=INK[ink], linewidth=1.6, marker=marker, markersize=4.5)
        if all(piece.low > 0 for piece in pieces):
            log_y(upper, *value_range([p.low for p in pieces], [p.high for p in pieces]))
        else:
            upper.grid(axis="y", color=INK["rule"], linewidth=0.8)
        _axes(upper, lower, spans)

    return drawn_twice("training", draw, alt, heights=(4.6, 4.6), panels=2)


def stage_spans(lines: Sequence[Update]) -> list[Span]:
    """The stages side by side, each as wide as `shares` says."""
    by: dict[str, list[Update]] = {}
    for line in lines:
        by.setdefault(line.stage, []).append(line)
    widths = shares([updates[-1].update for updates in by.values()])
    starts = accumulate(widths, initial=0.0)
    return [
        Span(name, _pieces(updates), start, width)
        for (name, updates), start, width in zip(by.items(), starts, widths, strict=False)
    ]


def shares(updates: Sequence[int]) -> list[float]:
    """Widths of stages that sum to 1, in proportion to their updates, but at least half of an equal share."""
    least = 0.5 / len(updates)
    short: set[int] = set()
    while True:
        long = sum(n for k, n in enumerate(updates) if k not in short)
        unit = (1 - least * len(short)) / long
        below = {k for k, n in enumerate(updates) if k not in short and n * unit < least}
        if not below:
            return [least if k in short else n * unit for k, n in enumerate(updates)]
        short |= below


def _pieces(updates: Sequence[Update], most: int = 160) -> list[Piece]:
    """The logged updates of one stage in at most `most` pieces of equal size."""
    size = ceil(len(updates) / most)
    pieces = []
    for k in range(0, len(updates), size):
        part = updates[k : k + size]
        losses, last = [update.loss for update in part], part[-1]
        mean = sum(losses) / len(losses)
        pieces.append(Piece(last.update, mean, min(losses), max(losses), last.rate))
    return pieces


def _axes(upper: "Axes", lower: "Axes", spans: Sequence[Span]) -> None:
    """Name each stage above its part of the axis, and write its number of updates below it."""
    for axis in (upper, lower):
        axis.set_xlim(0, 1)
        axis.set_xticks([])
        for span in spans[1:]:
            axis.axvline(span.start, color=INK["rule"], linewidth=1)
    upper.set_ylabel("loss")
    lower.set_ylabel("rate")
    lower.set_ylim(bottom=0)
    top = max(lower.get_ylim()[1], 1e-12)
    lower.set_yticks([0, _nice(top)], ["0", f"{_nice(top):g}"])
    _label(upper, spans, [short_name(span.name) for span in spans], above=True)
    rows = _label(lower, spans, [f"{span.updates:,}" for span in spans], above=False)
    lower.set_xlabel(
        "updates of each stage" if len(spans) > 1 else "updates", labelpad=6 + LINE * rows
    )


def short_name(stage: str) -> str:
    """The steps of a stage of halving; the name of another one."""
    return re.sub(r"^0*(\d+)-steps$", r"\1", stage)


def _label(axis: "Axes", spans: Sequence[Span], texts: Sequence[str], *, above: bool) -> int:
    """Write a text over or under each stage, in as many rows as keep them apart; return their number."""
    width = axes_size(axis)[0]
    halves = [min(text_width(text), width) / 2 for text in texts]
    middles = [
        min(max(span.middle * width, half), width - half)
        for span, half in zip(spans, halves, strict=True)
    ]
    rows = rows_of_labels([(x, 2 * half) for x, half in zip(middles, halves, strict=True)])
    for x, text, row in zip(middles, texts, rows, strict=True):
        offset = 4 + LINE * row
        axis.annotate(
            text, (x / width, 1 if above else 0), (0, offset if above else -offset),
            xycoords="axes fraction", textcoords="offset points", ha="center",
            va="bottom" if above else "top", color=INK["muted"],
        )  # fmt: skip
    return 1 + max(rows)


def _nice(top: float) -> float:
    """The largest number of the form 1, 2 or 5 times a power of ten that is not above `top`."""
    unit = 10 ** floor(log10(top))
    return float(f"{next(k for k in (5, 2, 1) if k * unit <= top * 1.0000001) * unit:.1g}")
