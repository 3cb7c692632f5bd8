"""RUN/report.html: the evidence of a run on one page that needs nothing else, for screen, phone and paper."""

import json
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from halfstep.errors import ConfigError, DataError
from halfstep.report import numbers, verdict as words
from halfstep.report.figures import figures
from halfstep.report.grids import sheets
from halfstep.report.guided import shown, table
from halfstep.report.sizes import sizes
from halfstep.report.svg import COLOURS
from halfstep.report.templates import template, write_page
from halfstep.report.verdict import frechet, Row, rows_of, teacher_of

FORMAT = 1
LIMIT = 5_000_000
OPTIONAL = ("ratio", "fidelity", "split", "memorisation", "drift", "cost", "compressed")
NEEDED = ("made", "run", "measure", "rows", "training")
MEASURES = {
    "frechet_distance": "Fréchet distance",
    "frechet_unbiased": "Fréchet distance, endless samples",
    "kernel_distance": "kernel distance",
    "inception_score": "Inception score",
    "precision": "precision",
    "recall": "recall",
}
WORTH = {"better": "yes", "not better": "no", "undecided": "cannot tell", None: "no baseline"}


def write_report(
    run: Path, evidence: Mapping[str, Any], pictures: Mapping[str, NDArray[Any]]
) -> Path:
    """Write RUN/report.html, one self-contained page without scripts, and say where it is.

    evidence  as in RUN/report.json; what is None was not measured and is left out
    pictures  as in RUN/report.npz: `grid`, `grid_labels`, `worst`, `worst_labels`, or none (`sheets`);
              with `guided` of a guided run, the page links to RUN/slider.html (`write_slider`)

    The same evidence gives the same bytes.  Raises DataError for numbers that are not finite, ConfigError
    for evidence of another format and for a page of 5 MB or more.
    """
    page = render(evidence, pictures)
    instead = "give it fewer pictures or a shorter configuration"
    return write_page(run / "report.html", page, limit=LIMIT, name="the report", instead=instead)


def render(evidence: Mapping[str, Any], pictures: Mapping[str, NDArray[Any]]) -> str:
    """The page as text; see `write_report`."""
    check(evidence)
    evidence = _whole(evidence)
    full, students = teacher_of(evidence), rows_of(evidence, "student")
    rows = _rows(evidence)
    return template("page.html.j2").render(
        evidence=evidence,
        verdict=evidence.get("verdict") or words.verdict(evidence),
        full=full,
        students=students,
        rows=rows,
        alarms=_alarms(students),
        cautions=[said for row in students if (said := words.caution(evidence, row))],
        comparison=_comparison(evidence, full, students),
        places={name: _places(rows, name) for name in MEASURES},
        measures={
            k: label for k, label in MEASURES.items() if any(r["distances"].get(k) for r in rows)
        },
        figures=figures(evidence),
        sheets=sheets(pictures),
        guided=table(evidence),
        sizes=sizes(evidence),
        smaller=_smaller(evidence),
        compressed=_compressed(evidence),
        slider=shown(pictures) is not None,
        drift=_drift(students),
        cost=_cost(rows, full),
        config=list(_flat(evidence["run"].get("config") or {})),
        colours=COLOURS,
        words=words,
        dash=numbers.DASH,
    )


def _smaller(evidence: Mapping[str, Any]) -> list[str]:
    """Students over those of as many steps of another run, a sentence a run."""
    by: dict[str, list[str]] = {}
    for row in evidence["rows"]:
        if over := row.get("student_over_it"):
            found = f"{numbers.interval(over, 2)} at {numbers.calls(row['calls'])}"
            by.setdefault(row["network"], []).append(found)
    return [
        f"Fréchet distance of the students over that of {name} at as many steps: {', '.join(found)}."
        for name, found in by.items()
    ]


def check(evidence: Mapping[str, Any]) -> None:
    """Raises ConfigError for evidence of another format, DataError for numbers that are not finite."""
    if evidence.get("format") != FORMAT:
        raise ConfigError(
            f"the report is made of evidence of format {FORMAT}, got {evidence.get('format')!r}: measure "
            "again with this halfstep"
        )
    for name in NEEDED:
        if name not in evidence:
            raise ConfigError(
                f"the evidence has no '{name}' and the page needs {', '.join(NEEDED)}: measure again"
            )
    for where, value in _flat(evidence):
        if isinstance(value, float) and not isfinite(value):
            raise DataError(
                f"the evidence has {where} = {value}, which is no measurement: write null for what was not "
                "measured"
            )


