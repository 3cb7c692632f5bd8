"""The figures of a report, with alternative texts and the numbers that they show."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle

from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.report_data import AnyReport, GuidedRow, Report, Row, Update
from halfstep.evaluation.verdicts import decisive_ratio, tolerance
from halfstep.extras import installed
from halfstep.report.data_tables import Rows, spread as columns
from halfstep.report.plots import curves
from halfstep.report.plots.axes import Point, Series
from halfstep.report.plots.curves import ReferenceLine
from halfstep.report.plots.sizes import drawing, Line, series_of, sizes
from halfstep.report.plots.svg import Drawing
from halfstep.report.plots.training import stage_spans, training
from halfstep.report.words.numbers import calls, exact, figure, MINUS, places, ratio
from halfstep.report.words.verdict import sampler

STYLES = {  # colour and marker of samplers
    "ddim": ("ddim", "s"),
    "dpmpp-2m": ("solver", "^"),
    "heun": ("heun", "D"),
}
STUDENTS = list(zip(("student", "solver", "other", "ddim", "heun"), "s^Dvp", strict=True))
"""Colour and marker of several students, most steps first."""


@dataclass(frozen=True)
class PageFigure:
    """A figure and the numbers that it shows."""

    drawing: Drawing
    data: Rows


def without_figures() -> str:
    """The sentence for a page without figures; empty where matplotlib is installed."""
    if installed("matplotlib"):
        return ""
    return "they need matplotlib, pip install 'halfstep[figures]'"


def figures(report: AnyReport) -> dict[str, PageFigure]:
    """All figures of a report with data, by name; without matplotlib, an extra, no figure."""
    if without_figures():
        return {}
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


def _quality(report: Report) -> PageFigure | None:
    series = _baselines(report.rows_of("baseline"))
    students = _points((row.calls, row.distances.frechet_distance) for row in report.students)
    if students:
        series.insert(0, Series("student", students, "student", strong=True))
    if not series:
        return None
    full, floor = report.teacher, report.measure.floor
    levels = [
        ReferenceLine(
            f"teacher, {calls(full.calls)}", *_ends(full.distances.frechet_distance), "teacher"
        )
    ]
    if floor > 0:
        levels.append(ReferenceLine("sampling floor", floor, floor, floor, "muted", ":"))
    alt = (
        f"Fréchet distance against network calls, both axes logarithmic. {_alt_text(series)}"
        + "".join(
            f" {level.name}: {figure(level.value, places([level.value]))}." for level in levels
        )
    )
    drawn = curves.quality(series, levels, title="Fréchet distance, lower is better", alt=alt)
    lines = [
        {
            "series": level.name,
            "calls": None,
            **columns("frechet_distance", Interval(level.value, level.low, level.high)),
        }
        for level in levels
    ]
    return PageFigure(drawn, [*_data(series, "calls", "frechet_distance"), *lines])


def _sizes(lines: Sequence[Line], at: str) -> PageFigure | None:
    if not (series := series_of(lines, at)):
        return None
    return PageFigure(drawing(lines, at, series), _data(series, at, "frechet_distance"))


def _baselines(rows: Sequence[Row]) -> list[Series]:
    """A curve for each sampler."""
    by: dict[str, list[Row]] = {}
    for row in rows:
        by.setdefault(row.sampler, []).append(row)
    spare, series = cycle("vph"), []
    for name, sampler_rows in sorted(by.items()):
        colour, marker = STYLES.get(name) or ("other", next(spare))
        if points := _points((row.calls, row.distances.frechet_distance) for row in sampler_rows):
            series.append(Series(f"teacher, {sampler(sampler_rows[0])}", points, colour, marker))
    return series


def _ratios(report: Report) -> PageFigure | None:
    limit = tolerance(report)
    rows, data, texts = [], [], []
    for row in report.students:
        if measured := decisive_ratio(report, row):
            label = calls(row.calls).replace("network ", "")
            rows.append((label, *_ends(measured)))
            data.append({"calls": row.calls, **columns("ratio", measured)})
            texts.append(f"{label} {ratio(measured, limit)}")
    if not rows:
        return None
    alt = f"Fréchet distance of each student over its teacher's: {', '.join(texts)}."
    if limit:
        alt += f" The tolerance is {exact(limit)}."
    return PageFigure(curves.ratios(rows, tolerance=limit, alt=alt), data)


def _tradeoff(rows: Sequence[GuidedRow]) -> PageFigure | None:
    """The figure of teacher and students over the guidance scale, from a guided table."""
    by: dict[str, list[tuple[GuidedRow, float]]] = {}
    for row in rows:
        if row.inception_score is not None:
            by.setdefault(row.name, []).append((row, row.inception_score))
    styles, series, scales, texts = cycle(STUDENTS), [], [], []
    for name, scored_rows in by.items():
        teacher = scored_rows[0][0].role == "teacher"
        colour, marker = ("teacher", "o") if teacher else next(styles)
        points = [
            (score, row.data_distance, row.data_distance, row.data_distance)
            for row, score in scored_rows
        ]
        line = "--" if teacher else "-"
        series.append(Series(name, points, colour, marker, line, strong=teacher))
        scales.append([f"{row.guidance_scale:g}" for row, _ in scored_rows])
        decimals = places(row.data_distance for row, _ in scored_rows)
        texts.append(
            f"{name}: "
            + ", ".join(_at_scale(row, score, decimals) for row, score in scored_rows)
            + "."
        )
    if not series:
        return None
    alt = f"Fréchet distance to the data against Inception score. {' '.join(texts)}"
    data: Rows = [
        {
            "series": name,
            "guidance_scale": row.guidance_scale,
            "inception_score": score,
            "frechet_distance": row.data_distance,
        }
        for name, scored_rows in by.items()
        for row, score in scored_rows
    ]
    return PageFigure(curves.tradeoff(series, scales, alt=alt), data)


def _at_scale(row: GuidedRow, score: float, decimals: int) -> str:
    distance = figure(row.data_distance, decimals)
    return f"{distance} at {figure(score, 2)} for scale {row.guidance_scale:g}"


def _fidelity(students: Sequence[Row]) -> PageFigure | None:
    errors = [(row.calls, row.fidelity.rmse if row.fidelity else None) for row in students]
    grid = [(row.calls, row.split.grid if row.split else None) for row in students]
    learning = [(row.calls, row.split.learning if row.split else None) for row in students]
    name = "student against the teacher at full steps"
    candidates = [
        Series(name, _points(errors), "student", strong=True),
        Series("what the coarser grid costs", _points(grid), "solver", "s", "--"),
        Series("what was not learned", _points(learning), "ddim", "^"),
    ]
    series = [errors for errors in candidates if any(value > 0 for _, value, _, _ in errors.points)]
    if not series:
        return None
    alt = f"Errors against network calls, both axes logarithmic. {_alt_text(series)}"
    title = f"root mean square, pixels from {MINUS}1 to 1; lower is better"
    return PageFigure(curves.fidelity(series, title=title, alt=alt), _data(series, "calls", "rmse"))


def _training(updates: Sequence[Update]) -> PageFigure | None:
    if not updates:
        return None
    last = {update.stage: update.loss for update in updates}
    ends = ", ".join(f"{name} {loss:.2g}" for name, loss in last.items())
    alt = f"Training loss and rate over all stages. The loss at the end of each: {ends}."
    data: Rows = [
        {"stage": span.name} | asdict(piece)
        for span in stage_spans(updates)
        for piece in span.pieces
    ]
    return PageFigure(training(updates, alt=alt), data)


def _points(pairs: Iterable[tuple[int, Interval | None]]) -> list[Point]:
    return sorted((float(x), *_ends(measured)) for x, measured in pairs if measured)


def _ends(measured: Interval) -> tuple[float, float, float]:
    return measured.value, measured.low, measured.high


def _data(series: Sequence[Series], x: str, y: str) -> Rows:
    """The points of curves, as rows of their data."""
    return [
        {"series": item.name, x: at, **columns(y, Interval(*interval))}
        for item in series
        for at, *interval in item.points
    ]


def _alt_text(series: Sequence[Series]) -> str:
    def points(item: Series) -> str:
        decimals = places(y for _, y, _, _ in item.points)
        return ", ".join(f"{figure(y, decimals)} at {x:.0f}" for x, y, _, _ in item.points)

    return " ".join(f"{item.name}: {points(item)}." for item in series)
