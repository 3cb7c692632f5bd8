"""Mixtures of soft and hard targets, one function for each convention."""

from torch import Tensor

from halfstep.errors import ConfigError
from halfstep.methods.losses.arguments import Reduction, share, weight
from halfstep.methods.losses.hard import hard_labels
from halfstep.methods.losses.logit_matching import logit_match
from halfstep.methods.losses.soft import soft_cross_entropy, soft_targets


def hinton_mixture(
    *,
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    soft_weight: float,
    hard_weight: float,
    reduction: Reduction = "batchmean",
) -> Tensor:
    """soft_weight T^2 KL + hard_weight CE: a plain sum (Hinton et al. 2015, section 2).

    A row of label -1 loses the hard term alone: "batchmean" adds the mean over all rows and the mean
    over the labelled ones.  Raises ConfigError and DataError.
    """
    a, b = weight("soft_weight", soft_weight), weight("hard_weight", hard_weight)
    soft = soft_targets(
        student=student, teacher=teacher, temperature=temperature, reduction=reduction
    )
    return a * soft + b * hard_labels(student=student, labels=labels, reduction=reduction)


def report_mixture(
    *,
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    soft_weight: float,
    hard_weight: float,
    reduction: Reduction = "batchmean",
) -> Tensor:
    """(a soft CE + b CE) / (a + b), without T^2: the report's weighted average.

    Its gradient is that of `hinton_mixture` with weights a / T^2 and b, over a + b: at T = 5 its 0.9
    to 0.1 is 26 % soft.  Rows without a label as in `hinton_mixture`.  Raises ConfigError, also where
    both weights are 0, and DataError.
    """
    a, b = weight("soft_weight", soft_weight), weight("hard_weight", hard_weight)
    if not a + b:
        raise ConfigError("soft_weight and hard_weight are both 0: give one of them a weight")
    soft = soft_cross_entropy(
        student=student, teacher=teacher, temperature=temperature, reduction=reduction
    )
    hard = hard_labels(student=student, labels=labels, reduction=reduction)
    return (a * soft + b * hard) / (a + b)


def tang(
    *,
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    hard_share: float,
    reduction: Reduction = "batchmean",
) -> Tensor:
    """a CE + (1 - a) mean squared error of logits, a = `hard_share` (Tang et al. 2019, section 3.2).

    The squared error is `logit_match`, a mean over classes.  Rows without a label as in
    `hinton_mixture`.  Raises ConfigError and DataError.
    """
    a = share("hard_share", hard_share)
    soft = logit_match(student=student, teacher=teacher, reduction=reduction)
    return a * hard_labels(student=student, labels=labels, reduction=reduction) + (1 - a) * soft
