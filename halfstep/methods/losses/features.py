"""Losses between features: vectors [B, D], tokens [B, N, D] or maps [B, C, H, W]."""

import torch
from torch import Tensor
from torch.nn import functional as F

from halfstep.errors import ConfigError
from halfstep.methods.losses.arguments import both, reduced, Reduction
from halfstep.methods.losses.relations import check_form, Form


def feature_match(
    *,
    student: Tensor,
    teacher: Tensor,
    normalise: bool = False,
    mask: Tensor | None = None,
    reduction: Reduction = "batchmean",
) -> Tensor:
    """The squared error of features, mean over a sample's features (FitNets: Romero et al. 2015, eq. 3).

    Shapes must agree: project the student's first.  `normalise` divides by the teacher's mean square of
    the same sample, so that layers of any scale count alike (a teacher that is all 0 divides by 1).
    `mask` is bool, True where a feature counts: of positions ([B, N] or [B, H, W]; [B] for vectors)
    or of single features (their shape).  A sample without counted features gives 0 and is left out of
    the mean.  Raises ConfigError.
    """
    if student.shape != teacher.shape or student.ndim < 2 or not student.numel():
        raise ConfigError(
            f"the student's features are {list(student.shape)} and the teacher's "
            f"{list(teacher.shape)}: project the student's to the teacher's shape"
        )
    s, t = both("features", student, teacher)
    counted = torch.ones_like(s, dtype=torch.bool) if mask is None else _spread(mask, s)
    # Masked before it is squared: a nan that does not count has no gradient either.
    error, energy = (torch.where(counted, x, 0).square().flatten(1) for x in (s - t, t))
    count = counted.flatten(1).sum(-1)
    values = error.sum(-1) / count.clamp(min=1)
    if normalise:
        power = energy.sum(-1) / count.clamp(min=1)
        values = values / torch.where(power > 0, power, 1)
    return reduced(values, reduction, counted=count > 0)


def attention_transfer(
    *, student: Tensor, teacher: Tensor, form: Form, reduction: Reduction = "batchmean"
) -> Tensor:
    """The difference of two attention maps, each the mean square over channels, of length 1.

    Zagoruyko & Komodakis 2017: form="paper" is eq. 2, the length of the difference; "code" is the authors'
    code, its mean square.  Channels may differ in number, positions may not.  Raises ConfigError.
    """
    check_form(form)
    s, t = both("features", student, teacher)
    a, b = _attention(s), _attention(t)
    if a.shape != b.shape:
        raise ConfigError(
            f"the student's features are {list(student.shape)} and the teacher's "
            f"{list(teacher.shape)}: give both the same positions, by pooling the larger"
        )
    if form == "paper":
        return reduced(torch.linalg.vector_norm(a - b, dim=-1), reduction)
    return reduced((a - b).square().mean(-1), reduction)


def _channels(features: Tensor) -> int:
    """Channels come first in maps and last in tokens and vectors."""
    return 1 if features.ndim == 4 else -1


def _attention(features: Tensor) -> Tensor:
    """Maps or tokens to [B, positions] of length 1."""
    if features.ndim not in (3, 4) or not features.numel():
        raise ConfigError(
            f"these features are {list(features.shape)}: give maps [B, C, H, W] or tokens [B, N, D]"
        )
    return F.normalize(features.square().mean(_channels(features)).flatten(1), dim=-1)


def _spread(mask: Tensor, features: Tensor) -> Tensor:
    """A mask of positions or of features, in the shape of the features; ConfigError."""
    if mask.dtype == torch.bool and mask.shape == features.shape:
        return mask
    axis = _channels(features)
    positions = features.select(axis, 0).shape
    if mask.dtype != torch.bool or mask.shape != positions:
        raise ConfigError(
            f"the mask is {str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}: "
            f"give bool {list(positions)}, True at the positions that count"
        )
    return mask.unsqueeze(axis).expand_as(features)
