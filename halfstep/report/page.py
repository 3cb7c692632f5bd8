"""RUN/report.html: a report as one self-contained page, for screen, phone and paper."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from halfstep.errors import DataError
from halfstep.evaluation.report_data import AnyReport, EncoderReport, Report, Row
from halfstep.evaluation.verdicts import verdicts
from halfstep.report.citation import bibtex
from halfstep.report.data_tables import Rows
from halfstep.report.downloads import download, downloads, file_stem
from halfstep.report.guided_table import guided_pictures, guided_view
from halfstep.report.images.grids import sheets
from halfstep.report.page_tables import (
    compressed_rows,
    cost_table,
    drift_table,
    sampled_rows,
    student_line,
)
from halfstep.report.plots.figures import figures, without_figures
from halfstep.report.plots.sizes import sizes
from halfstep.report.plots.svg import COLOURS
from halfstep.report.table_rows import encoder_tables, named_values, report_tables
from halfstep.report.templates import template, write_page
from halfstep.report.words import numbers, verdict as words
from halfstep.report.words.headline import summarised
from halfstep.report.words.tiles import tiles
from halfstep.schema import plain

LIMIT = 5_000_000
MEASURES = {
    "frechet_distance": "Fréchet distance",
    "frechet_unbiased": "Fréchet distance, endless samples",
    "kernel_distance": "kernel distance",
    "inception_score": "Inception score",
    "precision": "precision",
    "recall": "recall",
}


def write(report: AnyReport, path: Path) -> Path:
    """Write the page, without scripts, and return its path.

    Deterministic to the byte.  `DataError` for numbers that are not finite, `ConfigError` for a page of 5 MB
    or more.
    """
    instead = "give it fewer pictures or a shorter configuration"
    return write_page(path, render(report), limit=LIMIT, name="the report", instead=instead)


def render(report: AnyReport) -> str:
    """The page as text; values that are None are omitted."""
    refuse_not_finite(report)
    if not report.headline:
        report = summarised(report)
    drawn, config, made = figures(report), list(_flat(report.run.config)), asdict(report.provenance)
    values, tables = _sampling(report) if isinstance(report, Report) else _encoding(report)
    tables["versions"] = named_values(made.items())
    tables["configuration"] = named_values(config)
    citation = bibtex(report)
    files = downloads(report.run.folder, tables, drawn)
    files["citation"] = [download(f"{file_stem(report.run.folder)}.bib", citation)]
    return template("page.html.j2").render(
        report=report,
        figures=drawn,
        without_figures=without_figures(),
        sheets=sheets(report.pictures),
        config=config,
        made=made,
        bibtex=citation,
        downloads=files,
        colours=COLOURS,
        words=words,
        tiles=tiles(report),
        dash=numbers.DASH,
        **values,
    )


def _encoding(report: EncoderReport) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Values of the page of encoders, and the numbers of its tables."""
    values: dict[str, Any] = {"encoders": True, "guided": None, "cautions": [], "alarms": []}
    return values, encoder_tables(report)


def _sampling(report: Report) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Values of the page of students that sample, and the numbers of its tables."""
    students, rows = report.students, sampled_rows(report)
    measured = [name for name in MEASURES if any(getattr(row.distances, name) for row in rows)]
    shown: dict[str, Any] = {
        "comparison": [
            student_line(report, row, answer)
            for row, answer in zip(students, report.verdicts or verdicts(report), strict=True)
        ],
        "rows": rows,
        "sizes": sizes(report),
        "compressed": compressed_rows(report),
        "drift": drift_table(students),
        "cost": cost_table(rows, report.teacher),
    }
    values = {
        "encoders": False,
        "full": report.teacher,
        "students": students,
        "alarms": _alarms(students),
        "cautions": words.too_few_samples(report),
        "places": {name: _places(rows, name) for name in MEASURES},
        "measures": {name: MEASURES[name] for name in measured},
        "guided": guided_view(report.guided),
        "smaller": _smaller(report),
        "slider": guided_pictures(report.pictures) is not None,
    }
    return values | shown, report_tables(report, **shown)


def _smaller(report: Report) -> list[str]:
    """Sentences that compare the students with those of another network at as many steps."""
    by: dict[str, list[str]] = {}
    for row in report.rows:
        if row.student_ratio and row.network:
            ratio = f"{numbers.interval(row.student_ratio, 2)} at {numbers.calls(row.calls)}"
            by.setdefault(row.network, []).append(ratio)
    return [
        f"Fréchet distance of the students over that of {name} at as many steps: {', '.join(ratios)}."
        for name, ratios in by.items()
    ]


def refuse_not_finite(report: AnyReport) -> None:
    """Raise `DataError` for numbers that are not finite."""
    for where, value in _flat(plain(report)):
        if isinstance(value, float) and not isfinite(value):
            raise DataError(
                f"the report has {where} = {value}, which is not finite: write None for what was not measured"
            )


def _flat(tree: object, at: str = "") -> Iterator[tuple[str, object]]:
    """(name, value) of each leaf of nested dicts and lists, with names like "rows[2].ratio.low".

    A list of finite plain values is one leaf, written as JSON.
    """
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flat(value, f"{at}.{key}" if at else str(key))
    elif not isinstance(tree, list | tuple):
        yield at, tree
    elif all(_plain(x) for x in tree):
        yield at, json.dumps(tree, ensure_ascii=False)
    else:
        for k, value in enumerate(tree):
            yield from _flat(value, f"{at}[{k}]")


def _plain(x: object) -> bool:
    if isinstance(x, float):
        return isfinite(x)
    return x is None or isinstance(x, str | int)


def _alarms(students: Sequence[Row]) -> list[str]:
    """A sentence for each student with a drift alarm."""
    sentences = []
    for row in students:
        if alarms := "; ".join(drift.alarm for drift in row.drift or () if drift.alarm):
            sentences.append(f"Drift at {numbers.calls(row.calls)}: {alarms}.")
    return sentences


def _places(rows: Sequence[Row], name: str) -> int:
    distances = (getattr(row.distances, name) for row in rows)
    return numbers.places(distance.value for distance in distances if distance)
