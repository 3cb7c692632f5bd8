"""Objectives in three parts: where they compare, the target there, and the loss of a guess.

The target needs a teacher and x_t, and no data: x_t may be noised data, or a state of a walk from noise
(`halfstep.methods.diffusion.walks`).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor

from halfstep.batch import Batch, Cond
from halfstep.config import JsonObject
from halfstep.diffusion.denoiser import Denoises, level_of
from halfstep.diffusion.loss_weighting import Weighting
from halfstep.diffusion.prediction import Clip, Prediction
from halfstep.diffusion.schedules import arriving, Level, Schedule
from halfstep.diffusion.time_grids import Times
from halfstep.errors import ConfigError
from halfstep.methods.base import errors
from halfstep.methods.pipeline_like import PipelineLike
from halfstep.methods.random_times import EDGE, random_times
from halfstep.methods.stages import Objective
from halfstep.rng import Draw

Places = tuple[Tensor, ...]
"""Times of each sample, float64 [B] each: first t of x_t, last the end of the step."""
WALK = 64
"""Steps of a walk for an objective of every time."""


class Matching(Objective):
    """An objective that compares the student's prediction at x_t with a target."""

    teacher: Denoises
    weighting: Weighting

    @property
    def schedule_of_x(self) -> Schedule:
        """The schedule on which x_t lies."""
        return self.teacher.schedule

    def places(self, draw: Draw) -> Places:
        """Random places, among which those of a walk are."""
        raise NotImplementedError(f"{type(self).__name__} has no places(draw)")

    def target(self, x_t: Tensor, places: Places, cond: Cond | None) -> Prediction:
        """The target at x_t; never differentiated."""
        raise NotImplementedError(f"{type(self).__name__} has no target(x_t, places, cond)")

    def with_student(self, student: Any) -> Self:
        """The objective whose targets ask the student, too; by default they ask the teacher alone."""
        return self

    def loss(self, guess: Prediction, target: Prediction) -> Tensor:
        """The loss of a guess, [B]."""
        return self.weighting(*errors(guess, target))

    def __call__(self, student: Any, batch: Batch, draw: Draw) -> Tensor:
        x0, cond = batch.x0, self.conditioned(batch.cond, draw)
        places, eps = self.places(draw), draw.normal(x0)
        x_t = level_of(self.schedule_of_x, places[0], x0).mix(x0, eps)
        target = self.with_student(student).target(x_t, places, cond)
        return self.loss(self.guess(student, x_t, places, cond), target)

    def guess(self, student: Any, x_t: Tensor, places: Places, cond: Cond | None) -> Prediction:
        """The student's prediction at these places."""
        guess: Prediction = student(x_t, places[0], cond)
        return guess

    def measure_at(
        self, student: Any, x_t: Tensor, places: Places, cond: Cond | None
    ) -> JsonObject:
        """Numbers for the log, by name, of the student at x_t."""
        return {}

    # -- walks -------------------------------------------------------------------------------------

    @property
    def walk_length(self) -> int:
        """The number of places of a walk."""
        raise NotImplementedError(f"{type(self).__name__} has no walk_length")

    def walk_places(self, k: Tensor, jitter: Tensor) -> Places:
        """The k-th places of walks.

        k       int64 [B], 0 (noise) to `walk_length` - 1
        jitter  float64 [B] in [0, 1), one number a walk
        """
        raise NotImplementedError(f"{type(self).__name__} has no walk_places(k, jitter)")

    @property
    def walk_forwards(self) -> int | None:
        """Forwards of a walk's step beside the target's; None for walks that step with the target."""
        return None

    def walk_cost(self, updates: int) -> float:
        """Forwards of one of the teacher's walks in so many updates, beside the targets of these.

        It begins with the states of the first update, `walk_length` - 1 steps from noise.
        """
        if (step := self.walk_forwards) is not None:
            return (self.walk_length - 1 + updates) * step
        return (self.walk_length - 1) * (self.forwards - 3)

    def step_prediction(
        self, x_t: Tensor, places: Places, cond: Cond | None, target: Prediction | None
    ) -> Prediction:
        """The teacher's prediction with which a walk steps on: the target.

        target  at these places, if it is known
        """
        return self.target(x_t, places, cond) if target is None else target

    def landing(
        self, x_t: Tensor, places: Places, pred: Prediction, fresh: Callable[[], Tensor]
    ) -> Tensor:
        """The walk's next state, where one step with this prediction lands.

        fresh  draws the noise of a stochastic step
        """
        return arriving_at(self.schedule_of_x, places[-1], x_t).mix(pred.x0, pred.eps)

    def sampled(self, x_t: Tensor, places: Places, guess: Prediction) -> Prediction:
        """The student's prediction as its own sampler takes it, with which the student walks."""
        return guess


def matching(objective: Objective) -> Matching:
    """The objective that has places and targets; `ConfigError` for one that needs data."""
    match = objective.inner
    if not isinstance(match, Matching):
        raise ConfigError(
            f"{type(match).__name__} compares with data, and there are none: name data in place of none"
        )
    return match


def teacher_clip(teacher: PipelineLike) -> Clip | None:
    """The clipping of a teacher's own sampler."""
    return None if teacher.clip is None else Clip(teacher.clip, teacher.clipping)


def arriving_at(schedule: Schedule, t: Tensor, x: Tensor) -> Level:
    """The level at the end of a step to t, as samplers arrive at it, broadcastable to x.

    t  float64 [B]
    """
    level = arriving(schedule, t.reshape(-1, *[1] * (x.ndim - 1)))
    return Level(level.alpha.to(x.dtype), level.sigma.to(x.dtype))


class AtAllTimes(Matching):
    """An objective at random times, on all of (0, 1) or on a table's levels.

    levels  times are from {1 / levels, ..., 1}; None means all of (0, 1)
    clip    the clipping of the teacher's sampler, for the steps of a walk
    """

    levels: int | None
    clip: Clip | None

    def places(self, draw: Draw) -> Places:
        return (random_times(draw, self.levels),)

    @property
    def walk_length(self) -> int:
        return min(WALK, self.levels or WALK)

    def walk_places(self, k: Tensor, jitter: Tensor) -> Places:
        """Equal steps, moved by the jitter: all walks together visit all times equally."""
        return self._time(k + jitter), self._time(k + 1 + jitter)

    def _time(self, steps: Tensor) -> Tensor:
        """The time after this many steps, a fraction too, on the way from 1 to 0."""
        share = steps / self.walk_length
        if self.levels is None:
            return (1 - share).clamp(EDGE, 1 - EDGE)
        return (self.levels - (share * self.levels).floor()).clamp(min=1) / self.levels

    def landing(
        self, x_t: Tensor, places: Places, pred: Prediction, fresh: Callable[[], Tensor]
    ) -> Tensor:
        if self.clip is not None:
            pred = self.clip(pred, x_t, level_of(self.schedule_of_x, places[0], x_t))
        return super().landing(x_t, places, pred, fresh)


def on_grid(times: Times, *indices: Tensor) -> tuple[Tensor, ...]:
    """The times at these indices, float64 on the indices' device (float32 where it has none)."""
    table = _on_device(times, indices[0].device)
    return tuple(table[i] for i in indices)


@lru_cache(maxsize=8)  # a copy to the device waits for it, so not one every update
def _on_device(times: Times, device: torch.device) -> Tensor:
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.tensor(times, dtype=dtype, device=device)
