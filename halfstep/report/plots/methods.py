"""The figure of a comparison of methods: the ratio to the teacher against network calls."""

from itertools import cycle

from halfstep.evaluation.method_data import MethodComparison
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.report.data_tables import Rows, spread
from halfstep.report.plots import curves
from halfstep.report.plots.axes import Series
from halfstep.report.plots.curves import ReferenceLine
from halfstep.report.plots.figures import PageFigure, STUDENTS, without_figures
from halfstep.report.words.methods import walk
from halfstep.report.words.numbers import figure

LINES = ("-", "--", ":")
"""Lines of more methods than there are colours."""


def method_figures(comparison: MethodComparison) -> dict[str, PageFigure]:
    """The figure by its name; empty without matplotlib, an extra, or without a student."""
    series = _series(comparison)
    if without_figures() or not series:
        return {}
    levels = [ReferenceLine(f"teacher, {walk(comparison.teacher)}", 1.0, 1.0, 1.0, "teacher")]
    if (ratio := comparison.target.ratio) is not None:
        name = f"target, {walk(comparison.target)}"
        levels.append(ReferenceLine(name, ratio.value, ratio.low, ratio.high, "muted", ":"))
    alt = f"Ratio to the teacher's Fréchet distance against network calls. {_alt(series)}"
    drawn = curves.quality(series, levels, title="Fréchet distance over the teacher's", alt=alt)
    return {"methods": PageFigure(drawn, _data(series))}


def _series(comparison: MethodComparison) -> list[Series]:
    """A curve for each method; each colour first with an unbroken line."""
    styles = ((colour, marker, line) for line in LINES for colour, marker in STUDENTS)
    found, endless = list[Series](), cycle(styles)
    for method in comparison.methods:
        means = [mean for mean in comparison.means if mean.method == method.name]
        points = sorted((float(m.calls), m.ratio.value, m.ratio.low, m.ratio.high) for m in means)
        colour, marker, line = next(endless)
        if points:
            found.append(Series(method.name, points, colour, marker, line))
    return found


def _alt(series: list[Series]) -> str:
    texts = (
        f"{each.name}: {', '.join(f'{figure(y, 3)} at {x:.0f}' for x, y, _, _ in each.points)}."
        for each in series
    )
    return " ".join(texts)


def _data(series: list[Series]) -> Rows:
    return [
        {"series": each.name, "calls": x, **spread("ratio", Interval(value, low, high))}
        for each in series
        for x, value, low, high in each.points
    ]
