"""Cross-entropy losses with one target class: the true label, or the teacher's most probable class."""

from torch import Tensor
from torch.nn import functional as F

from halfstep.config.validate import is_valid, shown
from halfstep.errors import ConfigError
from halfstep.methods.losses.arguments import (
    full,
    labels_of,
    logits,
    NO_LABEL,
    reduced,
    Reduction,
    rows,
)


def hard_labels(
    *, student: Tensor, labels: Tensor, smoothing: float = 0.0, reduction: Reduction = "batchmean"
) -> Tensor:
    """Cross-entropy with the true labels, at temperature 1.

    `labels` are int64 [B]; a row of label -1 gives 0 and is left out of the mean, and without labels
    the loss is 0.  `smoothing` is the share of the target spread over all classes (Szegedy et
    al. 2016).  Takes logits [B, C].  Raises ConfigError, and DataError for labels out of range.
    """
    rows(student)
    if not is_valid(smoothing, float) or not 0 <= smoothing < 1:
        raise ConfigError(f"smoothing is {shown(smoothing)}: give a number from 0 to below 1")
    y = labels_of(labels, student)
    values = F.cross_entropy(
        full(student), y, reduction="none", ignore_index=NO_LABEL, label_smoothing=smoothing
    )
    return reduced(values, reduction, counted=y != NO_LABEL)


def hard_distillation(
    *, student: Tensor, teacher: Tensor, reduction: Reduction = "batchmean"
) -> Tensor:
    """Cross-entropy with the teacher's most probable class (DeiT: Touvron et al. 2021, eq. 3).

    Takes logits [B, C]; the first of equal maxima counts.  Raises ConfigError.
    """
    s, t = logits(student, teacher)
    return reduced(F.cross_entropy(s, t.argmax(-1), reduction="none"), reduction)
