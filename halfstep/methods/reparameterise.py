"""Turn an eps teacher into a v teacher, which can be distilled from pure noise.

eps says nothing about the data at SNR 0, so few-step students need v (Salimans & Ho 2022, section 4;
Meng et al. 2023, section 4 for latent models).  The student learns the teacher's own prediction where
the teacher can be read, and the data where it cannot.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from halfstep.batch import Batch
from halfstep.denoiser import Denoiser, level_of
from halfstep.errors import ConfigError, unknown
from halfstep.kinds import hold_to_kinds, Updates
from halfstep.methods.base import EDGE, errors, levels_for, random_times, Stage
from halfstep.noise import Draw
from halfstep.prediction import Prediction, V
from halfstep.schedules import BetaTable, Schedule
from halfstep.weighting import vanishes, Weighting, WEIGHTINGS


@dataclass(frozen=True, kw_only=True)
class Reparameterise:
    """Turn a teacher into one that predicts v (Salimans & Ho 2022, section 4)."""

    updates: Updates = 5_000
    """Optimiser updates."""
    zero_snr: bool = False
    """Move a table's schedule to zero terminal SNR (Lin et al. 2024)."""
    weighting: str = "snr+1"
    """Loss weight on the x0 error: constant, truncated-snr or snr+1 (the v error)."""

    def __post_init__(self) -> None:
        hold_to_kinds(self)
        if self.weighting not in WEIGHTINGS:
            raise unknown("weighting", self.weighting, WEIGHTINGS)
        if vanishes(WEIGHTINGS[self.weighting]):
            raise ConfigError(
                f"the weight '{self.weighting}' vanishes at SNR 0, which is what v is learnt for: "
                "write weighting='snr+1' or 'truncated-snr'"
            )

    def stages(self, teacher: Denoiser) -> Iterator[Stage]:
        schedule: Schedule = teacher.schedule
        if teacher.parameterisation.outputs != V.outputs:
            raise ConfigError(
                "a teacher that predicts both x0 and eps is readable at t = 1 as it is"
            )
        if self.zero_snr:
            if not isinstance(schedule, BetaTable):
                raise ConfigError(
                    "zero_snr moves a diffusers table; this teacher's schedule is none"
                )
            schedule = replace(schedule, zero_snr=True)
        net = teacher.twin().net
        student = Denoiser(net, schedule, V(), time=teacher.time, autocast=teacher.autocast)
        levels = levels_for(0, schedule)
        objective = Match(teacher.freeze(), schedule, WEIGHTINGS[self.weighting], levels)
        yield Stage("v-teacher", student, objective, self.updates)


@dataclass(frozen=True)
class Match:
    """The teacher's prediction where its SNR is at least `readable`, the data below."""

    teacher: Denoiser
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
        # The teacher is asked where its own schedule has the same log-SNR, and only where it can be
        # read; a blind row is asked elsewhere and its answer thrown away.
        theirs = self.teacher.schedule.time(logsnr.clamp(min=-10)).clamp(EDGE, 1)
        pred = self.teacher(x_t, theirs, batch.cond)
        rows = blind.reshape(-1, *[1] * (x_t.ndim - 1))
        return Prediction(torch.where(rows, batch.x0, pred.x0), torch.where(rows, eps, pred.eps))
