"""The objective of a flow map: a step of 2^k of the teacher's is matched to the student's own two halves."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

import torch
from torch import nn, Tensor

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Teacher
from halfstep.diffusion.loss_weighting import truncated_snr, Weighting
from halfstep.diffusion.prediction import Clip, Prediction
from halfstep.diffusion.schedules import Schedule
from halfstep.diffusion.time_grids import Times
from halfstep.methods.diffusion.few_steps import Merging
from halfstep.methods.diffusion.matching import on_grid, Places
from halfstep.methods.diffusion.two_step_target import (
    CALLS,
    one_step_target,
    Predicts,
    Solver,
    two_step_target,
)
from halfstep.methods.diffusion.walk_spans import toward
from halfstep.methods.stages import teacher_calls
from halfstep.models.eval_mode import evaluating
from halfstep.rng import Draw

FINE = 2
"""One row in so many learns a step of the teacher; the others learn from the student, errors included."""


@dataclass(frozen=True)
class FlowMapLoss(Merging):
    """Match the student's step over 2^k fine ones to its own two halves, and its fine step to the teacher's.

    Every second row of all batches, one after the other, is a fine step; of the others k is uniform in
    1 ... `longest`, and the start a multiple of 2^k.  Rows of both kinds are apart before they are computed.
    """

    teacher: Teacher
    times: Times
    """The fine grid."""
    longest: int
    """The longest step is 2^longest fine ones."""
    weighting: Weighting = truncated_snr
    clip: Clip | None = None
    solver: Solver = "ddim"
    """Solver of the teacher's steps."""
    student: Predicts | None = None
    """Predicts the halves, without gradients: the network in training."""

    @property
    def forwards(self) -> float:
        """On average: the student's forward and backward, and the teacher's call or the student's two."""
        return 3 + (self._teachers + 2 * (FINE - 1)) / FINE

    @property
    def _teachers(self) -> int:
        """The calls of a network in one of the teacher's steps."""
        return teacher_calls(self.teacher) * CALLS[self.solver]

    def cost(self, updates: int, batch: int) -> int:
        """The cost of a stage in forwards.

        Args:
            updates: of the stage.
            batch: samples of an update.
        """
        rows = updates * batch
        fine = -(-rows // FINE)
        return 3 * rows + fine * self._teachers + (rows - fine) * 2

    @property
    def steps(self) -> int:
        """The number of fine steps."""
        return len(self.times) - 1

    def places(self, draw: Draw) -> Places:
        """t, the middle m and the end e of a step; of a fine one m = e."""
        u, start = draw.uniform(), draw.uniform()
        exponent = 1 + (self.longest * u).long().clamp(max=self.longest - 1)
        exponent = exponent.masked_fill(_is_fine(draw).to(u.device), 0)
        length = 2**exponent
        starts = self.steps // length
        return self._places((start * starts).long().minimum(starts - 1) * length, length)

    def _places(self, i: Tensor, length: Tensor) -> Places:
        return on_grid(self.times, i, i + (length + 1) // 2, i + length)

    def all_places(self) -> Places:
        """Those of every step, the fine ones too."""
        pairs = [(i, 2**k) for k in range(self.longest + 1) for i in range(0, self.steps, 2**k)]
        return self._places(*torch.tensor(pairs).unbind(1))

    def with_student(self, student: Any) -> Self:
        """The objective whose halves are this student's."""
        return replace(self, student=student)

    def guess(self, student: Any, x_t: Tensor, places: Places, cond: Cond | None) -> Prediction:
        guess: Prediction = student(x_t, places[0], toward(places[-1], cond))
        return guess

    @torch.no_grad()
    def target(self, x_t: Tensor, places: Places, cond: Cond | None) -> Prediction:
        fine = places[1] == places[2]

        def of(rows: Tensor, target: Callable[..., Prediction]) -> Prediction:
            t, m, e = (place[rows] for place in places)
            return target(x_t[rows], t, m, e, None if cond is None else cond[rows])

        return _joined(fine, lambda rows: of(rows, self._fine), lambda rows: of(rows, self._halves))

    def _fine(self, x_t: Tensor, t: Tensor, m: Tensor, e: Tensor, cond: Cond | None) -> Prediction:
        """The teacher's one step."""
        return one_step_target(self.teacher, x_t, t, e, cond, clip=self.clip, solver=self.solver)

    def _halves(
        self, x_t: Tensor, t: Tensor, m: Tensor, e: Tensor, cond: Cond | None
    ) -> Prediction:
        """The student's step to the middle, and from there to the end; as it is sampled, without dropout."""
        first, second = self._to(m), self._to(e)
        network = self.student if isinstance(self.student, nn.Module) else None
        with evaluating(network) if network else nullcontext():
            return two_step_target(first, x_t, t, m, e, cond, second=second)

    def _to(self, end: Tensor) -> "_Jump":
        return _Jump(self, end)

    # -- walks: of the teacher, a fine step at a time; at each time it stays for the longer steps -----

    @property
    def walk_length(self) -> int:
        return FINE * self.steps

    def walk_places(self, k: Tensor, jitter: Tensor) -> Places:
        table = _visits(self.steps, self.longest).to(k.device)
        return self._places(*table[:, k])

    def walk_cost(self, updates: int) -> float:
        """The teacher's fine steps to the states of the first update; later ones are targets, too."""
        return self._teachers * (self.steps - 1 / FINE)

    def step_prediction(
        self, x_t: Tensor, places: Places, cond: Cond | None, target: Prediction | None
    ) -> Prediction:
        """The teacher's fine step; where a walk stays nothing is predicted."""
        if target is not None:
            return target
        fine = places[1] == places[2]

        def step(rows: Tensor) -> Prediction:
            t, m, e = (place[rows] for place in places)
            return self._fine(x_t[rows], t, m, e, None if cond is None else cond[rows])

        return _joined(fine, step, lambda rows: Prediction(x_t[rows], x_t[rows]))

    def landing(
        self, x_t: Tensor, places: Places, pred: Prediction, fresh: Callable[[], Tensor]
    ) -> Tensor:
        stays = (places[1] != places[2]).reshape(-1, *[1] * (x_t.ndim - 1))
        return torch.where(stays, x_t, super().landing(x_t, places, pred, fresh))


@dataclass(frozen=True)
class _Jump:
    """A student that is told where its step ends, as its sampler takes its prediction."""

    loss: FlowMapLoss
    end: Tensor

    @property
    def schedule(self) -> Schedule:
        return self.loss.teacher.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        assert self.loss.student is not None  # `with_student` is the objective's own way to targets
        guess = self.loss.student(x_t, t, toward(self.end, cond))
        return self.loss.sampled(x_t, (t,), guess)


def _is_fine(draw: Draw) -> Tensor:
    """Which rows learn a fine step, bool [B]: every second of all updates' rows, one after the other."""
    update = draw.place[2] if draw.place is not None else 0
    rows = torch.arange(draw.rows.start, draw.rows.stop)
    return (update * draw.whole + rows) % FINE == 0


def _joined(
    is_first: Tensor, first: Callable[[Tensor], Prediction], second: Callable[[Tensor], Prediction]
) -> Prediction:
    """Predictions of two kinds of rows, each computed for its own, in the order of the rows.

    Of several processes each asks every network as often as the others do, if need be for one row in vain:
    networks that are divided among them wait for all.
    """
    parts, order = list[Prediction](), list[Tensor]()
    for mask, predict in ((is_first, first), (~is_first, second)):
        rows = mask.nonzero()[:, 0]
        if len(rows):
            parts.append(predict(rows))
            order.append(rows)
        elif _has_peers():
            predict(torch.zeros(1, dtype=torch.int64, device=rows.device))
    back = torch.cat(order).argsort()
    x0, eps = (torch.cat([getattr(p, name) for p in parts])[back] for name in ("x0", "eps"))
    return Prediction(x0, eps)


def _has_peers() -> bool:
    distributed = torch.distributed
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


@lru_cache(maxsize=8)
def _visits(steps: int, longest: int) -> Tensor:
    """Start and length of the steps that a walk learns, int64 [2, FINE steps], in the order of their starts.

    Each fine step once, last of those that begin there; of the others as many of each length, their starts
    evenly spread.
    """
    others, visits = (FINE - 1) * steps, list[tuple[int, int]]()
    for k in range(1, longest + 1):
        count = len(range(k - 1, others, longest))
        starts = steps >> k
        visits += [((n * starts // count) << k, 2**k) for n in range(count)]
    visits += [(i, 1) for i in range(steps)]
    return torch.tensor(sorted(visits, key=lambda visit: (visit[0], -visit[1]))).T
