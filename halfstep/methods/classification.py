"""Train a classifier: cross-entropy with the true labels."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn, Tensor
from torch.nn import functional as F

from halfstep.batch import Batch
from halfstep.errors import DataError
from halfstep.methods.base import Stage
from halfstep.noise import Draw


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Train a classifier from labelled data."""

    updates: int = 2_000
    """Optimiser updates."""

    def stages(self, teacher: nn.Module) -> Iterator[Stage]:
        """One stage; `teacher` is the classifier to be trained."""
        yield Stage("classifier", teacher, Classify(), self.updates)


@dataclass(frozen=True)
class Classify:
    """-log p(label | x0)."""

    forwards = 3

    def __call__(self, student: nn.Module, batch: Batch, draw: Draw) -> Tensor:
        if batch.cond is None or batch.cond.label is None:
            raise DataError("a classifier needs labels and this data has none: choose other data")
        return F.cross_entropy(student(batch.x0), batch.cond.label, reduction="none")
