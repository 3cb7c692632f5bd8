"""Losses between two distributions over classes, from their logits."""

from math import log

import torch
from torch import Tensor

from halfstep.config.validate import is_valid
from halfstep.errors import ConfigError
from halfstep.methods.losses.arguments import (
    full,
    logits,
    mean_of,
    positive,
    reduced,
    Reduction,
    rows,
)


def soft_targets(
    *, student: Tensor, teacher: Tensor, temperature: float, reduction: Reduction = "batchmean"
) -> Tensor:
    """T^2 KL(teacher || student) at temperature T (Hinton et al. 2015, section 2).

    With T^2 the gradient keeps its size as T grows, and becomes that of half the mean squared error
    of centred logits.  Takes logits [B, C]; probabilities would give a wrong number without an error.
    The teacher may exclude a class with -inf; a class that both exclude counts 0, and one that only the
    student excludes makes the loss infinite.  In float32 T may be up to 1e4.  Raises ConfigError.
    """
    s, t = logits(student, teacher)
    values = kl(log_softmax(t, temperature), log_softmax(s, temperature))
    return reduced(temperature**2 * values, reduction)


def soft_cross_entropy(
    *, student: Tensor, teacher: Tensor, temperature: float, reduction: Reduction = "batchmean"
) -> Tensor:
    """-sum p_T log q_T, without T^2: the report's form, KL plus the teacher's entropy.

    The minimum is that entropy, not 0, so values at different temperatures cannot be compared.  Takes
    logits [B, C].  Raises ConfigError.
    """
    s, t = logits(student, teacher)
    p, log_q = log_softmax(t, temperature).exp(), log_softmax(s, temperature)
    return reduced(-torch.where(p > 0, p * log_q, 0).sum(-1), reduction)  # 0 * -inf is nan


def jensen_shannon(
    *,
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    teacher_share: float = 0.5,
    reduction: Reduction = "batchmean",
) -> Tensor:
    """Jensen-Shannon divergence of teacher and student (Lin 1991).

    b KL(p || m) + (1 - b) KL(q || m) with m = b p + (1 - b) q, b = `teacher_share`.

    At b = 1/2 symmetric and at most ln 2.  No T^2 in it.  Takes logits [B, C].  Raises ConfigError,
    also unless 0 < b < 1.
    """
    s, t = logits(student, teacher)
    b = teacher_share
    if not is_valid(b, float) or not 0 < b < 1:
        raise ConfigError(f"teacher_share is {b}: give a number between 0 and 1, neither of them")
    p, q = log_softmax(t, temperature), log_softmax(s, temperature)
    both_zero = p.isneginf() & q.isneginf()  # where logaddexp has no gradient
    a, c = (torch.where(both_zero, 0, log_probability) for log_probability in (p, q))
    m = torch.where(both_zero, -torch.inf, torch.logaddexp(a + log(b), c + log(1 - b)))
    return reduced(b * kl(p, m) + (1 - b) * kl(q, m), reduction)


def standardised(logits: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Logits with mean 0 and deviation 1 over the classes of each row (Sun et al. 2024, eq. 9).

    A transform of the student's and the teacher's logits before any loss, invariant to scaling and shifts
    of them.  The deviation is unbiased, and `eps` is added to it.  Classes excluded with -inf stay so and
    do not count.  Raises ConfigError for fewer than two classes.
    """
    rows(logits)
    if logits.shape[1] < 2:
        raise ConfigError("one class has no deviation: give logits of two classes or more")
    z = full(logits)
    excluded, moved = z.isneginf(), centred(z)
    finite = torch.where(excluded, 0, z)
    one_less = (~excluded).sum(-1, keepdim=True) - 1
    moved = torch.where(excluded, 0, moved)
    of_some = torch.linalg.vector_norm(moved, dim=-1, keepdim=True) / one_less.clamp(min=1).sqrt()
    spread = torch.where(excluded.any(-1, keepdim=True), of_some, finite.std(-1, keepdim=True))
    scaled = moved / (spread + positive("eps", eps))
    return torch.where(excluded, -torch.inf, scaled)


def centred(logits: Tensor) -> Tensor:
    """Logits with mean 0 over the classes of each row: the same softmax, comparable by square.

    Classes excluded with -inf stay so and do not count.
    """
    z = full(logits)
    excluded = z.isneginf()
    return z - mean_of(torch.where(excluded, 0, z), ~excluded)[..., None]


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of [..., C] log-probabilities, [...].

    Summed as p r - p + q with r = log p - log q: no term is negative, and for small r the error is of
    second order, where T^2 would amplify one of first order.  Where p = 0 a term is q for any r.
    """
    p = log_p.exp()
    zero = p == 0
    # Masked before the product: 0 * inf is nan, and so is its gradient.
    r = torch.where(zero, 0, log_p) - torch.where(zero, 0, log_q)
    near = p * (r + torch.expm1(-r.clamp(-1, 1)))
    far = p * r - p + log_q.exp()
    return torch.where((r.abs() < 1) & ~zero, near, far).sum(-1)


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Log-probabilities at a temperature; ConfigError unless it is finite and above 0."""
    return (logits / positive("temperature", temperature)).log_softmax(-1)
