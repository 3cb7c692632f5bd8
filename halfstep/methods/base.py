"""What a method is: stages, each a student and an objective.  Knows no optimiser."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn, Tensor

from halfstep.batch import Batch
from halfstep.noise import Draw
from halfstep.prediction import Prediction
from halfstep.schedules import Schedule
from halfstep.timegrids import on_schedule, Times

EDGE = 2.0**-24
"""Continuous times stay this far from 0 and 1, where some level is infinite."""


class Objective(Protocol):
    """A loss: one value a sample, and nothing else.

    One with a method `measure(student, batch, draw)`, which returns numbers by name, has them in the log.
    One with a method `at(done)` is asked before every update for what it is by then, when that share of its
    stage's updates is done (0 before the first): a function of nothing else, or a resumed run would differ.
    """

    @property
    def forwards(self) -> int:
        """What one update costs a sample, in forwards: a forward 1, a forward and backward 3."""

    def __call__(self, student: Any, batch: Batch, draw: Draw) -> Tensor:
        """One loss per sample, shape [B].  `student` may be wrapped: it is called, never asked."""


@dataclass(frozen=True)
class Stage:
    """One student and what it learns."""

    name: str
    student: nn.Module
    objective: Objective
    updates: int
    times: Times = ()
    """The grid the student is to be sampled on; empty where any will do."""
    guidance: tuple[float, float] | None = None
    """The range of guidance scales that the student takes as an input; None is as its teacher."""
    made_for: str = "ddim"
    """What walks on that grid with it: ddim, stochastic, or encode, which walks from data to noise."""


def at(objective: Objective, done: float) -> Objective:
    """The objective as it is when that share of its stage's updates is done."""
    changed: Objective = getattr(objective, "at", lambda done: objective)(done)
    return changed


class Method(Protocol):
    """A generator of stages."""

    def stages(self, teacher: Any) -> Iterator[Stage]:
        """Code after a `yield` runs once that stage's student is trained.

        One with an argument `null` is also told the label, or the states, that mean "no condition".
        """


def errors(guess: Prediction, target: Prediction) -> tuple[Tensor, Tensor]:
    """Mean squared errors of x0 and of eps over each sample, shape [B] both: what a weighting weighs."""
    x_err = (target.x0 - guess.x0).square().flatten(1).mean(1)
    return x_err, (target.eps - guess.eps).square().flatten(1).mean(1)


def levels_for(asked: int, schedule: Schedule) -> int | None:
    """How many levels `random_times` draws from: as asked, else the table's own; None: all of (0, 1).

    `ConfigError` where the schedule has no level at one of them, which chance would find in mid-training.
    """
    levels: int | None = asked or getattr(schedule, "levels", None)
    if levels:  # of very many the lowest, where a table has its gap
        on_schedule(tuple(k / levels for k in range(levels, 0, -1)[-1000:]), schedule)
    return levels


def random_times(draw: Draw, levels: int | None) -> Tensor:
    """t float64 [B]: uniform in (0, 1), or with `levels` uniform on {1 / levels, ..., 1}."""
    if levels is None:
        return draw.uniform().clamp(EDGE, 1 - EDGE)
    chosen = draw.integers(levels) + 1
    return chosen.to(torch.float32 if chosen.device.type == "mps" else torch.float64) / levels
