"""Labels of plots, placed so that none overlaps another."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from halfstep.report.plots.svg import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE, CHARACTER = 15.0, 7.4
"""Height of a line of text and largest mean width of a character, in points."""
PARTS = re.compile(r"[^-_./=,]*[-_./=,]+|[^-_./=,]+")
"""Parts of a word, each to its hyphen or the like."""


@dataclass(frozen=True)
class End:
    """The right end of a curve, in data coordinates, with its label and its colour of `COLOURS`."""

    x: float
    y: float
    label: str
    colour: str


def text_width(text: str) -> float:
    """Width of a text of one line, in points, at most."""
    return CHARACTER * len(text)


def lines_of(text: str, characters: int) -> list[str]:
    """The lines of a label. A word that is too long for one is broken after a hyphen or the like."""
    lines = [""]
    for word in text.split():
        last = f"{lines[-1]} ".lstrip()
        if len(last + word) <= characters:
            lines[-1] = last + word
        elif len(word) <= characters:
            lines.append(word)
        else:
            lines[-1:] = _broken(last, word, characters)
    return [line.rstrip() for line in lines]


def _broken(line: str, word: str, characters: int) -> list[str]:
    """The lines of a word that is too long for one; the first begins with `line`."""
    lines = [line]
    for part in PARTS.findall(word):
        if len(lines[-1] + part) > characters and lines[-1]:
            lines.append("")
        for k in range(0, len(part), characters):
            lines[-1] += part[k : k + characters]
            if k + characters < len(part):
                lines.append("")
    return lines


def axes_size(axis: "Axes") -> tuple[float, float]:
    """Width and height of the axes in points, as laid out with what was drawn so far."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    box = axis.get_window_extent()
    return box.width, box.height  # a pixel of a plot is a point


def rows_of_labels(labels: Sequence[tuple[float, float]], gap: float = 6.0) -> list[int]:
    """The lowest row for each (middle, width), in order, in which it overlaps no earlier label."""
    ends, rows = list[float](), []
    for middle, width in labels:
        left = middle - width / 2
        row = next((k for k, end in enumerate(ends) if left >= end + gap), len(ends))
        ends[row : row + 1] = [middle + width / 2]
        rows.append(row)
    return rows


def spread(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Middles of labels of these sizes in the order of `wanted`, none overlapping another.

    The sum of squared distances to `wanted` is least: labels that would overlap become one block around the
    mean of their wishes.
    """
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    blocks = list[tuple[list[int], float, float]]()  # members, start, size
    for k in order:
        members, start, size = [k], wanted[k] - sizes[k] / 2, sizes[k]
        while blocks and blocks[-1][1] + blocks[-1][2] > start:
            before, first, length = blocks.pop()
            count, added = len(before), len(members)
            start = (first * count + (start - length) * added) / (count + added)
            members, size = before + members, length + size
        blocks.append((members, start, size))
    places = [0.0] * len(wanted)
    for members, start, _ in blocks:
        for k in members:
            places[k] = start + sizes[k] / 2
            start += sizes[k]
    return places


def label_ends(axis: "Axes", ends: Sequence[End]) -> None:
    """Write the label of each curve right of the axes, with a thin line from the end of the curve.

    Call it last: it reads the limits of the axes.
    """
    from matplotlib.transforms import offset_copy  # here, as matplotlib is an extra

    figure = axis.get_figure(root=True)
    assert figure is not None
    characters = 28 if figure.get_size_inches()[0] > 6 else 17
    texts = ["\n".join(lines_of(end.label, characters)) for end in ends]
    _, height = axes_size(axis)
    to_axes = axis.transData + axis.transAxes.inverted()
    wanted = [to_axes.transform((end.x, end.y))[1] * height for end in ends]
    places = spread(wanted, [LINE * (1 + text.count("\n")) for text in texts])
    beside = offset_copy(axis.transAxes, figure, 14, 0, units="points")
    for end, text, place in zip(ends, texts, places, strict=True):
        ink = INK[end.colour]
        axis.annotate(
            text, (end.x, end.y), (1, place / height), textcoords=beside, color=ink, va="center",
            linespacing=1.0, annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": ink, "linewidth": 0.8, "alpha": 0.6, "shrinkA": 2,
                "shrinkB": 4, "relpos": (0, 0.5),
            },
        )  # fmt: skip


def label_uprights(axis: "Axes", lines: Sequence[tuple[float, str, str]]) -> None:
    """Write above each vertical line at (x, label, colour) its label, in as many rows as needed."""
    width, lines = axes_size(axis)[0], sorted(lines)
    to_axes = axis.transData + axis.transAxes.inverted()
    middles = [to_axes.transform((x, 0))[0] * width for x, _, _ in lines]
    labels = [(at, text_width(text)) for at, (_, text, _) in zip(middles, lines, strict=True)]
    for row, (x, text, colour) in zip(rows_of_labels(labels), lines, strict=True):
        axis.annotate(
            text, (x, 1), (0, 4 + LINE * row), xycoords=axis.get_xaxis_transform(),
            textcoords="offset points", ha="center", va="bottom", color=INK[colour],
        )  # fmt: skip
