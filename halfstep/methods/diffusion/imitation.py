"""What a smaller student learns of its teacher at a time: its prediction, the data, its features.

Output and denoising are one regression onto a mixed target; a feature's error is over the teacher's energy
(LAPTOP-Diff 2024), and outliers may be left out (TinyFusion, CVPR 2025).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn, Tensor

from halfstep.batch import Batch
from halfstep.diffusion.denoiser import level_of, Teacher
from halfstep.diffusion.loss_weighting import truncated_snr, Weighting
from halfstep.diffusion.prediction import Prediction
from halfstep.methods import losses
from halfstep.methods.base import errors, Objective, random_times
from halfstep.methods.diffusion.denoising import some_unlabelled
from halfstep.models.hooks import capture_outputs
from halfstep.rng import Draw


@dataclass(frozen=True)
class Matched:
    """Blocks of a student, and those of its teacher whose output each is to put out.

    extras  tokens before the patches, which are not compared
    weight  of the mean over all blocks
    mask    standard deviations beyond which a feature is left out; 0 keeps all
    """

    student: tuple[nn.Module, ...]
    teacher: tuple[nn.Module, ...]
    extras: int
    weight: float
    mask: float = 0.0
    projectors: tuple[nn.Module, ...] = ()
    """Of each pair, from the student's width to the teacher's; empty where they are the same."""

    def errors(self, student_outputs: list[Any], teacher_outputs: list[Any]) -> Tensor:
        """The mean over blocks of each one's error, [B].

        A block of a U-Net puts out its features and what goes to the way up: the first counts.
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

    Divided by the teacher's energy, as LAPTOP-Diff does, a block of large features counts no more than
    another.  With `mask` both leave out where f_T is `mask` standard deviations of its sample or
    more away from its mean (TinyFusion, CVPR 2025).
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


def mixed_target(teacher: Prediction, data: Prediction, *, share: float) -> Prediction:
    """(1 - share) * teacher + share * data.

    a ||f - teacher||^2 + b ||f - data||^2 = (a + b) ||f - mixed||^2 + ab / (a + b) ||teacher - data||^2 with
    share = b / (a + b): two losses in one, in x0 and in eps alike.
    """
    return Prediction(
        torch.lerp(teacher.x0, data.x0, share), torch.lerp(teacher.eps, data.eps, share)
    )


@dataclass(frozen=True)
class Imitate(Objective):
    """(output + denoising) weight ||f - mixed||^2 + features, of one noise, time and label for both.

    drop, null  share of samples that lose their label, and what stands for none
    """

    teacher: Teacher
    weighting: Weighting = truncated_snr
    output: float = 0.9
    denoising: float = 0.1
    matched: Matched | None = None
    levels: int | None = None
    drop: float = 0.0
    null: int | Tensor | None = None
    forwards = 4

    def __call__(self, student: Any, batch: Batch, draw: Draw) -> Tensor:
        guess, prediction, data, features = self._compare(student, batch, draw)
        whole = self.output + self.denoising
        target = mixed_target(prediction, data, share=self.denoising / whole)
        loss = whole * self.weighting(*errors(guess, target))
        if self.matched is None or features is None:
            return loss
        return loss + self.matched.weight * features.to(loss.dtype)

    def _compare(
        self, student: Any, batch: Batch, draw: Draw
    ) -> tuple[Prediction, Prediction, Prediction, Tensor | None]:
        """What the student says, the teacher, the data, and how far the features are apart."""
        t, eps = random_times(draw, self.levels), draw.normal(batch.x0)
        x_t = level_of(self.teacher.schedule, t, batch.x0).mix(batch.x0, eps)
        cond = some_unlabelled(batch.cond, draw, self.drop, self.null)
        teacher_blocks, student_blocks = (
            (self.matched.teacher, self.matched.student) if self.matched else ((), ())
        )
        with torch.no_grad(), capture_outputs(teacher_blocks) as teacher_outputs:
            prediction = self.teacher(x_t, t, cond)
        with capture_outputs(student_blocks) as student_outputs:
            guess: Prediction = student(x_t, t, cond)
        features = self.matched.errors(student_outputs, teacher_outputs) if self.matched else None
        return guess, prediction, Prediction(batch.x0, eps), features

    @torch.no_grad()
    def measure(self, student: Any, batch: Batch, draw: Draw) -> dict[str, dict[str, float]]:
        """Every term by name, before its weight."""
        guess, prediction, data, features = self._compare(student, batch, draw)
        terms = {
            "output": self.weighting(*errors(guess, prediction)),
            "denoising": self.weighting(*errors(guess, data)),
        }
        if features is not None:
            terms["features"] = features
        return {"terms": {name: float(value.mean()) for name, value in terms.items()}}
