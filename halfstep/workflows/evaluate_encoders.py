"""Evaluate a run of encoders: the error of images that were encoded to noise and decoded again."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from halfstep import files
from halfstep.data import Data, Latents
from halfstep.division import ALONE, Division
from halfstep.evaluation.features.cache import fingerprint
from halfstep.evaluation.metrics.reconstruction import Originals, reconstructions, spread
from halfstep.evaluation.report_data import (
    EncoderReport,
    Pictures,
    Reconstruction,
    RunSummary,
    TrainingCosts,
)
from halfstep.evaluation.setups import chosen_counts, Evaluation, steps_of
from halfstep.pictures import to_uint8
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress, SILENT
from halfstep.report.words.headline import summarised
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.report import provenance_of, training_cost, updates_of

MOST = 512
"""Images that are encoded and decoded: enough to know their error to 2 %."""


def evaluate_encoders(
    run: RunFolder,
    teacher: Pipeline,
    students: Sequence[Pipeline],
    data: Data,
    config: Evaluation,
    *,
    held_out: Data | None,
    division: Division = ALONE,
    progress: Progress = SILENT,
) -> EncoderReport:
    """The report of students that encode."""
    by_steps = {steps_of(student): student for student in students}
    chosen = [by_steps[steps] for steps in chosen_counts(by_steps, config)]
    images = data if held_out is None else held_out
    originals = _originals(images, teacher, min(config.samples, MOST))
    n = len(originals.images)
    progress.note(f"{run.folder}: {len(chosen)} encoder{'s' * (len(chosen) != 1)}")
    progress.note(f"{n:,} images of {'the data' if held_out is None else 'those held out'}")
    rows, pictures = reconstructions(
        teacher, chosen, originals, full=config.full_steps, division=division, progress=progress
    )
    report = EncoderReport(
        provenance=provenance_of(run),
        run=RunSummary(
            folder=files.name_of(run.folder),
            config=dict(run.config),
            cost=TrainingCosts(None, training_cost(run.folder)),
        ),
        reconstruction=Reconstruction(
            data=fingerprint(images),
            images=n,
            held_out=held_out is not None,
            full=config.full_steps,
            rows=tuple(rows),
        ),
        training=updates_of(run.folder),
        pictures=_sheet(
            [("images", originals.images), *pictures], config.shown, _classes(originals, teacher)
        ),
    )
    return summarised(report)


def _originals(data: Data, teacher: Pipeline, n: int) -> Originals:
    """Images spread over the data; latents are decoded from their means."""
    batch = data.batch(spread(len(data), n))
    x0 = batch.x0
    if isinstance(data, Latents) and teacher.codec is not None:
        x0 = torch.cat([teacher.codec.decode(x.to(teacher.device)).cpu() for x in x0.split(8)])
    return Originals.of(x0, batch.cond, teacher)


def _classes(originals: Originals, teacher: Pipeline) -> list[str]:
    """The class of each image; empty without labels."""
    return [teacher.class_names[label] for label in originals.labels or ()]


def _sheet(images: Sequence[tuple[str, Tensor]], shown: int, classes: Sequence[str]) -> Pictures:
    """A grid with the same images in each row."""
    first = images[0][1]
    if first.ndim != 4 or first.shape[1] not in (1, 3):
        return {}
    columns = spread(len(first), shown)
    arrays = {
        "grid": np.stack([to_uint8(x[columns]) for _, x in images]),
        "grid_labels": np.array([label for label, _ in images]),
    }
    if classes:
        arrays["grid_classes"] = np.array([classes[k] for k in columns])
    return arrays
