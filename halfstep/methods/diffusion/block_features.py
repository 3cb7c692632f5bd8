"""Features of a student's blocks, compared with those of its teacher's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn, Tensor

from halfstep.methods import losses
from halfstep.models import recipe
from halfstep.models.compression.block_pruning import (
    checked_pairs,
    evenly_spaced,
    matching_blocks,
    pairs_of,
)
from halfstep.models.compression.blocks import blocks_of, comparable, extras_of, widths_of
from halfstep.models.hooks import projector
from halfstep.rng import fork_rng


class BlockPair(NamedTuple):
    """A block of the student and the teacher's block whose output it learns, with their widths."""

    student: nn.Module
    student_width: int
    teacher: nn.Module
    teacher_width: int


@dataclass(frozen=True)
class Matched:
    """Blocks of a student and the teacher's blocks whose outputs they learn.

    extras  tokens before the patches, which are not compared
    weight  weight of the mean error over all blocks
    mask    standard deviations beyond which a feature is left out; 0 keeps all
    """

    student: tuple[nn.Module, ...]
    teacher: tuple[nn.Module, ...]
    extras: int
    weight: float
    mask: float = 0.0
    projectors: tuple[nn.Module, ...] = ()
    """A map from the student's width to the teacher's for each pair; empty where the widths are equal."""

    def errors(self, student_outputs: list[Any], teacher_outputs: list[Any]) -> Tensor:
        """The mean feature error over all blocks, [B].

        A U-Net's block returns its features and those of the skip connections: the first count.
        """
        features = [_features(out)[:, self.extras :] for out in student_outputs]
        if self.projectors:
            features = [_projected(p, x) for p, x in zip(self.projectors, features, strict=True)]
        errors = [
            feature_error(a, _features(b)[: len(a), self.extras :], mask=self.mask)
            for a, b in zip(features, teacher_outputs, strict=True)
        ]
        return torch.stack(errors).mean(0)


def _features(out: Any) -> Tensor:
    features: Tensor = out[0] if isinstance(out, tuple) else out
    return features


def _projected(projector: nn.Module, features: Tensor) -> Tensor:
    out: Tensor = projector(features.to(next(projector.parameters()).dtype))
    return out


def feature_error(student: Tensor, teacher: Tensor, *, mask: float = 0.0) -> Tensor:
    """mean((f_S - f_T)^2) / mean(f_T^2) of each sample, [B] in float32 at least.

    Dividing by the teacher's energy, as LAPTOP-Diff does, makes blocks of small and of large features count
    alike.  `mask` leaves out features where f_T is `mask` standard deviations of its sample or more from its
    mean (TinyFusion, CVPR 2025).
    """
    inliers = None
    if mask:
        full = teacher.to(torch.promote_types(teacher.dtype, torch.float32))
        axes = tuple(range(1, full.ndim))
        mean, spread = full.mean(axes, keepdim=True), full.std(axes, correction=0, keepdim=True)
        inliers = (full - mean).abs() < mask * spread
    return losses.feature_match(
        student=student, teacher=teacher, normalise=True, mask=inliers, reduction="none"
    )


def block_pairs(
    student: nn.Module, teacher: nn.Module, keep: Sequence[int] = ()
) -> list[BlockPair]:
    """The blocks to compare; none where networks differ in kind, or U-Nets in their number of blocks.

    keep  the pairs of the teacher's blocks that a shallower U-ViT keeps; by default evenly spaced ones
    """
    if not comparable(teacher, student):
        return []
    student_blocks, teacher_blocks = blocks_of(student), blocks_of(teacher)
    places = list(range(len(teacher_blocks)))
    if len(student_blocks) != len(teacher_blocks):
        if recipe(teacher)[0] != "uvit":
            return []
        pairs = pairs_of(teacher)
        keep = checked_pairs(keep or evenly_spaced(pairs, pairs_of(student)), pairs)
        places = matching_blocks(keep, pairs)
    widths, teacher_widths = widths_of(student), widths_of(teacher)
    return [
        BlockPair(block, width, teacher_blocks[k], teacher_widths[k])
        for block, width, k in zip(student_blocks, widths, places, strict=True)
    ]


def matched(pairs: list[BlockPair], teacher: nn.Module, weight: float, mask: float) -> Matched:
    """The pairs' features as a term of a loss, with projectors if any width differs."""
    narrower = any(pair.student_width != pair.teacher_width for pair in pairs)
    projectors = _projectors(pairs, teacher) if narrower else ()
    student_blocks, teacher_blocks = zip(*((p.student, p.teacher) for p in pairs), strict=True)
    return Matched(student_blocks, teacher_blocks, extras_of(teacher), weight, mask, projectors)


def _projectors(pairs: list[BlockPair], teacher: nn.Module) -> tuple[nn.Module, ...]:
    """A linear map of channels for each pair, with the same initial weights in every run."""
    weight, tokens = next(teacher.parameters()), recipe(teacher)[0] == "uvit"
    dtype = torch.promote_types(weight.dtype, torch.float32)

    def shape(width: int) -> list[int]:
        return [1, 1, width] if tokens else [1, width, 1, 1]

    with fork_rng(0):
        maps = [projector(shape(p.student_width), shape(p.teacher_width)) for p in pairs]
    return tuple(linear.to(weight.device, dtype) for linear in maps)