def _whole(evidence: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same with None for each part that is not there."""
    return {
        **evidence,
        "run": {**dict.fromkeys(("config", "gate", "cost")), **evidence["run"]},
        "measure": {**dict.fromkeys(("floor", "preprocessing")), **evidence["measure"]},
        "made": {**dict.fromkeys(("command", "machine")), **evidence["made"]},
        "rows": [{**dict.fromkeys(OPTIONAL), **row} for row in evidence["rows"]],
    }


def _flat(tree: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """(name, leaf) of nested dicts and lists, as in "rows[2].ratio.low"; a list of plain values is a leaf
    as it is written in json, unless one of them is not finite."""
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


def _plain(x: Any) -> bool:
    if isinstance(x, float):
        return isfinite(x)
    return x is None or isinstance(x, str | int)


def _rows(evidence: Mapping[str, Any]) -> list[Row]:
    """Teacher, baselines, students, and what was made of these after training."""
    kinds = ("teacher", "baseline", "student", "compressed")
    return [row for who in kinds for row in rows_of(evidence, who)]


def _compressed(evidence: Mapping[str, Any]) -> list[Row]:
    """Each student that was made smaller, and then its variants."""
    students = [row for row in rows_of(evidence, "student") if row["compressed"]]
    made = rows_of(evidence, "compressed")
    return [
        one
        for own in students
        for one in (own, *(row for row in made if row["compressed"]["of"] == own["name"]))
    ]


def _alarms(students: Sequence[Row]) -> list[str]:
    """One sentence a student that has drifted."""
    found = []
    for row in students:
        said = "; ".join(one["alarm"] for one in row.get("drift") or [] if one["alarm"])
        if said:
            found.append(f"Drift at {numbers.calls(row['calls'])}: {said}.")
    return found


def _comparison(
    evidence: Mapping[str, Any], full: Row | None, students: Sequence[Row]
) -> list[dict[str, Any]]:
    """One line a student, beside the best baseline at not more calls; None where it cannot be said."""
    theirs, floor = frechet(full) if full else None, evidence["measure"].get("floor")
    found = []
    for row in students:
        own, less = frechet(row), None
        if own and theirs and floor is not None and theirs["value"] > floor:
            less = (own["value"] - floor) / (theirs["value"] - floor)
        found.append(
            {
                "row": row,
                "own": own,
                "baseline": words.best_baseline(evidence, row["calls"]),
                "ratio": words.judged(evidence, row),
                "difference": own["value"] - theirs["value"] if own and theirs else None,
                "less_floor": less,
                "worth": WORTH[words.against_baseline(evidence, row)],
            }
        )
    return found


def _drift(students: Sequence[Row]) -> dict[str, Any] | None:
    """Measures down, students across."""
    known = [row for row in students if row.get("drift")]
    names = list(dict.fromkeys(one["measure"] for row in known for one in row["drift"]))
    table = {
        name: [next((d for d in row["drift"] if d["measure"] == name), None) for row in known]
        for name in names
    }
    return {"students": known, "table": table} if known else None


def _cost(rows: Sequence[Row], full: Row | None) -> dict[str, Any] | None:
    """Rows with a cost, the batch sizes timed, and how many times faster than the teacher at the largest."""
    known = [row for row in rows if row.get("cost")]
    batches = sorted({int(b) for row in known for b in row["cost"]["seconds_per_sample"] or {}})

    def time(row: Row | None) -> float | None:
        cost = row.get("cost") if row and batches else None
        found: float | None = (
            (cost["seconds_per_sample"] or {}).get(str(batches[-1])) if cost else None
        )
        return found

    slow = time(full)
    groups: dict[str, list[dict[str, Any]]] = {"students": [], "baselines": []}
    for row in known:
        faster = slow / own if slow and (own := time(row)) else None
        kind = "baselines" if row["who"] == "baseline" else "students"
        groups[kind].append({"row": row, "faster": faster})
    return {**groups, "batches": batches, "timed": slow is not None} if known else None


def _places(rows: Sequence[Row], name: str) -> int:
    return numbers.places(found["value"] for row in rows if (found := row["distances"].get(name)))
