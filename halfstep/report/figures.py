"""What the page draws of the evidence, and says in words for those who cannot see it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from markupsafe import Markup

from halfstep.report import curves
from halfstep.report.curves import Level, Point, Series
from halfstep.report.numbers import calls, exact, figure, Measured, MINUS, places, ratio
from halfstep.report.sizes import drawing, Line, sizes
from halfstep.report.verdict import frechet, judged, Row, rows_of, sampler, teacher_of, tolerance

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


def figures(evidence: Mapping[str, Any]) -> dict[str, Drawn]:
    """By name, those that there is something to draw of."""
    lines = sizes(evidence)
    found = {
        "quality": _quality(evidence),
        "sizes": _sizes(lines, "multiply_adds"),
        "seconds": _sizes(lines, "seconds"),
        "ratios": _ratios(evidence),
        "tradeoff": _tradeoff((evidence.get("guided") or {}).get("rows", [])),
        "fidelity": _fidelity(rows_of(evidence, "student")),
        "training": _training(evidence["training"]),
    }
    return {name: drawn for name, drawn in found.items() if drawn}


def _quality(evidence: Mapping[str, Any]) -> Drawn | None:
    series = _baselines(rows_of(evidence, "baseline"))
    if mine := _points((row["calls"], frechet(row)) for row in rows_of(evidence, "student")):
        series.insert(0, Series("student", mine, "student", strong=True))
    if not series:
        return None
    levels, full, floor = [], teacher_of(evidence), evidence["measure"].get("floor")
    if full and (own := frechet(full)):
        levels.append(Level(f"teacher, {calls(full['calls'])}", *_three(own), "teacher"))
    if floor is not None and floor > 0:
        levels.append(Level("sampling floor", floor, floor, floor, "muted", ":"))
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
        by.setdefault(str(row["sampler"]), []).append(row)
    spare, found = cycle("vph"), []
    for name, own in sorted(by.items()):
        colour, marker = LOOKS.get(name) or ("other", next(spare))
        if points := _points((row["calls"], frechet(row)) for row in own):
            found.append(Series(f"teacher, {sampler(own[0])}", points, colour, marker))
    return found


def _ratios(evidence: Mapping[str, Any]) -> Drawn | None:
    limit = tolerance(evidence)
    rows, said = [], []
    for row in rows_of(evidence, "student"):
        if found := judged(evidence, row):
            label = calls(row["calls"]).replace("network ", "")
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


def _tradeoff(rows: Sequence[Row]) -> Drawn | None:
    """The teacher and every student over the guidance scale, the rows of evidence["guided"]."""
    by: dict[str, list[Row]] = {}
    for row in rows:
        if row["inception_score"] is not None:
            by.setdefault(row["name"], []).append(row)
    looks, series, scales, said = cycle(STUDENTS), [], [], []
    for name, own in by.items():
        teacher = own[0]["who"] == "teacher"
        colour, marker = ("teacher", "o") if teacher else next(looks)
        points = [(row["inception_score"], *[row["to_data"]] * 3) for row in own]
        line = "--" if teacher else "-"
        series.append(Series(name, points, colour, marker, line, strong=teacher))
        scales.append([f"{row['guidance']:g}" for row in own])
        decimals = places(row["to_data"] for row in own)
        said.append(f"{name}: " + ", ".join(_at_scale(row, decimals) for row in own) + ".")
    if not series:
        return None
    alt = f"Fréchet distance to the data against Inception score. {' '.join(said)}"
    return Drawn(curves.tradeoff(series, scales, alt=alt), _legend(series))


def _at_scale(row: Row, decimals: int) -> str:
    distance, score = figure(row["to_data"], decimals), figure(row["inception_score"], 2)
    return f"{distance} at {score} for scale {row['guidance']:g}"


def _fidelity(students: Sequence[Row]) -> Drawn | None:
    def of(group: str, name: str) -> list[Point]:
        return _points((row["calls"], (row.get(group) or {}).get(name)) for row in students)

    found = [
        Series(
            "student against the teacher at full steps",
            of("fidelity", "rmse"),
            "student",
            strong=True,
        ),
        Series("what the coarser grid costs", of("split", "grid"), "solver", "s", "--"),
        Series("what was not learned", of("split", "learning"), "ddim", "^"),
    ]
    series = [one for one in found if any(value > 0 for _, value, _, _ in one.points)]
    if not series:
        return None
    alt = f"Errors against network calls, both axes logarithmic. {_spoken(series)}"
    what = f"root mean square, pixels from {MINUS}1 to 1; lower is better"
    return Drawn(curves.fidelity(series, what=what, alt=alt), _legend(series))


def _training(lines: Sequence[Mapping[str, Any]]) -> Drawn | None:
    kept = [line for line in lines if line.get("loss") is not None and line.get("rate") is not None]
    if not kept:
        return None
    last = {str(line["stage"]): line["loss"] for line in kept}
    ends = ", ".join(f"{name} {loss:.2g}" for name, loss in last.items())
    alt = f"Training loss and rate over all stages. The loss at the end of each: {ends}."
    return Drawn(curves.training(kept, alt=alt))


def _points(pairs: Iterable[tuple[int, Measured | None]]) -> list[Point]:
    return sorted((float(x), *_three(measured)) for x, measured in pairs if measured)


def _three(measured: Measured) -> tuple[float, float, float]:
    return measured["value"], measured["low"], measured["high"]


def _legend(series: Sequence[Series]) -> list[tuple[str, str, str]]:
    return [(GLYPHS[one.marker], one.colour, one.name) for one in series]


def _spoken(series: Sequence[Series]) -> str:
    def points(one: Series) -> str:
        decimals = places(y for _, y, _, _ in one.points)
        return ", ".join(f"{figure(y, decimals)} at {x:.0f}" for x, y, _, _ in one.points)

    return " ".join(f"{one.name}: {points(one)}." for one in series)
