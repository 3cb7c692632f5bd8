"""Distillation without data: an objective at the states of walks from noise, in place of noised data.

Two consecutive steps of a teacher's trajectory give one target of a halving, and end where the next two
begin: a walk of N steps gives N / 2 targets at two teacher forwards each, as with data.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import nn, Tensor

from halfstep.batch import Batch
from halfstep.config import JsonObject
from halfstep.data.no_data import NoData
from halfstep.errors import ConfigError
from halfstep.methods.diffusion.matching import Matching, matching
from halfstep.methods.diffusion.walk_states import Course, Lanes, of_student, State
from halfstep.methods.stages import Objective, Stage
from halfstep.rng import Draw

MEASURED, COUNT = 2**32 - 1, 64
"""In place of a stage's number, for walks that training never takes; and their number."""


@dataclass(frozen=True)
class Walked(Objective):
    """An objective at states of walks from noise, in place of noised data.

    data  conditions of the walks, and who walks: the teacher, or the student
    """

    objective: Objective
    data: NoData

    def __post_init__(self) -> None:
        matching(self.objective)
        # No fields: caches, and not what the objective is.
        object.__setattr__(self, "_lanes", {})
        object.__setattr__(self, "_measured", {})

    def __call__(self, student: Any, batch: Batch, draw: Draw) -> Tensor:
        match, lanes = matching(self.objective), None
        if draw.place is None:
            state = self._rehearsed(batch, draw)
        elif self.data.walk == "student":
            seed, stage, update = draw.place
            course = Course(self.objective, self.data, seed, stage, batch.x0)
            state = of_student(course, student, draw, update)
        else:
            lanes = self._lanes_of(batch, draw)
            state = lanes.at(draw.place[2])
        target = match.with_student(student).target(state.x_t, state.places, state.cond)
        if lanes is not None and draw.place is not None:
            lanes.keep(draw.place[2], state, target)
        guess = match.guess(student, state.x_t, state.places, state.cond)
        return match.loss(guess, target)

    def measure(self, student: Any, batch: Batch, draw: Draw) -> JsonObject:
        """The measures at states of other walks of the teacher than those of training."""
        match, states = matching(self.objective), self._measured  # type: ignore[attr-defined]
        if type(match).measure_at is Matching.measure_at:
            return {}  # without a walk
        seed = draw.generator.initial_seed()
        if seed not in states:
            like = batch.x0.new_zeros(COUNT, *batch.x0.shape[1:])
            course = Course(self.objective, self.data, seed, MEASURED, like)
            states[seed] = Lanes(course, slice(0, COUNT), COUNT).at(0)
        state: State = states[seed]
        return match.measure_at(student, state.x_t, state.places, state.cond)

    def cost(self, updates: int, batch: int) -> int:
        """The targets and the student's passes, and the steps of walks that give no target.

        A stage of the teacher's walks begins with the states of the first update, M - 1 targets a sample.
        The student takes M - 1 steps at every update on all walks that its batch has states of.
        """
        match = matching(self.objective)
        length, cost = match.walk_length, super().cost(updates, batch)
        if self.data.walk == "student":
            ends = [(u * batch // length, ((u + 1) * batch - 1) // length) for u in range(length)]
            walks = [last - first + 1 for first, last in ends]  # which repeat from there on
            whole, rest = divmod(updates, length)
            return cost + (length - 1) * (whole * sum(walks) + sum(walks[:rest]))
        return cost + round(batch * match.walk_cost(updates))

    @property
    def forwards(self) -> float:
        return self.objective.forwards

    def at(self, done: float) -> Self:
        return self

    @property
    def networks(self) -> list[nn.Module]:
        return self.objective.networks

    def _rehearsed(self, batch: Batch, draw: Draw) -> State:
        """Noise as the states, for checks and timing outside of training: no walk is needed for these."""
        seed, rows = 0, torch.arange(len(batch.x0))
        course = Course(self.objective, self.data, seed, 0, batch.x0)
        walks = course.walks(rows)
        return course.state(draw.normal(batch.x0), walks, rows % course.match.walk_length)

    def _lanes_of(self, batch: Batch, draw: Draw) -> Lanes:
        """The lanes of these rows."""
        assert draw.place is not None
        lanes: dict[Any, Lanes] = self._lanes  # type: ignore[attr-defined]
        place = (*draw.place[:2], draw.whole, draw.rows.start, draw.rows.stop)
        if place not in lanes:
            course = Course(self.objective, self.data, *draw.place[:2], torch.zeros_like(batch.x0))
            lanes[place] = Lanes(course, draw.rows, draw.whole)
        return lanes[place]


def without_data(stages: Iterator[Stage], data: NoData) -> Iterator[Stage]:
    """The same stages, learnt at states of walks."""
    for stage in stages:
        if (own := stage.objective.from_noise()) is not None:
            stage = replace(stage, objective=own)
        elif not stage.objective.inner.reads_walks:
            stage = replace(stage, objective=Walked(stage.objective, data))
        elif data.walk == "student":
            raise ConfigError(
                "kept walks are the teacher's, and none:student has the student walk: write --data none"
            )
        yield stage
        del stage  # with its teacher, which the next stage may not need
