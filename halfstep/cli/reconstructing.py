"""`halfstep evaluate` of a run of encoders: what comes back of images that were encoded."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from halfstep import files
from halfstep.cli.columns import Columns
from halfstep.cli.judging import made_by, made_of, save_evidence
from halfstep.cli.progress import counting, say
from halfstep.data import Data, Latents
from halfstep.errors import ConfigError
from halfstep.evaluation.evidence import FORMAT
from halfstep.evaluation.intervals import Interval
from halfstep.evaluation.reconstruction import Originals, reconstructions, sentence, spread
from halfstep.evaluation.setups import counted, Evaluation
from halfstep.evaluation.statistics import fingerprint
from halfstep.pipeline import Pipeline
from halfstep.report.pictures import to_uint8
from halfstep.training.asked import environment
from halfstep.training.run_folder import RunFolder

MOST = 512
"""Images that are encoded and decoded: their error is then known to 2 %."""


def encoders_judged(
    console: Console,
    kept: RunFolder,
    teacher: Pipeline,
    students: Sequence[Pipeline],
    data: Data,
    asked: Evaluation,
    *,
    held_out: Data | None,
) -> dict[str, Any]:
    """Measure, and write RUN/report.json, report.npz and report.html."""
    by = {len(student.times[0]) - 1: student for student in students}
    chosen = [by[steps] for steps in counted(by, asked)]
    seen = data if held_out is None else held_out
    originals = _originals(seen, teacher, min(asked.samples, MOST))
    n = len(originals.images)
    say(console, "run", f"{kept.folder}: {len(chosen)} encoder{'s' * (len(chosen) != 1)}")
    say(console, "images", f"{n:,} of {'the data' if held_out is None else 'those held out'}")
    with counting(console, f"{n:,} images to noise and back") as progress:
        rows, pictures = reconstructions(
            teacher, chosen, originals, full=asked.full, progress=progress
        )
    found = {
        "format": FORMAT,
        "made": made_of(kept),
        "run": {"folder": files.name_of(kept.folder), "config": dict(kept.config)},
        "measure": {
            "data": fingerprint(seen),
            "samples": n,
            "machine": made_by(environment(str(teacher.device)), [])["machine"],
        },
        "rows": [],
        "reconstruction": {
            "images": n,
            "held_out": held_out is not None,
            "full": asked.full,
            "rows": [row.to_json() for row in rows],
        },
        "training": kept.losses,
        "verdict": sentence(rows),
    }
    shown = [("images", originals.images), *pictures]
    save_evidence(kept.folder, found, _sheet(shown, asked.shown))
    return found


def reconstruction_table(found: dict[str, Any]) -> Columns:
    """Every way to encode, with the error of what came back."""
    table = Columns("", "calls", f"back in {found['full']}", "back in as many")
    for row in found["rows"]:
        cells = [str(Interval(**row[key])) if row[key] else "" for key in ("full", "same")]
        style = {"student": "bold green", "baseline": "dim"}.get(row["who"], "")
        table.add_row(row["name"], str(row["steps"]), *cells, style=style)
    return table


def refuse_reconstruction(found: dict[str, Any], name: str) -> None:
    """`ConfigError` for evidence without samples."""
    if "reconstruction" in found:
        raise ConfigError(
            f"'{name}' is a run of encoders, which draw no samples to compare: leave it out"
        )


def _originals(data: Data, teacher: Pipeline, n: int) -> Originals:
    """Images all along the data; of latents those that their means decode to."""
    batch = data.batch(spread(len(data), n))
    x0 = batch.x0
    if isinstance(data, Latents) and teacher.codec is not None:
        x0 = torch.cat([teacher.codec.decode(x.to(teacher.device)).cpu() for x in x0.split(8)])
    return Originals.of(x0, batch.cond, teacher)


def _sheet(images: Sequence[tuple[str, Tensor]], shown: int) -> dict[str, NDArray[Any]]:
    """The same images down the columns."""
    first = images[0][1]
    if first.ndim != 4 or first.shape[1] not in (1, 3):
        return {}
    columns = spread(len(first), shown)
    return {
        "grid": np.stack([to_uint8(x[columns]) for _, x in images]),
        "grid_labels": np.array([label for label, _ in images]),
    }
