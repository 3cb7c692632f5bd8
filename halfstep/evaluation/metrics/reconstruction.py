"""Reconstruction error of images that are encoded to noise and decoded by the teacher (Meng et al. 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from halfstep.batch import batches, Cond
from halfstep.division import ALONE, Division
from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.fidelity import paired_rmse
from halfstep.evaluation.report_data import Encoded, EncoderRow
from halfstep.evaluation.setups import plural, steps_of
from halfstep.pipeline import Pipeline
from halfstep.progress import expected, Progress, SILENT


@dataclass(frozen=True)
class Originals:
    """Images to encode and decode again.

    images                 float [n, C, H, W], in the range of the model's samples
    labels                 one per image, for a class-conditional model
    texts                  conditions of texts, for a text-conditioned model
    """

    images: Tensor
    labels: Sequence[int] | None = None
    texts: Cond | None = None

    @classmethod
    def of(cls, x0: Tensor, cond: Cond | None, teacher: Pipeline) -> "Originals":
        """Images with the conditions that the teacher needs; `DataError` if one is missing."""
        labels = None if cond is None else cond.label
        if teacher.class_names and labels is None:
            raise DataError(
                f"the teacher has {len(teacher.class_names)} classes and these images have no labels: give "
                "labelled images"
            )
        return cls(
            x0,
            labels.tolist() if teacher.class_names and labels is not None else None,
            cond,
        )

    def __getitem__(self, rows: slice) -> "Originals":
        """These images."""
        return Originals(
            self.images[rows],
            None if self.labels is None else self.labels[rows],
            None if self.texts is None else self.texts[rows],
        )


def reconstructed(
    encoder: Pipeline,
    decoder: Pipeline,
    originals: Originals,
    *,
    steps: int,
    back: int,
    batch: int = 256,
    division: Division = ALONE,
    progress: Progress = SILENT,
) -> Tensor:
    """Encode images in `steps` and decode them in `back` DDIM steps; float32."""
    parts = batches(range(len(originals.images)), batch)
    progress = expected(progress, (steps + back) * len(parts))
    act = partial(_again, encoder, decoder, steps, back)
    some = (originals[part.start : part.stop] for part in parts)
    return torch.cat(list(division.map(act, some, progress)))


def _again(
    encoder: Pipeline, decoder: Pipeline, steps: int, back: int, some: Originals, progress: Progress
) -> Tensor:
    """One batch of images, encoded and decoded."""
    batch = len(some.images)
    noise = encoder.encode(
        some.images, steps=steps, guidance_scale=_scale(encoder), batch=batch, progress=progress,
        labels=some.labels, prompts=some.texts,
    )  # fmt: skip
    return decoder.sample(
        batch, steps=back, sampler="ddim", guidance_scale=_scale(decoder), noise=noise, batch=batch,
        labels=some.labels, prompts=some.texts, progress=progress,
    )  # fmt: skip


def reconstructions(
    teacher: Pipeline,
    students: Sequence[Pipeline],
    originals: Originals,
    *,
    full: int,
    batch: int = 256,
    division: Division = ALONE,
    progress: Progress = SILENT,
) -> tuple[list[EncoderRow], list[tuple[str, Tensor]]]:
    """The reconstruction error of every encoder, and its images decoded at full steps.

    The teacher at full steps; then for each student, most steps first, the teacher in as many steps and the
    student.  The teacher decodes all.
    """
    rows, pictures = list[EncoderRow](), list[tuple[str, Tensor]]()
    plan = [
        (*encoder, _back(teacher, encoder[-1], full))
        for encoder in encoders(teacher, students, full)
    ]
    steps_of_all = sum(steps + back for *_, steps, backs in plan for back in backs)
    parts = batches(range(len(originals.images)), batch)
    progress = expected(progress, steps_of_all * len(parts))
    for name, role, encoder, steps, backs in plan:
        again = partial(
            reconstructed, encoder, teacher, originals, steps=steps, batch=batch, division=division,
            progress=progress,
        )  # fmt: skip
        x, *others = [again(back=back) for back in backs]
        error = paired_rmse(originals.images, x)
        same: Interval | None = error
        if steps != full:
            same = paired_rmse(originals.images, others[0]) if others else None
        rows.append(EncoderRow(name, role, steps, error, same))
        pictures.append((name, x))
    return rows, pictures


def encoders(
    teacher: Pipeline, students: Sequence[Pipeline], full: int
) -> list[tuple[str, Encoded, Pipeline, int]]:
    """(name, role, encoder, steps) of each row."""
    rows: list[tuple[str, Encoded, Pipeline, int]] = [
        (f"teacher, {plural(full)}", "teacher", teacher, full)
    ]
    for student in sorted(students, key=steps_of, reverse=True):
        if student.direction != "invert":
            raise ConfigError(
                "this student was distilled to sample and cannot encode: evaluate its samples"
            )
        steps = steps_of(student)
        if steps != full and takes(teacher, steps):
            rows.append((f"teacher, {plural(steps)}", "baseline", teacher, steps))
        rows.append((f"student, {plural(steps)}", "student", student, steps))
    return rows


def _back(teacher: Pipeline, steps: int, full: int) -> list[int]:
    """The teacher's decoding step counts for encodings of `steps`: full steps, and as many."""
    return [full, steps] if steps != full and takes(teacher, steps) else [full]


def takes(teacher: Pipeline, steps: int) -> bool:
    """Whether the teacher can sample in so many steps; one that is a student has its own."""
    return not teacher.times or steps in teacher.step_counts


def sentence(rows: Sequence[EncoderRow]) -> str:
    """The result as a sentence: the student of the fewest steps against the teacher."""
    full = rows[0]
    students = [row for row in rows if row.role == "student"]
    if not students:
        return (
            f"Encoded and decoded in {plural(full.steps)}, images come back within a root mean square of "
            f"{full.full}."
        )
    last = students[-1]
    baseline = next((r for r in rows if r.role == "baseline" and r.steps == last.steps), None)
    baseline_text = f", in its {last.steps} within {_value(baseline)}" if baseline else ""
    return (
        f"Encoded in {plural(last.steps)} and decoded in the teacher's {full.steps}, images come back "
        f"within a root mean square of {last.full}; encoded in the teacher's {full.steps} they come back "
        f"within {_value(full)}{baseline_text}."
    )


def _value(row: EncoderRow) -> str:
    """The error at full steps without its interval."""
    return str(row.full).split(" ")[0]


def spread(count: int, n: int) -> Tensor:
    """At most n row numbers, evenly spaced over `count`, because folders are ordered by class."""
    n = min(count, n)
    return torch.arange(n) * count // n


def _scale(pipeline: Pipeline) -> float:
    """The guidance scale nearest to 1 that the network takes."""
    low, high = pipeline.guidance_range or (1.0, 1.0)
    return min(max(1.0, low), high)
