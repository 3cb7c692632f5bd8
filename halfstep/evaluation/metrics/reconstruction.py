"""What encoding loses: images to noise by an encoder, and back by the teacher (Meng et al. 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from halfstep.batch import batches, Cond
from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.fidelity import paired_rmse
from halfstep.evaluation.report_data import Encoded, EncoderRow
from halfstep.pipeline import Pipeline
from halfstep.progress import expected, Progress, SILENT


@dataclass(frozen=True)
class Originals:
    """Images that are encoded and decoded again.

    images   float [n, C, H, W] in [-1, 1], or as the model's own samples are
    labels   one an image, of a model of classes
    encoder_hidden_states  the states of their texts, of a model that reads texts
    """

    images: Tensor
    labels: Sequence[int] | None = None
    encoder_hidden_states: Tensor | None = None

    @classmethod
    def of(cls, x0: Tensor, cond: Cond | None, teacher: Pipeline) -> "Originals":
        """With what the teacher reads of the condition; `DataError` where that is not there."""
        said = cond or Cond()
        labels, encoder_hidden_states = said.label, said.encoder_hidden_states
        if teacher.class_names and labels is None:
            raise DataError(
                f"the teacher has {len(teacher.class_names)} classes and these images have no labels: give "
                "images with labels"
            )
        if teacher.empty is not None and encoder_hidden_states is None:
            raise DataError(
                "the teacher reads texts and these images have none: give latents with texts"
            )
        return cls(
            x0,
            labels.tolist() if teacher.class_names and labels is not None else None,
            encoder_hidden_states if teacher.empty is not None else None,
        )


def reconstructed(
    encoder: Pipeline,
    decoder: Pipeline,
    originals: Originals,
    *,
    steps: int,
    back: int,
    batch: int = 256,
    progress: Progress = SILENT,
) -> Tensor:
    """The images, encoded in `steps` and decoded in `back` DDIM steps; float32, as they were given."""
    parts = batches(range(len(originals.images)), batch)
    progress = expected(progress, (steps + back) * len(parts))
    noise = encoder.encode(
        originals.images,
        steps=steps,
        guidance_scale=_scale(encoder),
        batch=batch,
        progress=progress,
        labels=originals.labels,
        encoder_hidden_states=originals.encoder_hidden_states,
    )
    return decoder.sample(
        len(noise), steps=back, sampler="ddim", guidance_scale=_scale(decoder), noise=noise, batch=batch,
        labels=originals.labels, encoder_hidden_states=originals.encoder_hidden_states, progress=progress,
    )  # fmt: skip


def reconstructions(
    teacher: Pipeline,
    students: Sequence[Pipeline],
    originals: Originals,
    *,
    full: int,
    batch: int = 256,
    progress: Progress = SILENT,
) -> tuple[list[EncoderRow], list[tuple[str, Tensor]]]:
    """Every way to encode, and what came back of it at full steps.

    The teacher at full steps; then for each student, from most steps to fewest, the teacher in as many
    steps and the student.  All are decoded by the teacher.
    """
    found, pictures = list[EncoderRow](), list[tuple[str, Tensor]]()
    every = [(*way, _back(teacher, way[-1], full)) for way in ways(teacher, students, full)]
    steps_of_all = sum(steps + back for *_, steps, backs in every for back in backs)
    parts = batches(range(len(originals.images)), batch)
    progress = expected(progress, steps_of_all * len(parts))
    for name, role, encoder, steps, backs in every:
        again = partial(
            reconstructed, encoder, teacher, originals, steps=steps, batch=batch, progress=progress
        )
        x, *rest = [again(back=back) for back in backs]
        error = paired_rmse(originals.images, x)
        same: Interval | None = error
        if steps != full:
            same = paired_rmse(originals.images, rest[0]) if rest else None
        found.append(EncoderRow(name, role, steps, error, same))
        pictures.append((name, x))
    return found, pictures


def ways(
    teacher: Pipeline, students: Sequence[Pipeline], full: int
) -> list[tuple[str, Encoded, Pipeline, int]]:
    """(name, role, encoder, steps) of every row."""
    found: list[tuple[str, Encoded, Pipeline, int]] = [
        (f"teacher, {_plural(full)}", "teacher", teacher, full)
    ]
    for student in sorted(students, key=_steps, reverse=True):
        if student.direction != "invert":
            raise ConfigError(
                "this student was distilled to walk from noise to data and cannot encode: evaluate it by "
                "its samples"
            )
        steps = _steps(student)
        if steps != full and takes(teacher, steps):
            found.append((f"teacher, {_plural(steps)}", "baseline", teacher, steps))
        found.append((f"student, {_plural(steps)}", "student", student, steps))
    return found


def _back(teacher: Pipeline, steps: int, full: int) -> list[int]:
    """In how many steps the teacher decodes what was encoded in `steps`: its full ones, and as many."""
    return [full, steps] if steps != full and takes(teacher, steps) else [full]


def takes(teacher: Pipeline, steps: int) -> bool:
    """Whether the decoder walks in so many steps: a teacher that is a student has its own."""
    return not teacher.times or steps in {len(times) - 1 for times in teacher.times}


def sentence(rows: Sequence[EncoderRow]) -> str:
    """What was found: the student of the fewest steps against the teacher."""
    full = rows[0]
    students = [row for row in rows if row.role == "student"]
    if not students:
        return (
            f"Encoded and decoded in {_plural(full.steps)}, images come back within a root mean square of "
            f"{full.full}."
        )
    last = students[-1]
    plain = next((r for r in rows if r.role == "baseline" and r.steps == last.steps), None)
    own = f", in its {last.steps} within {_value(plain)}" if plain else ""
    return (
        f"Encoded in {_plural(last.steps)} and decoded in the teacher's {full.steps}, images come back "
        f"within a root mean square of {last.full}; encoded in the teacher's {full.steps} they come back "
        f"within {_value(full)}{own}."
    )


def _value(row: EncoderRow) -> str:
    """Without its interval."""
    return str(row.full).split(" ")[0]


def spread(count: int, n: int) -> Tensor:
    """At most n row numbers, all along `count`: folders go class by class."""
    n = min(count, n)
    return torch.arange(n) * count // n


def _scale(pipeline: Pipeline) -> float:
    """No guidance, or as little as the network takes."""
    low, high = pipeline.guidance_range or (1.0, 1.0)
    return min(max(1.0, low), high)


def _steps(student: Pipeline) -> int:
    return min(len(times) - 1 for times in student.times)


def _plural(steps: int) -> str:
    return f"{steps} step{'s' if steps > 1 else ''}"
