"""Reparameterisation: an eps teacher becomes a v teacher, which can be distilled from pure noise.

eps does not determine the data at SNR 0, so few-step students need v (Salimans & Ho 2022, section 4;
Meng et al. 2023, section 4 for latent models).  The student learns the teacher's prediction where that
determines the data, and the data elsewhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from halfstep.batch import Batch, Cond, Null
from halfstep.config.validate import Share, Updates, Validated
from halfstep.diffusion.denoiser import Denoiser, level_of, Teacher
from halfstep.diffusion.loss_weighting import vanishes, Weighting, WEIGHTINGS
from halfstep.diffusion.prediction import Prediction, V
from halfstep.diffusion.schedules import BetaTable, Schedule
from halfstep.errors import ConfigError, unknown
from halfstep.methods.base import (
    EDGE,
    errors,
    levels_for,
    Method,
    Objective,
    PipelineLike,
    random_times,
    refuse_student,
    Stage,
    StagePlan,
)
from halfstep.methods.diffusion.denoising import label_dropping, some_unlabelled
from halfstep.rng import Draw

V_TEACHER = "v-teacher"
"""The name of the stage."""


@dataclass(frozen=True, kw_only=True)
class Reparameterise(Validated, Method):
    """Turn a teacher into one that predicts v (Salimans & Ho 2022, section 4)."""

    updates: Updates = 5_000
    """Optimiser updates."""
    zero_snr: bool = False
    """Move a table's schedule to zero terminal SNR (Lin et al. 2024)."""
    weighting: str = "snr+1"
    """Loss weight on the x0 error: constant, truncated-snr or snr+1 (the v error)."""
    drop_labels: Share | None = None
    """Share of samples that see the null label or the empty text, for guidance; 0.1 by default where the
    teacher has one."""

    gated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting not in WEIGHTINGS:
            raise unknown("weighting", self.weighting, WEIGHTINGS)
        if vanishes(WEIGHTINGS[self.weighting]):
            raise ConfigError(
                f"the weight '{self.weighting}' vanishes at SNR 0, for which v is learnt: write "
                "weighting='snr+1' or 'truncated-snr'"
            )

    def plan(self, teacher: PipelineLike) -> list[StagePlan]:
        """One stage: the v teacher."""
        return [StagePlan(V_TEACHER, self.updates)]

    def check(self, teacher: PipelineLike) -> None:
        """`ConfigError` for a teacher that predicts both, and for zero_snr without a table."""
        super().check(teacher)
        refuse_student(teacher)
        if teacher.denoiser.parameterisation.outputs != V.outputs:
            raise ConfigError(
                "a teacher that predicts both x0 and eps needs no reparameterisation: distil it as it is"
            )
        if self.zero_snr and not isinstance(teacher.denoiser.schedule, BetaTable):
            raise ConfigError("zero_snr needs a table of betas: this teacher has another schedule")
        levels_for(0, self._schedule(teacher.denoiser))
        label_dropping(self.drop_labels, teacher.unconditional)

    def stages(self, teacher: PipelineLike) -> Iterator[Stage]:
        [stage], eta = self.plan(teacher), teacher.denoiser
        schedule, null = self._schedule(eta), teacher.unconditional
        student = reading_v(eta.trainable_copy(), schedule)
        levels, drop = levels_for(0, schedule), label_dropping(self.drop_labels, null)
        weighting = WEIGHTINGS[self.weighting]
        match = Match(eta.freeze(), schedule, weighting, levels, drop=drop, null=null)
        yield stage.stage(student, match)

    def _schedule(self, teacher: Teacher) -> Schedule:
        schedule = teacher.schedule
        if self.zero_snr and isinstance(schedule, BetaTable):
            return replace(schedule, zero_snr=True)
        return schedule


def reading_v(denoiser: Denoiser, schedule: Schedule) -> Denoiser:
    """The network of a denoiser, read as a v network on this schedule."""
    return Denoiser(denoiser.net, schedule, V(), time=denoiser.time, autocast=denoiser.autocast)


@dataclass(frozen=True)
class Match(Objective):
    """The teacher's prediction where its SNR is at least `readable`, the data below.

    drop  share of samples whose condition is replaced by `null`, for teacher and student alike
    """

    teacher: Teacher
    schedule: Schedule
    weighting: Weighting
    levels: int | None = None
    readable: float = 0.01
    drop: float = 0.0
    null: Null | None = None
    forwards = 4

    def __call__(self, student: Denoiser, batch: Batch, draw: Draw) -> Tensor:
        x0, eps = batch.x0, draw.normal(batch.x0)
        t = random_times(draw, self.levels)
        x_t = level_of(self.schedule, t, x0).mix(x0, eps)
        cond = some_unlabelled(batch.cond, draw, self.drop, self.null)
        target = self._target(x0, x_t, t, eps, cond)
        guess: Prediction = student(x_t, t, cond)
        return self.weighting(*errors(guess, target))

    @torch.no_grad()
    def _target(
        self, x0: Tensor, x_t: Tensor, t: Tensor, eps: Tensor, cond: Cond | None
    ) -> Prediction:
        logsnr = self.schedule.at(t).logsnr
        blind = logsnr.exp() < self.readable
        # The teacher is evaluated where its own schedule has the same log-SNR; a blind row at another time,
        # and its prediction is thrown away.
        teacher_t = self.teacher.schedule.time(logsnr.clamp(min=-10)).clamp(EDGE, 1)
        pred = self.teacher(x_t, teacher_t, cond)
        rows = blind.reshape(-1, *[1] * (x_t.ndim - 1))
        return Prediction(torch.where(rows, x0, pred.x0), torch.where(rows, eps, pred.eps))
