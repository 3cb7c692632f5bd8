"""Teacher training: denoise data that was noised to a random time (Ho et al. 2020; Kingma et al. 2021)."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from halfstep.batch import Batch, Cond, Null
from halfstep.config.validate import CountOrNone, Share, Updates, Validated
from halfstep.diffusion.denoiser import Denoiser, level_of
from halfstep.diffusion.loss_weighting import Weighting, WEIGHTINGS
from halfstep.diffusion.prediction import Prediction
from halfstep.diffusion.schedules import Schedule
from halfstep.errors import ConfigError, unknown
from halfstep.methods.base import errors, Method
from halfstep.methods.pipeline_like import PipelineLike
from halfstep.methods.random_times import levels_for, random_times
from halfstep.methods.stages import Objective, Stage, StagePlan
from halfstep.rng import Draw, Uniform


@dataclass(frozen=True, kw_only=True)
class DenoisingOptions(Validated):
    """Options of `Denoising`; the data decide updates that are not given."""

    updates: Updates | None = None
    """Optimiser updates; by default 200 passes over the data, from 2,000 to 300,000."""
    weighting: str = "truncated-snr"
    """Loss weight on the x0 error: constant, snr, truncated-snr, snr+1 or min-snr."""
    levels: CountOrNone = 0
    """Draw times from {1/levels, ..., 1}; 0 draws them from all of (0, 1), or from the schedule's table."""
    drop_labels: Share = 0.0
    """Share of samples that see the null label or the empty text, for guidance; in [0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting not in WEIGHTINGS:
            raise unknown("weighting", self.weighting, WEIGHTINGS)

    def resolved(self, updates: int) -> "Denoising":
        """The method, with these updates unless some are given."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return Denoising(**{**given, "updates": updates if self.updates is None else self.updates})


@dataclass(frozen=True, kw_only=True)
class Denoising(DenoisingOptions, Method):
    """Train a teacher from data.

    Raises:
        ConfigError: an unknown weight, or options beyond their range.
    """

    updates: Updates = 100_000
    """Optimiser updates."""

    def plan(self, model: PipelineLike) -> list[StagePlan]:
        """One stage: the model itself, which becomes a teacher.

        Args:
            model: the fresh pipeline.
        """
        return [StagePlan("teacher", self.updates)]

    def check(self, model: PipelineLike) -> None:
        """Refuse a model that cannot be trained with these options.

        Args:
            model: the fresh pipeline.

        Raises:
            ConfigError: labels are dropped without a null class, or eps is learnt where it does not
                determine x0.
        """
        if self.drop_labels and model.unconditional is None:
            raise ConfigError(
                "drop_labels needs labelled data and a network with a null class, or texts"
            )
        denoiser = model.denoiser
        levels = levels_for(self.levels, denoiser.schedule)
        end = denoiser.schedule.at(torch.ones((), dtype=torch.float64))
        if levels and denoiser.parameterisation.blind_to_data and end.alpha == 0:
            raise ConfigError(
                "eps does not determine the data at t = 1 of a zero-terminal-SNR schedule, one of the "
                "training times: write predicts='v'"
            )

    def stages(self, model: PipelineLike) -> Iterator[Stage]:
        """One stage, with the model's denoiser as the student.

        Args:
            model: the fresh pipeline.
        """
        [stage], denoiser = self.plan(model), model.denoiser.unguided
        levels, weighting = levels_for(self.levels, denoiser.schedule), WEIGHTINGS[self.weighting]
        objective = Denoise(
            denoiser.schedule, weighting, levels, self.drop_labels, model.unconditional
        )
        yield stage.stage(denoiser, objective)


@dataclass(frozen=True)
class Denoise(Objective):
    """weight * ||x0 - x0_hat(alpha x0 + sigma eps)||^2 with t uniform (Salimans & Ho 2022, eq. 2)."""

    schedule: Schedule
    weighting: Weighting
    levels: int | None = None
    drop: float = 0.0
    null: Null | None = None

    def __call__(self, student: Denoiser, batch: Batch, draw: Draw) -> Tensor:
        t, eps = random_times(draw, self.levels), draw.normal(batch.x0)
        x_t = level_of(self.schedule, t, batch.x0).mix(batch.x0, eps)
        cond = some_unlabelled(batch.cond, draw, self.drop, self.null)
        guess: Prediction = student(x_t, t, cond)
        return self.weighting(*errors(guess, Prediction(batch.x0, eps)))


def label_dropping(drop: float | None, null: Null | None) -> float:
    """The share of samples to drop the condition of, for a copy of a teacher: 0.1 where it has a null.

    `ConfigError` for a share without a null.
    """
    if drop and null is None:
        raise ConfigError(
            "drop_labels needs a teacher with a null class, or of texts: write drop_labels=0"
        )
    return 0.1 * (null is not None) if drop is None else drop


def some_unlabelled(
    cond: Cond | None, draw: Uniform, drop: float, null: Null | None
) -> Cond | None:
    """The condition, dropped for this share of samples; unchanged without a condition or a null."""
    if not drop or null is None or cond is None or not cond.can_drop(null):
        return cond
    return cond.dropped(null, draw.uniform() < drop)
