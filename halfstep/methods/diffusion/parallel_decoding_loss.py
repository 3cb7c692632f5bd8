"""The loss of parallel decoding distillation: a head against its teacher, at the student's own points.

The student is asked once an update, at x_n: for head k, which learns, and for the heads n ... k - 1 together,
whose DDIM step n -> k leads to Xbar_k, where the teacher answers.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast, Literal, Self

import torch
from torch import Tensor

from halfstep.batch import Batch, Cond
from halfstep.diffusion.block_weights import block_weights
from halfstep.diffusion.denoiser import level_of, Teacher
from halfstep.diffusion.loss_weighting import truncated_snr, Weighting
from halfstep.diffusion.prediction import Clip, Prediction, Velocity
from halfstep.diffusion.samplers import start
from halfstep.diffusion.schedules import arriving, Level, Schedule
from halfstep.diffusion.time_grids import Times
from halfstep.methods.base import errors
from halfstep.methods.diffusion.matching import arriving_at, on_grid
from halfstep.methods.diffusion.two_step_target import as_clipped, Predicts
from halfstep.methods.stages import Objective, teacher_calls
from halfstep.models.eval_mode import evaluating
from halfstep.rng import Draw

Solver = Literal["euler", "midpoint"]
"""Of the teacher's fine step: DDIM, one call, or the midpoint rule, two."""
Points = Literal["data", "noise"]
"""Where updates begin: at noised data, or on the student's own walk from noise."""


