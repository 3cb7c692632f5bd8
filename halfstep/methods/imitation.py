"""What a smaller student learns of its teacher at a time: its prediction, the data, its features.

Output and denoising are one regression onto a mixed target; a feature's error is over the teacher's energy
(LAPTOP-Diff 2024), and outliers may be left out (TinyFusion, CVPR 2025).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn, Tensor

from halfstep.batch import Batch
from halfstep.denoiser import level_of, Teacher
from halfstep.methods.base import errors, random_times
from halfstep.methods.denoising import some_unlabelled
from halfstep.nets.blocks import watched
from halfstep.noise import Draw
from halfstep.prediction import Prediction
from halfstep.weighting import truncated_snr, Weighting


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

    def errors(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        """The mean over blocks of each one's error, [B]."""
        found = [
            feature_error(a[:, self.extras :], b[: len(a), self.extras :], mask=self.mask)
            for a, b in zip(ours, theirs, strict=True)
        ]
        return torch.stack(found).mean(0)


def feature_error(student: Tensor, teacher: Tensor, *, mask: float = 0.0) -> Tensor:
    """mean((f_S - f_T)^2) / mean(f_T^2) of each sample, [B] in float32 at least.

    Divided by the teacher's energy, as LAPTOP-Diff does, a block of large features counts no more than
    another.  With `mask` both are 0 where f_T is `mask` standard deviations of its sample or more away from
    its mean (TinyFusion, CVPR 2025).
    """
    wide = torch.promote_types(student.dtype, torch.float32)
    ours, theirs = student.flatten(1).to(wide), teacher.detach().flatten(1).to(wide)
    if mask:
        mean, spread = theirs.mean(1, keepdim=True), theirs.std(1, correction=0, keepdim=True)
        near = (theirs - mean).abs() < mask * spread
        ours, theirs = ours * near, theirs * near
    energy = theirs.square().mean(1).clamp_min(torch.finfo(wide).tiny)
    return (ours - theirs).square().mean(1) / energy


def mixed_target(teacher: Prediction, data: Prediction, *, share: float) -> Prediction:
    """(1 - share) * teacher + share * data.

    a ||f - teacher||^2 + b ||f - data||^2 = (a + b) ||f - mixed||^2 + ab / (a + b) ||teacher - data||^2 with
    share = b / (a + b): two losses in one, in x0 and in eps alike.
    """
    return Prediction(
        torch.lerp(teacher.x0, data.x0, share), torch.lerp(teacher.eps, data.eps, share)
    )


@dataclass(frozen=True)
class Imitate:
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
        guess, said, data, features = self._seen(student, batch, draw)
        whole = self.output + self.denoising
        target = mixed_target(said, data, share=self.denoising / whole)
        loss = whole * self.weighting(*errors(guess, target))
        if self.matched is None or features is None:
            return loss
        return loss + self.matched.weight * features.to(loss.dtype)

    def _seen(
        self, student: Any, batch: Batch, draw: Draw
    ) -> tuple[Prediction, Prediction, Prediction, Tensor | None]:
        """What the student says, the teacher, the data, and how far the features are apart."""
        t, eps = random_times(draw, self.levels), draw.normal(batch.x0)
        x_t = level_of(self.teacher.schedule, t, batch.x0).mix(batch.x0, eps)
        cond = some_unlabelled(batch.cond, draw, self.drop, self.null)
        theirs, ours = (self.matched.teacher, self.matched.student) if self.matched else ((), ())
        with torch.no_grad(), watched(theirs) as wanted:
            said = self.teacher(x_t, t, cond)
        with watched(ours) as got:
            guess: Prediction = student(x_t, t, cond)
        features = self.matched.errors(got, wanted) if self.matched else None
        return guess, said, Prediction(batch.x0, eps), features

    @torch.no_grad()
    def measure(self, student: Any, batch: Batch, draw: Draw) -> dict[str, dict[str, float]]:
        """Every term by name, before its weight."""
        guess, said, data, features = self._seen(student, batch, draw)
        terms = {
            "output": self.weighting(*errors(guess, said)),
            "denoising": self.weighting(*errors(guess, data)),
        }
        if features is not None:
            terms["features"] = features
        return {"terms": {name: float(value.mean()) for name, value in terms.items()}}
