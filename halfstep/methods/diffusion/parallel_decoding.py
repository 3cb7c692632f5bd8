"""Parallel decoding distillation: one network with a head for each fine step of its teacher, for any steps.

Shaul et al., "Parallel Decoding Distillation", 2026 (arXiv 2607.26004).  Seen from x_n at t_n, head k says
the prediction of fine step k, decoded at level n with x_n.  The steps of a block n ... e - 1 are one DDIM
step whose x0 is the convex combination of its heads by `block_weights`, so that a block costs one call.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from halfstep.config.validate import Updates
from halfstep.diffusion.block_weights import block_weights
from halfstep.diffusion.denoiser import Teacher
from halfstep.diffusion.loss_weighting import WEIGHTINGS
from halfstep.diffusion.prediction import Clip
from halfstep.diffusion.time_grids import Steps, Times
from halfstep.errors import ConfigError
from halfstep.methods.base import PipelineLike, refuse_student, Stage, StagePlan
from halfstep.methods.default_updates import halving_updates, PAPER
from halfstep.methods.diffusion.few_steps import FewStepsFromV, Segments
from halfstep.methods.diffusion.halving_checks import refuse_other_grid
from halfstep.methods.diffusion.parallel_decoding_loss import (
    ParallelDecodingLoss,
    Points,
    Solver,
)
from halfstep.models.head_bank import check_heads
from halfstep.models.with_heads import with_heads


@dataclass(frozen=True, kw_only=True)
class ParallelHeads(Segments):
    """`ParallelDecoding` of a teacher that its grid can read."""

    updates: tuple[Updates, ...] | None = None
    """Optimiser updates of the one student. By the data: three eighths of a teacher's default, as halvings
    to 8, 4, 2 and 1 steps take."""
    start: Steps = 64
    """Fine steps, each with a head: a multiple of `first`."""
    first: Steps = 8
    """Most steps of the student: `stop` times a power of two. It takes every number from `stop` on."""
    stop: Steps = 1
    """Fewest steps of the student."""
    solver: Solver = "euler"
    """How the teacher makes a fine step. euler: one call, DDIM. midpoint: two calls, and much nearer to the
    teacher's own curve."""
    points: Points = "data"
    """Where updates begin. data: at noised data. noise: on the student's own trajectory from noise, which
    costs its calls (1.4 more of 8, 4, 2 and 1 steps)."""
    sampler: ClassVar[str] = "parallel-decoding"
    keeps_network: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.start)
        if self.updates is not None and len(self.updates) > 1:
            raise ConfigError(
                f"there is one student for all numbers of steps, and updates has {len(self.updates)} "
                "numbers: give one"
            )

    def plan(self, teacher: PipelineLike) -> list[StagePlan]:
        """One stage: the student of every number of blocks."""
        fine = self.fine_times(teacher.denoiser.schedule)
        objective = self.objective(teacher.denoiser, fine)
        return [
            StagePlan(
                self.sampler,
                self._updates,
                teacher_times=fine,
                sampler=self.sampler,
                grid=self.grid,
                clips=not self._leaves_eps(teacher),
                forwards=objective.forwards,
                grids=tuple(fine[:: self.start // count] for count in self.counts),
            )
        ]

    @property
    def _updates(self) -> int:
        """The student's updates; by default those of halvings to its numbers of steps."""
        return self._of(halving_updates(PAPER)) if self.updates is None else self.updates[0]

    def _of(self, halving: int) -> int:
        """As many updates as halvings to the same numbers of steps have: twice as many for 2 and for 1."""
        return sum(halving * (2 if count <= 2 else 1) for count in self.counts)

    def with_updates(self, teacher: PipelineLike, updates: Sequence[int]) -> Self:
        """The method with the updates of its one student."""
        return replace(self, updates=tuple(updates))

    def sized(self, teacher: PipelineLike, updates: int) -> Self:
        """The method with its updates, unless some are given."""
        if self.updates is not None:
            return self
        return replace(self, updates=(self._of(halving_updates(updates)),))

    def check(self, teacher: PipelineLike) -> None:
        """`ConfigError` for a teacher of another grid, or a grid on which a fine step has no length."""
        super().check(teacher)
        schedule = teacher.denoiser.schedule
        fine = self.fine_times(schedule)
        if self.solver == "midpoint":  # at times between those of a student's grid
            refuse_student(teacher)
        refuse_other_grid(teacher, fine)
        every = torch.arange(self.start)
        if not bool((block_weights(schedule, fine, every, every + 1).sum(1) > 0).all()):
            raise ConfigError(
                "the schedule's levels at both ends of a fine step are equal, so that it changes nothing: "
                "give times where they differ"
            )

    def check_without_data(self, walk: str = "teacher") -> None:
        """Refuse walks of the teacher: without data the student walks, whatever `points` says.

        Args:
            walk: the network that walks from noise, teacher or student.

        Raises:
            ConfigError: the teacher would walk.
        """
        if walk != "student":
            raise ConfigError(
                "without data the updates of parallel decoding begin on the student's own trajectory: write "
                "data='none:student' (command line: --data none:student)"
            )

    def stages(self, teacher: PipelineLike) -> Iterator[Stage]:
        eta, clip = teacher.denoiser, self._clip(teacher)
        [plan] = self.plan(teacher)
        student = eta.trainable_copy()
        student.net = with_heads(student.net, self.start)
        yield plan.stage(student, self.objective(eta.freeze(), plan.teacher_times, clip))

    def objective(
        self, teacher: Teacher, fine: Times, clip: Clip | None = None
    ) -> ParallelDecodingLoss:
        """The objective of the student of a teacher on this fine grid, clipped so."""
        return ParallelDecodingLoss(
            teacher,
            fine,
            tuple(self.counts),
            WEIGHTINGS[self.weighting],
            self.solver,
            self.points,
            clip,
        )

    def summary(self) -> str:
        """8, 4, 2 and 1 steps in blocks of 64 heads."""
        *many, last = map(str, self.counts)
        counts = f"{', '.join(many)} and {last}" if many else last
        return f"{counts} step{'s' * (counts != '1')} in blocks of {self.start} heads"


@dataclass(frozen=True, kw_only=True)
class ParallelDecoding(FewStepsFromV, ParallelHeads):
    """One student of many steps or few, with a head for each fine step (PDD, Shaul et al. 2026).

    A teacher that predicts eps becomes a v teacher first.

    Raises:
        ConfigError: `start` is no multiple of `first`, or `first` not `stop` times a power of two; more than
            one number of updates; times that do not fit; a weight that vanishes where students start.
    """
