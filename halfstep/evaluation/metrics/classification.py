"""Accuracy, likelihood, calibration and agreement of a classifier over a whole data set."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import nn, Tensor
from torch.nn import functional as F

from halfstep.data import Data
from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.models.eval_mode import evaluating
from halfstep.progress import expected, Progress, SILENT

ROWS = 512
BINS = 15


@dataclass(frozen=True)
class Scores:
    """Scores over all labelled rows of a data set; agreement over all rows.

    accuracy     share of correct answers, with Wilson's interval
    nll          mean of -log p(label), nats
    calibration  expected calibration error, in [0, 1]
    rows         number of labelled rows
    agreement    share of rows with the same answer as the teacher; None without a teacher
    """

    accuracy: Interval
    nll: float
    calibration: float
    rows: int
    agreement: Interval | None = None


def score_classifier(
    classifier: nn.Module,
    data: Data,
    *,
    teacher: nn.Module | None = None,
    batch: int = ROWS,
    level: float = 0.95,
    progress: Progress = SILENT,
) -> Scores:
    """Score a classifier on all of the data, without augmentation.

    teacher   classifier to compare answers with
    batch     images at a time; does not change the scores
    level     confidence level of the intervals
    progress  advanced for every batch of either classifier

    `DataError` for data without any label.
    """
    parts = torch.arange(len(data)).split(batch)
    progress = expected(progress, len(parts) * (1 if teacher is None else 2))
    logits, labels = answers(classifier, data, batch=batch, progress=progress)
    labelled = labels >= 0
    if not labelled.any():
        raise DataError("accuracy needs labels, and this data has none: give labelled data")
    if not logits.isfinite().all():
        raise DataError("the classifier answers with nan or infinity: give one that is trained")
    if labels.max() >= logits.shape[1]:
        raise DataError(
            f"the data has labels up to {int(labels.max())} and the classifier has {logits.shape[1]} "
            "classes: give data of its classes"
        )
    agreement = None
    if teacher is not None:
        teacher_logits, _ = answers(teacher, data, batch=batch, progress=progress)
        same = logits.argmax(1) == teacher_logits.argmax(1)
        agreement = wilson(int(same.sum()), len(same), level=level)
    logits, labels = logits[labelled], labels[labelled]
    right = int((logits.argmax(1) == labels).sum())
    return Scores(
        wilson(right, len(labels), level=level),
        float(F.cross_entropy(logits, labels)),
        calibration_error(logits.softmax(1), labels),
        len(labels),
        agreement,
    )


@torch.no_grad()
def answers(
    classifier: nn.Module,
    data: Data,
    *,
    batch: int = ROWS,
    progress: Progress = SILENT,
) -> tuple[Tensor, Tensor]:
    """Logits float64 [N, classes] and labels int64 [N] (-1: none) of all rows, on the CPU.

    The classifier runs in eval mode; its mode is restored.
    """
    device = next((p.device for p in classifier.parameters()), torch.device("cpu"))
    logits, labels = list[Tensor](), list[Tensor]()
    parts = torch.arange(len(data)).split(batch)
    progress.expect(len(parts))
    with evaluating(classifier):
        for rows in parts:
            images = data.batch(rows).to(device)
            logits.append(classifier(images.x0).cpu().double())
            none = images.cond is None or images.cond.label is None
            labels.append(torch.full_like(rows, -1) if none else images.cond.label.cpu())  # type: ignore[union-attr]
            progress.advance()
    return torch.cat(logits), torch.cat(labels)


def wilson(hits: int, rows: int, *, level: float = 0.95) -> Interval:
    """A share with Wilson's interval (1927), valid also near 0 and 1."""
    if not 0 <= hits <= rows or rows < 1 or not 0 < level < 1:
        raise ConfigError(
            f"a share needs hits in 0 to rows and a level in (0, 1), got {hits} of {rows} at {level:g}"
        )
    z, share = NormalDist().inv_cdf((1 + level) / 2), hits / rows
    middle = (hits + z * z / 2) / (rows + z * z)
    half = z / (rows + z * z) * math.sqrt(rows * share * (1 - share) + z * z / 4)
    return Interval(share, max(middle - half, 0.0), min(middle + half, 1.0))


def calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3): mean |accuracy - confidence| over equal bins.

    probabilities  [N, classes]
    labels         int64 [N], none missing
    """
    sure, guess = probabilities.double().max(1)
    bin_of = (sure * bins).ceil().long().clamp(1, bins) - 1  # (k / bins, (k + 1) / bins]
    right = (guess == labels).double()
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, bin_of, right - sure)
    return float(gaps.abs().sum() / len(labels))
