"""The figure of a comparison of recipes: each gain with its interval, and a point for every seed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from halfstep.evaluation.recipe_comparison import Gain
from halfstep.report.plots.labels import label_uprights
from halfstep.report.plots.svg import Drawing, drawn_twice, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INKS = {"helps": "student", "does not": "ddim", "cannot tell": "teacher"}
"""The colour of a gain by its verdict."""


def gains_drawing(gains: Sequence[Gain], margin: float, *, alt: str) -> Drawing:
    """Plot the gains in points of accuracy, the best first as in the table."""
    ends = [100 * x for g in gains for x in (g.interval.low, g.interval.high, *g.differences)]
    low, high = min([*ends, 0.0]), max([*ends, 100 * margin])
    room = max(0.06 * (high - low), 0.1)

    def draw(axis: "Axes") -> None:
        axis.axvline(0, color=INK["teacher"], linewidth=1.3, linestyle="--")
        if margin:
            axis.axvline(100 * margin, color=INK["muted"], linewidth=1.3, linestyle=":")
        for k, gain in enumerate(gains):
            colour, interval = INK[INKS[gain.verdict]], gain.interval
            axis.plot(
                [100 * interval.low, 100 * interval.high], [k, k], color=colour, linewidth=2.2
            )
            axis.plot([100 * interval.value], [k], "o", color=colour, markersize=7.5)
            seeds = [100 * difference for difference in gain.differences]
            below = [k + 0.24] * len(seeds)
            axis.plot(seeds, below, "o", color=colour, markersize=4, markerfacecolor="none")
        axis.set_yticks(range(len(gains)), [gain.student for gain in gains])
        axis.set_ylim(len(gains) - 0.4, -0.6)
        axis.set_xlim(low - room, high + room)
        axis.grid(axis="x", color=INK["rule"], linewidth=0.8)
        axis.spines["left"].set_visible(False)
        axis.set_xlabel("points of accuracy more than the plain student")
        names = [(0.0, "as the plain student", "teacher")]
        names += [(100 * margin, "what matters", "muted")] if margin else []
        label_uprights(axis, names)

    height = 1.1 + 0.55 * len(gains)
    return drawn_twice("gains", draw, alt, heights=(height, height))
