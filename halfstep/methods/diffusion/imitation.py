"""The loss of a smaller student: the teacher's prediction, the data and the teacher's features.

Output and denoising are one regression onto a mixed target; a feature's error is divided by the teacher's
energy (LAPTOP-Diff 2024), and outliers may be left out (TinyFusion, CVPR 2025).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfstep.batch import Batch, Null
from halfstep.diffusion.denoiser import level_of, Teacher
from halfstep.diffusion.loss_weighting import truncated_snr, Weighting
from halfstep.diffusion.prediction import Prediction
from halfstep.methods.base import errors
from halfstep.methods.diffusion.block_features import Matched
from halfstep.methods.diffusion.denoising import some_unlabelled
from halfstep.methods.random_times import random_times
from halfstep.methods.stages import Objective
from halfstep.models.hooks import capture_outputs
from halfstep.rng import Draw


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
    """(output + denoising) weight ||f - mixed||^2 + features, with one noise, time and label for both.

    drop, null  share of samples that get the null label, and that label
    """

    teacher: Teacher
    weighting: Weighting = truncated_snr
    output: float = 0.9
    denoising: float = 0.1
    matched: Matched | None = None
    levels: int | None = None
    drop: float = 0.0
    null: Null | None = None
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
        """The student's prediction, the teacher's, the data, and the error of the features."""
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
