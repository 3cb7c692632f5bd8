"""Losses on relations between classes and between samples, within a row and across the batch.

They depend on which samples share a batch.  "none" gives [B] with the mean "batchmean".
"""

from typing import get_args, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from halfstep.errors import ConfigError, unknown
from halfstep.methods.losses.arguments import (
    both,
    excluded,
    logits,
    mean_of,
    positive,
    reduced,
    Reduction,
    weight,
)

Form = Literal["paper", "code"]
EPS = 1e-8
"""The constant that the authors of DIST add to the product of two norms."""


def dist(
    *,
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    form: Form = "paper",
    reduction: Reduction = "batchmean",
) -> Tensor:
    """inter_weight (1 - correlation of rows) + intra_weight (1 - of columns) (Huang et al. 2022, eq. 10).

    Pearson's correlation of softmax probabilities: a row is one sample's classes, a column one class
    over the batch.  form="code" is the authors' code: times T^2, and 1e-8 added to the product of the
    norms, so that rare classes count little.  With "none" every sample has its own row's term and the
    whole batch's column term.  Two samples correlate by 1 or -1; a constant row or column correlates by
    0, without a gradient.  Classes that both exclude with -inf count in no row and no column.  Takes
    logits [B, C].  Raises ConfigError, also for one sample.
    """
    a, b = weight("inter_weight", inter_weight), weight("intra_weight", intra_weight)
    s, t = logits(student, teacher)
    check_form(form)
    if b and len(s) < 2:
        raise ConfigError(
            "one sample has no correlation over the batch: give two or more (also in a batch's last "
            "part), or intra_weight=0 (classes_weight=0 of the term)"
        )
    scale = positive("temperature", temperature)
    q, p = (s / scale).softmax(-1), (t / scale).softmax(-1)
    counted = ~excluded(s, t)
    correlation, factor = (_with_eps, scale**2) if form == "code" else (_correlation, 1)
    inter, columns = 1 - correlation(q, p, counted), 1 - correlation(q.T, p.T, counted.T)
    some = counted.any(0)
    intra = mean_of(torch.where(some, columns, 0), some)
    return reduced(factor * (a * inter + b * intra), reduction)


def relational_distance(
    *, student: Tensor, teacher: Tensor, reduction: Reduction = "batchmean"
) -> Tensor:
    """Smooth L1 between the pairwise distances of both, each over its mean (Park et al. 2019, eq. 8).

    Embeddings [B, ...], of any width each.  The mean runs over all B^2 pairs, a sample with itself
    too; with "none" over the B pairs of each sample.  The authors weigh it 25.  A class that both
    exclude with -inf in some sample counts for no pair.  Raises ConfigError.
    """
    s, t = (_over_mean(torch.cdist(x, x, compute_mode=EXACT)) for x in _rows(student, teacher))
    return reduced(F.smooth_l1_loss(s, t, reduction="none").mean(-1), reduction)


def relational_angle(
    *, student: Tensor, teacher: Tensor, reduction: Reduction = "batchmean"
) -> Tensor:
    """Smooth L1 between the cosines of all triples' angles (Park et al. 2019, eq. 11).

    Embeddings [B, ...], of any width each.  Takes B^3 memory.  The mean runs over all triples, also
    those that name a sample twice; with "none" over those with their vertex at the sample.  The
    authors weigh it 50.  -inf as in `relational_distance`.  Raises ConfigError.
    """
    s, t = (_cosines(x) for x in _rows(student, teacher))
    return reduced(F.smooth_l1_loss(s, t, reduction="none").mean((1, 2)), reduction)


EXACT = "donot_use_mm_for_euclid_dist"
"""Compute distances by subtraction: |a|^2 + |b|^2 - 2ab cancels for near points."""


def _correlation(x: Tensor, y: Tensor, counted: Tensor) -> Tensor:
    """Pearson's correlation of the rows of two [N, M], [N]; 0 where one varies by rounding alone.

    kept  bool [N, M]: the values that count; both are 0 elsewhere
    """
    return (_direction(x, counted) * _direction(y, counted)).sum(-1)


def _direction(x: Tensor, counted: Tensor) -> Tensor:
    """Rows less their means, of length 1; 0 for rows that are constant up to rounding."""
    moved = _moved(x, counted)
    norm = torch.linalg.vector_norm(moved, dim=-1, keepdim=True)
    flat = norm <= 8 * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(flat, 0, moved / torch.where(flat, 1, norm))


def _moved(x: Tensor, counted: Tensor) -> Tensor:
    """Rows less the means of their counted values, 0 elsewhere."""
    return torch.where(counted, x - mean_of(x, counted)[:, None], 0)


def _with_eps(x: Tensor, y: Tensor, counted: Tensor) -> Tensor:
    """Pearson's correlation of the rows as DIST's authors compute it."""
    x, y = _moved(x, counted), _moved(y, counted)
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1) * torch.linalg.vector_norm(y, dim=-1)
    return (x * y).sum(-1) / (norms + EPS)


def _rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings of both as [B, D]; ConfigError unless their numbers of samples agree."""
    if min(student.ndim, teacher.ndim) < 2 or len(student) != len(teacher) or not len(student):
        raise ConfigError(
            f"the student's embeddings are {list(student.shape)} and the teacher's "
            f"{list(teacher.shape)}: give both [B, ...] of the same B samples"
        )
    s, t = (x.flatten(1) for x in both("embeddings", student, teacher))
    if s.shape == t.shape:
        both_excluded = excluded(s, t).any(0)
        s, t = torch.where(both_excluded, 0, s), torch.where(both_excluded, 0, t)
    if bool(s.isneginf().any() | t.isneginf().any()):
        raise ConfigError(
            "a class excluded with -inf by only one of student and teacher is infinitely far from all "
            "others: exclude it in both, or in neither"
        )
    return s, t


def _over_mean(distances: Tensor) -> Tensor:
    """Distances [B, B] over their mean between different samples; 0 where all samples are equal."""
    pairs = max(len(distances) * (len(distances) - 1), 1)
    mean = distances.sum() / pairs
    return distances / torch.where(mean > 0, mean, 1)


def _cosines(x: Tensor) -> Tensor:
    """[vertex, one end, other end]: the cosine of their angle, 0 where an end is the vertex."""
    edges = x[None] - x[:, None]
    norms = torch.linalg.vector_norm(edges, dim=-1, keepdim=True)
    # F.normalize divides by 1e-12 where two samples meet, and the gradient is as large.
    edges = edges / torch.where(norms > 0, norms, 1)
    with torch.autocast(x.device.type, enabled=False):  # it would multiply in half precision
        return edges @ edges.mT


def check_form(form: str) -> None:
    """ConfigError unless `form` is "paper" or "code"."""
    if form not in get_args(Form):
        raise unknown("form", form, get_args(Form))
