"""Variants of a run's students, on the disk and in the terminal."""

from pathlib import Path
from typing import Any, TypedDict

from rich.console import Console

from halfstep import storage
from halfstep.cli.columns import Columns, print_wide
from halfstep.errors import ConfigError
from halfstep.evaluation.compressed import Variant
from halfstep.evaluation.intervals import Interval
from halfstep.pipeline import Pipeline
from halfstep.pipeline.description import read_description
from halfstep.report.numbers import big, percent

MARK, RECORD = "compressed", "compressed.json"
"""Folder of the variants in a run, and the file in each that says what it was made from."""


class _Record(TypedDict):
    kind: str
    steps: int
    sha256: str
    """Of the student's weights."""


def compressed_of(
    run: Path, *, net: str | None = None, student: Path | None = None
) -> list[Variant]:
    """The variants in RUN/compressed; refused where their student has other weights by now.

    student  where the student is, if not among the run's stages
    """
    stages = [student] if student else list((run / "stages").glob("[!.]*"))
    known = {
        read_description(place)["sha256"] for place in stages if (place / "pipeline.json").exists()
    }
    found = []
    for path in sorted((run / MARK).glob(f"*/{RECORD}")):
        about, folder = storage.read_json(path, _Record), path.parent
        if about["sha256"] not in known:
            raise ConfigError(
                f"'{folder}' was made from other weights than the students of '{run}' have now: delete it, "
                "or write halfstep compress again"
            )
        pipeline = Pipeline.load(folder, net=net)
        found.append(Variant(pipeline, about["steps"], about["kind"]))
    return found


def print_compressed(console: Console, found: dict[str, Any]) -> None:
    """What each variant costs and loses beside its student."""
    rows = [row for row in found["rows"] if row.get("compressed")]
    if not rows:
        return
    table = Columns(
        "", "bytes", "zeros", "/ student", "rmse to student", "ms, batch 1", "ms, batch 64"
    )
    for row in rows:
        own, cost = row["compressed"], row["cost"]
        seconds = cost["seconds_per_sample"] if cost else {}
        table.add_row(
            row["name"],
            big(own["bytes"], "B"),
            percent(own["zeroed"]).lstrip("+"),
            str(Interval(**own["ratio"])) if own["ratio"] else "",
            str(Interval(**own["rmse"])) if own["rmse"] else "",
            *(f"{1000 * seconds[b]:.3g}" if b in seconds else "" for b in ("1", "64")),
            style="bold green" if row["who"] == "student" else "",
        )
    print_wide(console, table)
