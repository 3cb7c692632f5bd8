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

from halfstep.batch import Batch
from halfstep.config.validate import Updates, Validated
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
from halfstep.rng import Draw


@dataclass(frozen=True, kw_only=True)
class Reparameterise(Validated, Method):
    """Turn a teacher into one that predicts v (Salimans & Ho 2022, section 4)."""

    updates: Updates = 5_000
    """Optimiser updates."""
    zero_snr: bool = False
    """Move a table's schedule to zero terminal SNR (Lin et al. 2024)."""
    weighting: str = "snr+1"
    """Loss weight on the x0 error: constant, truncated-snr or snr+1 (the v error)."""

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
        return [StagePlan("v-teacher", self.updates)]

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

    def stages(self, teacher: PipelineLike) -> Iterator[Stage]:
        [stage], eta = self.plan(teacher), teacher.denoiser
        schedule, copy = self._schedule(eta), eta.trainable_copy()
        student = Denoiser(copy.net, schedule, V(), time=copy.time, autocast=copy.autocast)
        levels = levels_for(0, schedule)
        match = Match(eta.freeze(), schedule, WEIGHTINGS[self.weighting], levels)
        yield stage.stage(student, match)

    def _schedule(self, teacher: Teacher) -> Schedule:
        schedule = teacher.schedule
        if self.zero_snr and isinstance(schedule, BetaTable):
            return replace(schedule, zero_snr=True)
        return schedule


@dataclass(frozen=True)
class Match(Objective):
    """The teacher's prediction where its SNR is at least `readable`, the data below."""

    teacher: Teacher
    schedule: Schedule
    weighting: Weighting
    levels: int | None = None
    readable: float = 0.01
    forwards = 4

    def __call__(self, student: Denoiser, batch: Batch, draw: Draw) -> Tensor:
        x0, eps = batch.x0, draw.normal(batch.x0)
        t = random_times(draw, self.levels)
        x_t = level_of(self.schedule, t, x0).mix(x0, eps)
        target = self._target(batch, x_t, t, eps)
        guess: Prediction = student(x_t, t, batch.cond)
        return self.weighting(*errors(guess, target))

    @torch.no_grad()
    def _target(self, batch: Batch, x_t: Tensor, t: Tensor, eps: Tensor) -> Prediction:
        logsnr = self.schedule.at(t).logsnr
        blind = logsnr.exp() < self.readable
        # The teacher is evaluated where its own schedule has the same log-SNR; a blind row at another time,
        # and its prediction is thrown away.
        teacher_t = self.teacher.schedule.time(logsnr.clamp(min=-10)).clamp(EDGE, 1)
        pred = self.teacher(x_t, teacher_t, batch.cond)
        rows = blind.reshape(-1, *[1] * (x_t.ndim - 1))
        return Prediction(torch.where(rows, batch.x0, pred.x0), torch.where(rows, eps, pred.eps))
