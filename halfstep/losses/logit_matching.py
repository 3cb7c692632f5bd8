"""Logits matched as they are, by their squared error."""

from torch import Tensor

from halfstep.losses.arguments import logits, reduced, Reduction


def logit_match(*, student: Tensor, teacher: Tensor, reduction: Reduction = "batchmean") -> Tensor:
    """The squared error of logits [B, C], mean over classes.

    Unlike a softmax it sees a constant added to all logits; `centred` takes it away.  Raises
    ConfigError.
    """
    s, t = logits(student, teacher)
    return reduced((s - t).square().mean(-1), reduction)


def logit_half_sum(
    *, student: Tensor, teacher: Tensor, reduction: Reduction = "batchmean"
) -> Tensor:
    """Half the squared error of logits [B, C], summed over classes (Ba & Caruana 2014, eq. 1).

    C / 2 times `logit_match`.  Raises ConfigError.
    """
    s, t = logits(student, teacher)
    return reduced((s - t).square().sum(-1) / 2, reduction)
