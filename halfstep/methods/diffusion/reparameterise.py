"""Reparameterisation: an eps teacher becomes a v teacher, which can be distilled from pure noise.

eps does not determine the data at SNR 0, so few-step students need v (Salimans & Ho 2022, section 4;
Meng et al. 2023, section 4 for latent models).  The student learns the teacher's prediction where that
determines the data, and the data elsewhere.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from halfstep.batch import Batch, Cond, Null
from halfstep.config.validate import Share, Updates, Validated
from halfstep.diffusion.denoiser import Denoiser, level_of, Teacher
from halfstep.diffusion.loss_weighting import vanishes, Weighting, WEIGHTINGS
from halfstep.diffusion.prediction import Clip, Prediction, V
from halfstep.diffusion.schedules import BetaTable, Schedule
from halfstep.errors import ConfigError, unknown
from halfstep.methods.base import Method, refuse_student
from halfstep.methods.default_updates import every_time_updates, PAPER
from halfstep.methods.diffusion.denoising import label_dropping, some_unlabelled
from halfstep.methods.diffusion.matching import AtAllTimes, Places, teacher_clip
from halfstep.methods.pipeline_like import PipelineLike
from halfstep.methods.random_times import EDGE, levels_for, random_times
from halfstep.methods.stages import Stage, StagePlan
from halfstep.rng import Draw, Uniform

V_TEACHER = "v-teacher"
"""The name of the stage."""


@dataclass(frozen=True, kw_only=True)
class Reparameterise(Validated, Method):
    """Turn a teacher into one that predicts v (Salimans & Ho 2022, section 4).

    Raises:
        ConfigError: an unknown weight, or one that vanishes at SNR 0, for which v is learnt.
    """

    updates: Updates | None = None
    """Optimiser updates. By the data: a quarter of a teacher's default."""
    zero_snr: bool = False
    """Move a table's schedule to zero terminal SNR (Lin et al. 2024)."""
    weighting: str = "snr+1"
    """Loss weight on the x0 error: constant, truncated-snr or snr+1 (the v error)."""
    drop_labels: Share | None = None
    """Share of samples that see the null label or the empty text, for guidance; 0.1 by default where the
    teacher has one."""

    gated: ClassVar[bool] = False
    walks: ClassVar[bool] = True

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
        """One stage: the v teacher.

        Args:
            teacher: the pipeline to distil.
        """
        updates = every_time_updates(PAPER) if self.updates is None else self.updates
        return [StagePlan(V_TEACHER, updates, forwards=Match.forwards)]

    def sized(self, teacher: PipelineLike, updates: int) -> Self:
        """The method with its updates: a quarter of the teacher's unless some are given.

        Args:
            teacher: the pipeline to distil.
            updates: that a teacher of these data has by default.
        """
        return (
            self if self.updates is not None else replace(self, updates=every_time_updates(updates))
        )

    def check(self, teacher: PipelineLike) -> None:
        """Refuse a teacher that predicts both, and zero_snr without a table.

        Args:
            teacher: the pipeline to distil.

        Raises:
            ConfigError: the teacher needs no reparameterisation, or its schedule is no table.
        """
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
        """The stages for a teacher that passes `check`; code after a `yield` runs after its training.

        Args:
            teacher: the pipeline to distil, on its device.
        """
        [stage], eta = self.plan(teacher), teacher.denoiser
        schedule, null = self._schedule(eta), teacher.unconditional
        student = reading_v(eta.trainable_copy(), schedule)
        levels, drop = levels_for(0, schedule), label_dropping(self.drop_labels, null)
        weighting = WEIGHTINGS[self.weighting]
        clip = teacher_clip(teacher)
        match = Match(eta.freeze(), schedule, weighting, levels, drop=drop, null=null, clip=clip)
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
class Match(AtAllTimes):
    """The teacher's prediction where its SNR is at least `readable`, the data below.

    Without data (`target`) the x0 below is the teacher's at the last SNR that is readable, where almost
    unit noise is its x_t too: it is about the mean of the data, as it should be.

    drop  share of samples whose condition is replaced by `null`, for teacher and student alike
    clip  the clipping of the teacher's sampler, for the steps of a walk
    """

    teacher: Teacher
    schedule: Schedule
    weighting: Weighting
    levels: int | None = None
    readable: float = 0.01
    drop: float = 0.0
    null: Null | None = None
    clip: Clip | None = None
    forwards = 4

    def __call__(self, student: Denoiser, batch: Batch, draw: Draw) -> Tensor:
        x0, eps = batch.x0, draw.normal(batch.x0)
        t = random_times(draw, self.levels)
        x_t = level_of(self.schedule, t, x0).mix(x0, eps)
        cond = self.conditioned(batch.cond, draw)
        target, rows = self.target(x_t, (t,), cond), self._blind(t, x_t)
        target = Prediction(torch.where(rows, x0, target.x0), torch.where(rows, eps, target.eps))
        guess: Prediction = student(x_t, t, cond)
        return self.loss(guess, target)

    @property
    def schedule_of_x(self) -> Schedule:
        return self.schedule

    def conditioned(self, cond: Cond | None, draw: Uniform) -> Cond | None:
        return some_unlabelled(cond, draw, self.drop, self.null)

    @torch.no_grad()
    def target(self, x_t: Tensor, places: Places, cond: Cond | None) -> Prediction:
        (t, *_), level = places, level_of(self.schedule, places[0], x_t)
        # The teacher is evaluated where its own schedule has the same log-SNR, and a blind row at the last
        # that is readable, with the noise of that time.
        logsnr = self.schedule.at(t).logsnr.clamp(min=math.log(self.readable))
        teacher_t = self.teacher.schedule.time(logsnr).clamp(EDGE, 1)
        blind = self._blind(t, x_t)
        shrink = level_of(self.teacher.schedule, teacher_t, x_t).sigma / level.sigma
        pred = self.teacher(torch.where(blind, shrink * x_t, x_t), teacher_t, cond)
        eps = (x_t - level.alpha * pred.x0) / level.sigma
        return Prediction(pred.x0, torch.where(blind, eps, pred.eps))

    def _blind(self, t: Tensor, x_t: Tensor) -> Tensor:
        """The rows in which the teacher is not readable, broadcastable to x_t."""
        blind = self.schedule.at(t).logsnr.exp() < self.readable
        return blind.reshape(-1, *[1] * (x_t.ndim - 1))
