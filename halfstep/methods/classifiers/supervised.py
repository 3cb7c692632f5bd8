"""Supervised training of a classifier: cross-entropy with the true labels."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn, Tensor

from halfstep.batch import Batch
from halfstep.config import JsonObject
from halfstep.config.validate import Smoothing, Updates, Validated
from halfstep.data import Dataset
from halfstep.errors import DataError
from halfstep.methods.losses import hard_labels
from halfstep.methods.stages import Objective, Stage
from halfstep.rng import Draw, key

LOGGED = 1_000
"""Held-out samples, always the same, that the log measures; `evaluation` measures all."""


@dataclass(frozen=True, kw_only=True)
class Classification(Validated):
    """Train a classifier from labelled data.

    Raises:
        ConfigError: options beyond their range.
        DataError: data without labels, once it is trained.
    """

    updates: Updates = 2_000
    """Optimiser updates."""
    label_smoothing: Smoothing = 0.0
    """Share of the target spread over all classes (Szegedy et al. 2016); a teacher is better without."""

    def stages(self, model: nn.Module, *, held_out: Dataset | None = None) -> Iterator[Stage]:
        """One stage, with the model itself as the student.

        Args:
            model: maps images [B, C, H, W] to logits [B, classes].
            held_out: labelled data that is never trained on; the log has its accuracy.
        """
        objective = Classify(self.label_smoothing, held_out)
        yield Stage("classifier", model, objective, self.updates)

    def describe(self) -> JsonObject:
        """The options that change the result, as JSON."""
        smoothing = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        return {"updates": self.updates, **smoothing}

    def notes(self) -> Iterator[str]:
        """Warnings that do not stop the run."""
        if self.label_smoothing:
            yield (
                "a classifier of smoothed labels is a poor teacher: it learns to find all the wrong classes "
                "equally wrong, and a student learns from the differences"
            )


@dataclass(frozen=True, eq=False)
class Classify(Objective):
    """-log p(label | x0); with smoothing, the cross-entropy with a partly uniform target."""

    smoothing: float = 0.0
    held_out: Dataset | None = None

    def __call__(self, student: nn.Module, batch: Batch, draw: Draw) -> Tensor:
        label = _labels(batch)
        return hard_labels(
            student=student(batch.x0), labels=label, smoothing=self.smoothing, reduction="none"
        )

    def measure(self, student: nn.Module, batch: Batch, draw: Draw) -> dict[str, float]:
        """Accuracy and mean -log p on up to `LOGGED` held-out samples."""
        if self.held_out is None:
            return {}
        generator = torch.Generator().manual_seed(key(0))
        rows = torch.randperm(len(self.held_out), generator=generator)[:LOGGED]
        right, surprise = 0, 0.0
        for part in rows.split(256):
            held_out = self.held_out.batch(part).to(batch.x0.device)
            logits, label = student(held_out.x0), _labels(held_out)
            right += int((logits.argmax(1) == label).sum())
            surprise += float(hard_labels(student=logits, labels=label, reduction="none").sum())
        n = len(rows)
        return {"held_out": n, "held_out_accuracy": right / n, "held_out_nll": surprise / n}


def _labels(batch: Batch) -> Tensor:
    if batch.cond is None or batch.cond.label is None:
        raise DataError("a classifier needs labels and this data has none: choose other data")
    return batch.cond.label
