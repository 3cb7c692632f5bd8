"""What the page draws of the evidence, and says in words for those who cannot see it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle

from markupsafe import Markup

from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.report_data import AnyReport, GuidedRow, Report, Row, Update
from halfstep.report.plots import curves
from halfstep.report.plots.curves import Point, ReferenceLine, Series
from halfstep.report.plots.sizes import drawing, Line, sizes
from halfstep.report.words.numbers import calls, exact, figure, MINUS, places, ratio
from halfstep.report.words.verdict import judged, sampler, tolerance

LOOKS = {  # of the best known samplers: colour, marker
    "ddim": ("ddim", "s"),
    "dpmpp-2m": ("solver", "^"),
    "heun": ("heun", "D"),
}
GLYPHS = {"o": "●", "s": "□", "^": "△", "D": "◇", "v": "▽", "p": "⬠", "h": "⬡"}
STUDENTS = list(zip(("student", "solver", "other", "ddim", "heun"), "s^Dvp", strict=True))
"""Colour and marker of students beside each other, the one of the most steps first."""
DASHED, DOTTED, EDGE = "╌", "┈", "┃"


@dataclass(frozen=True)
class Drawn:
    """A drawing and its legend: (glyph, colour, name) of each curve."""

    svg: Markup
    legend: Sequence[tuple[str, str, str]] = ()


def figures(report: AnyReport) -> dict[str, Drawn]:
    """By name, those that there is something to draw of."""
    drawings = {"training": _training(report.training)}
    if isinstance(report, Report):
        lines = sizes(report)
        drawings |= {
            "quality": _quality(report),
            "sizes": _sizes(lines, "multiply_adds"),
            "seconds": _sizes(lines, "seconds"),
            "ratios": _ratios(report),
            "tradeoff": _tradeoff(report.guided.rows if report.guided else ()),
            "fidelity": _fidelity(report.students),
        }
    return {name: drawn for name, drawn in drawings.items() if drawn}


def _quality(report: Report) -> Drawn | None:
    series = _baselines(report.rows_of("baseline"))
    students = _points((row.calls, row.distances.frechet_distance) for row in report.students)
    if students:
        series.insert(0, Series("student", students, "student", strong=True))
    if not series:
        return None
    full, floor = report.teacher, report.measure.floor
    levels = [
        ReferenceLine(
            f"teacher, {calls(full.calls)}", *_three(full.distances.frechet_distance), "teacher"
        )
    ]
    if floor > 0:
        levels.append(ReferenceLine("sampling floor", floor, floor, floor, "muted", ":"))
    alt = (
        f"Fréchet distance against network calls, both axes logarithmic. {_spoken(series)}"
        + "".join(f" {one.name}: {figure(one.value, places([one.value]))}." for one in levels)
    )
    legend = _legend(series)
    legend += [(DASHED if one.line == "--" else DOTTED, one.colour, one.name) for one in levels]
    return Drawn(
        curves.quality(series, levels, what="Fréchet distance, lower is better", alt=alt), legend
    )


def _sizes(lines: Sequence[Line], at: str) -> Drawn | None:
    if not (found := drawing(lines, at)):
        return None
    return Drawn(found[0], _legend(found[1]))


def _baselines(rows: Sequence[Row]) -> list[Series]:
    """One curve a sampler."""
    by: dict[str, list[Row]] = {}
    for row in rows:
        by.setdefault(row.sampler, []).append(row)
    spare, found = cycle("vph"), []
    for name, own in sorted(by.items()):
        colour, marker = LOOKS.get(name) or ("other", next(spare))
        if points := _points((row.calls, row.distances.frechet_distance) for row in own):
            found.append(Series(f"teacher, {sampler(own[0])}", points, colour, marker))
    return found


def _ratios(report: Report) -> Drawn | None:
    limit = tolerance(report)
    rows, said = [], []
    for row in report.students:
        if found := judged(report, row):
            label = calls(row.calls).replace("network ", "")
            rows.append((label, *_three(found)))
            said.append(f"{label} {ratio(found, limit)}")
    if not rows:
        return None
    alt = f"Fréchet distance of each student over its teacher's: {', '.join(said)}."
    legend = [("●", "student", "student"), (DASHED, "teacher", "as the teacher")]
    if limit:
        alt += f" The tolerance is {exact(limit)}."
        legend.append((EDGE, "student", f"tolerance {exact(limit)}"))
    return Drawn(curves.ratios(rows, tolerance=limit, alt=alt), legend)


def _tradeoff(rows: Sequence[GuidedRow]) -> Drawn | None:
    """The teacher and every student over the guidance scale, the rows of a guided table."""
    by: dict[str, list[tuple[GuidedRow, float]]] = {}
    for row in rows:
        if row.inception_score is not None:
            by.setdefault(row.name, []).append((row, row.inception_score))
    looks, series, scales, said = cycle(STUDENTS), [], [], []
    for name, own in by.items():
        teacher = own[0][0].role == "teacher"
        colour, marker = ("teacher", "o") if teacher else next(looks)
        points = [
            (score, row.data_distance, row.data_distance, row.data_distance) for row, score in own
        ]
        line = "--" if teacher else "-"
        series.append(Series(name, points, colour, marker, line, strong=teacher))
        scales.append([f"{row.guidance_scale:g}" for row, _ in own])
        decimals = places(row.data_distance for row, _ in own)
        said.append(
            f"{name}: " + ", ".join(_at_scale(row, score, decimals) for row, score in own) + "."
        )
    if not series:
        return None
    alt = f"Fréchet distance to the data against Inception score. {' '.join(said)}"
    return Drawn(curves.tradeoff(series, scales, alt=alt), _legend(series))


def _at_scale(row: GuidedRow, score: float, decimals: int) -> str:
    distance = figure(row.data_distance, decimals)
    return f"{distance} at {figure(score, 2)} for scale {row.guidance_scale:g}"


def _fidelity(students: Sequence[Row]) -> Drawn | None:
    errors = [(row.calls, row.fidelity.rmse if row.fidelity else None) for row in students]
    grid = [(row.calls, row.split.grid if row.split else None) for row in students]
    learning = [(row.calls, row.split.learning if row.split else None) for row in students]
    name = "student against the teacher at full steps"
    found = [
        Series(name, _points(errors), "student", strong=True),
        Series("what the coarser grid costs", _points(grid), "solver", "s", "--"),
        Series("what was not learned", _points(learning), "ddim", "^"),
    ]
    series = [one for one in found if any(value > 0 for _, value, _, _ in one.points)]
    if not series:
        return None
    alt = f"Errors against network calls, both axes logarithmic. {_spoken(series)}"
    what = f"root mean square, pixels from {MINUS}1 to 1; lower is better"
    return Drawn(curves.fidelity(series, what=what, alt=alt), _legend(series))


def _training(updates: Sequence[Update]) -> Drawn | None:
    if not updates:
        return None
    last = {one.stage: one.loss for one in updates}
    ends = ", ".join(f"{name} {loss:.2g}" for name, loss in last.items())
    alt = f"Training loss and rate over all stages. The loss at the end of each: {ends}."
    return Drawn(curves.training(updates, alt=alt))


def _points(pairs: Iterable[tuple[int, Interval | None]]) -> list[Point]:
    return sorted((float(x), *_three(measured)) for x, measured in pairs if measured)


def _three(measured: Interval) -> tuple[float, float, float]:
    return measured.value, measured.low, measured.high


def _legend(series: Sequence[Series]) -> list[tuple[str, str, str]]:
    return [(GLYPHS[one.marker], one.colour, one.name) for one in series]


def _spoken(series: Sequence[Series]) -> str:
    def points(one: Series) -> str:
        decimals = places(y for _, y, _, _ in one.points)
        return ", ".join(f"{figure(y, decimals)} at {x:.0f}" for x, y, _, _ in one.points)

    return " ".join(f"{one.name}: {points(one)}." for one in series)
