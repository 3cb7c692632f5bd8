"""How often a student is right, how often its teacher, and how often they say the same."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import nn, Tensor

from halfstep.data import Data
from halfstep.errors import DataError
from halfstep.evaluation.intervals import Interval

ROWS = 512


@dataclass(frozen=True)
class Beside:
    """Shares of all rows, with their intervals.

    student, teacher  right, of the rows with a label
    agreement         the same class from both, of all rows
    rows              how many there were
    """

    student: Interval
    teacher: Interval
    agreement: Interval
    rows: int


@torch.no_grad()
def beside(student: nn.Module, teacher: nn.Module, data: Data) -> Beside:
    """The student beside its teacher on all of the data, a ragged last batch included.

    `DataError` for data without any label.
    """
    student.eval(), teacher.eval()
    device = next(student.parameters()).device
    mine, theirs, labels = list[Tensor](), list[Tensor](), list[Tensor]()
    for rows in torch.arange(len(data)).split(ROWS):
        batch = data.batch(rows).to(device)
        if batch.cond is None or batch.cond.label is None:
            raise DataError("accuracy needs labels: give labelled data")
        mine.append(student(batch.x0).argmax(1))
        theirs.append(teacher(batch.x0).argmax(1))
        labels.append(batch.cond.label)
    own, other, true = torch.cat(mine), torch.cat(theirs), torch.cat(labels)
    known = true >= 0
    if not known.any():
        raise DataError(
            "accuracy needs labels, and every label of this data is -1: give labelled data"
        )
    return Beside(
        share((own == true)[known]), share((other == true)[known]), share(own == other), len(true)
    )


def share(hits: Tensor, level: float = 0.95) -> Interval:
    """Of a bool [N], with Wilson's interval (1927), which is sound also at 0 and 1."""
    n, k = hits.numel(), int(hits.sum())
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return Interval(k / n, max(middle - half, 0.0), min(middle + half, 1.0))
