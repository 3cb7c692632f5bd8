"""Squared errors of logits."""

import torch
from torch import Tensor

from halfstep.methods.losses.arguments import excluded, logits, mean_of, reduced, Reduction


def logit_match(*, student: Tensor, teacher: Tensor, reduction: Reduction = "batchmean") -> Tensor:
    """The squared error of logits [B, C], mean over classes.

    Unlike a softmax it depends on a constant added to all logits, which `centred` removes.  Classes that
    both exclude with -inf are not counted.  Raises ConfigError.
    """
    s, t = logits(student, teacher)
    return reduced(mean_of(_squares(s, t), ~excluded(s, t)), reduction)


def logit_half_sum(
    *, student: Tensor, teacher: Tensor, reduction: Reduction = "batchmean"
) -> Tensor:
    """Half the squared error of logits [B, C], summed over classes (Ba & Caruana 2014, eq. 1).

    C / 2 times `logit_match`.  Raises ConfigError.
    """
    s, t = logits(student, teacher)
    return reduced(_squares(s, t).sum(-1) / 2, reduction)


def _squares(s: Tensor, t: Tensor) -> Tensor:
    """Squared errors, 0 where both are -inf."""
    both_excluded = excluded(s, t)
    return (torch.where(both_excluded, 0, s) - torch.where(both_excluded, 0, t)).square()
