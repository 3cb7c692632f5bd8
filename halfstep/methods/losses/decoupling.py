"""Decoupled knowledge distillation (Zhao et al. 2022)."""

import torch
from torch import Tensor

from halfstep.errors import ConfigError
from halfstep.methods.losses.arguments import (
    labels_of,
    logits,
    positive,
    reduced,
    Reduction,
    weight,
)
from halfstep.methods.losses.soft import kl


def decoupled(
    *,
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    target_weight: float = 1.0,
    others_weight: float = 8.0,
    reduction: Reduction = "batchmean",
) -> Tensor:
    """T^2 (target_weight TCKD + others_weight NCKD) (Zhao et al. 2022, eq. 7).

    TCKD compares the target with all others, NCKD the others among themselves; KL is TCKD +
    (1 - p_target) NCKD.  Takes logits [B, C], and every row's label.  Classes that both exclude with
    -inf count 0, and where the teacher excludes all others NCKD is 0.  Raises ConfigError, also for
    fewer than two classes, and DataError for labels out of range or missing.
    """
    a, b = weight("target_weight", target_weight), weight("others_weight", others_weight)
    s, t = logits(student, teacher)
    if s.shape[1] < 2:
        raise ConfigError("decoupled compares other classes: give logits of two classes or more")
    y = labels_of(labels, student, all_given=True)
    scale = positive("temperature", temperature)
    (binary_s, others_s, _), (binary_t, others_t, sure) = _split(s / scale, y), _split(t / scale, y)
    nckd = torch.where(sure, 0, kl(others_t, others_s))
    values = a * kl(binary_t, binary_s) + b * nckd
    return reduced(temperature**2 * values, reduction)


def _split(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of (target, rest), [B, 2], and of the others among themselves, [B, C - 1].

    The rest is a logsumexp, because the sum of its probabilities underflows.  The third output, [B], is True
    where all others are excluded; they then count as equal.
    """
    y = y[:, None]
    column = torch.arange(z.shape[1] - 1, device=z.device)
    others = z.gather(1, column + (column >= y))
    sure = others.isneginf().all(-1, keepdim=True)
    others = torch.where(sure, 0, others)
    rest = torch.where(sure, -torch.inf, others.logsumexp(-1, keepdim=True))
    binary = torch.cat([z.gather(1, y), rest], dim=1)
    return binary.log_softmax(-1), others.log_softmax(-1), sure[:, 0]