@dataclass(frozen=True)
class ParallelDecodingLoss(Objective):
    """weight * ||x0_k - T(Xbar_k)||^2: head k and the teacher where the heads before it lead.

    times   the fine grid, noise first
    counts  the numbers of equal blocks that are served
    solver  of the teacher's fine step: euler, one call of it, or midpoint, two
    points  whether x_n is noised data, or lies on the student's own walk from noise
    clip    of the teacher's images, and of a block's x0 on that walk
    """

    teacher: Teacher
    times: Times
    counts: tuple[int, ...]
    weighting: Weighting = truncated_snr
    solver: Solver = "euler"
    points: Points = "data"
    clip: Clip | None = None

    def __call__(self, student: Any, batch: Batch, draw: Draw) -> Tensor:
        cond, noise = self.conditioned(batch.cond, draw), draw.normal(batch.x0)
        length, block = self.blocks(draw)
        n = (length * block).to(noise.device)
        k = n + self.within(length.to(noise.device), draw)
        if self.points == "noise":
            x_n = self.walked(student, noise, length, block, cond, draw)
        else:
            x_n = self._level(n, noise).mix(batch.x0, noise)
        heads = torch.stack([self._one_head(k), self._weights(n, k)], 1)
        [t_n] = on_grid(self.times, n)
        guess, before = _halves(student(x_n, t_n, with_weights(cond, heads)))
        return self.weighting(*errors(guess, self.target(x_n, n, k, before, cond)))

    # -- which blocks -------------------------------------------------------------------------------

    def blocks(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """The length in fine steps and the number of each sample's block, int64 [B] on the CPU.

        The numbers of blocks that are served, and the blocks of each, in turn: all as often, in any batch,
        and known without the device.
        """
        update = 0 if draw.place is None else draw.place[2]
        sample = update * draw.whole + torch.arange(draw.rows.start, draw.rows.stop)
        count = torch.tensor(self.counts)[sample % len(self.counts)]
        return self._fine // count, sample // len(self.counts) % count

    def within(self, length: Tensor, draw: Draw) -> Tensor:
        """A random fine step of a block of this length, from 0."""
        return torch.minimum((draw.uniform() * length).long(), length - 1)

    # -- the target ---------------------------------------------------------------------------------

    @torch.no_grad()
    def target(
        self, x_n: Tensor, n: Tensor, k: Tensor, before: Prediction, cond: Cond | None
    ) -> Prediction:
        """T(Xbar_k), the x0 with which the teacher makes fine step k, as a prediction at x_n.

        before  the prediction of the heads n ... k - 1 together: the DDIM step n -> k with it is Xbar_k
        """
        step = self._level(k, x_n).mix(before.x0, before.eps)
        own_point = torch.where(_column(k == n, x_n), x_n, step)
        t_k, t_next = on_grid(self.times, k, k + 1)
        x0 = self._teacher_x0(own_point, k, t_k, t_next, cond)
        return Prediction.from_x0(x0, x_n, self._level(n, x_n))

    def _teacher_x0(self, x: Tensor, k: Tensor, t: Tensor, to: Tensor, cond: Cond | None) -> Tensor:
        """The x0 with which one DDIM step from x at t makes the solver's step to `to`.

        Midpoint: with m halfway in tau = sigma / (alpha + sigma), and u = eps - x0 the velocity there, it is
        (x - sigma u) / (alpha + sigma).
        """
        schedule = self.teacher.schedule

        def predicted(x: Tensor, t: Tensor, to: Tensor) -> Prediction:
            return as_clipped(schedule, self.teacher(x, t, cond), x, t, to, self.clip)

        if self.solver == "euler":
            return predicted(x, t, to).x0
        m = _middles(cast(Hashable, schedule), self.times, x.device)[k]
        first = predicted(x, t, m)
        second = predicted(level_of(schedule, m, x).mix(first.x0, first.eps), m, to)
        whole = Velocity().decode(second.eps - second.x0, x, level_of(schedule, t, x))
        return as_clipped(schedule, whole, x, t, to, self.clip).x0

    # -- the student's own walk ---------------------------------------------------------------------

    @torch.no_grad()
    def walked(
        self, student: Predicts, noise: Tensor, length: Tensor, block: Tensor, cond: Cond | None,
        draw: Draw,
    ) -> Tensor:  # fmt: skip
        """x_n of each sample: the student's own steps from noise, in blocks of this length, to this block."""
        x = start(self.teacher.schedule, noise, self.times[0])
        with evaluating(cast(Any, student)):
            for number in range(self._steps(block, draw)):
                rows = (block > number).nonzero()[:, 0]
                moves = len(rows) > 0
                if not moves:  # a network over several processes is called by all or by none
                    rows = torch.zeros(1, dtype=torch.int64)
                at = rows.to(x.device)
                n, end = (length[rows] * k for k in (number, number + 1))
                landed = self._landed(
                    student, x[at], n.to(x.device), end.to(x.device), _rows(cond, at)
                )
                x = x.index_copy(0, at, landed) if moves else x
        return x

    def _steps(self, block: Tensor, draw: Draw) -> int:
        """The most steps of a walk; of several processes in the whole batch."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            block = self.blocks(replace(draw, rows=slice(0, draw.whole)))[1]
        return int(block.max())

    def _landed(
        self, student: Predicts, x: Tensor, n: Tensor, end: Tensor, cond: Cond | None
    ) -> Tensor:
        """Where the student's step of a block lands."""
        t, to = on_grid(self.times, n, end)
        pred = student(x, t, with_weights(cond, self._weights(n, end)))
        if self.clip is not None and self.clip.kind == "x0-and-eps":
            pred = self.clip(pred, x, self._level(n, x))
        return arriving_at(self.teacher.schedule, to, x).mix(pred.x0, pred.eps)

    # -- costs --------------------------------------------------------------------------------------

    @property
    def forwards(self) -> float:
        """The student's forward and backward, the teacher's calls, and the walk's on average."""
        walk = sum((count - 1) / 2 for count in self.counts) / len(self.counts)
        return self._without_walk + (walk if self.points == "noise" else 0)

    @property
    def _without_walk(self) -> int:
        return 3 + teacher_calls(self.teacher) * (2 if self.solver == "midpoint" else 1)

    def cost(self, updates: int, batch: int) -> int:
        """The cost of a stage in forwards, with every step of the walks.

        Args:
            updates: of the stage.
            batch: samples of an update.
        """
        samples, kinds = updates * batch, len(self.counts)
        cost = samples * self._without_walk
        if self.points == "data":
            return cost
        for kind, count in enumerate(self.counts):
            walks = len(range(kind, samples, kinds))  # the blocks of each count in turn
            whole, rest = divmod(walks, count)
            cost += whole * (count * (count - 1) // 2) + rest * (rest - 1) // 2
        return cost

    def from_noise(self) -> Self:
        """The objective on the student's own walks."""
        return replace(self, points="noise")

    # -- shorthands ---------------------------------------------------------------------------------

    @property
    def _fine(self) -> int:
        return len(self.times) - 1

    def _weights(self, n: Tensor, end: Tensor) -> Tensor:
        return block_weights(self.teacher.schedule, self.times, n, end)

    def _one_head(self, k: Tensor) -> Tensor:
        return self._weights(k, k + 1)

    def _level(self, n: Tensor, x: Tensor) -> Level:
        [t] = on_grid(self.times, n)
        return level_of(self.teacher.schedule, t, x)


def with_weights(cond: Cond | None, heads: Tensor) -> Cond:
    """The condition with the weights of the network's heads, [B, N] or [B, M, N]."""
    return replace(cond or Cond(), heads=heads)


def _halves(pred: Prediction) -> tuple[Prediction, Prediction]:
    """The first and the second of two predictions of each sample."""
    x0, eps = pred.x0.chunk(2), pred.eps.chunk(2)
    return Prediction(x0[0], eps[0]), Prediction(x0[1], eps[1])


def _column(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (x.ndim - 1))


def _rows(cond: Cond | None, rows: Tensor) -> Cond | None:
    return None if cond is None else cond[rows]


@lru_cache(maxsize=8)  # a copy to the device waits for it, so not one every update
def _middles(schedule: Hashable, times: Times, device: torch.device) -> Tensor:
    """The middle of each fine step, halfway in tau = sigma / (alpha + sigma); tau = 0 on arriving at t = 0.

    Not below the schedule's first level; and the step's start, where midpoint is Euler, if the schedule has
    no level there, as next to zero SNR in a table.
    """
    levels = cast(Schedule, schedule)
    grid = torch.tensor(times, dtype=torch.float64)
    tau = (_tau(levels.at(grid[:-1])) + _tau(arriving(levels, grid[1:]))) / 2
    middle = levels.time(2 * ((1 - tau).log() - tau.log()))
    exists = _tau(levels.at(middle)) > tau * (1 - 1e-6)
    middle = torch.where(exists, middle, grid[:-1])
    return middle.to(device, torch.float32 if device.type == "mps" else torch.float64)


def _tau(level: Level) -> Tensor:
    return level.sigma / (level.alpha + level.sigma)
