"""Parallel decoding distillation: one network with a head for each fine step of its teacher, for any steps.

Shaul et al., "Parallel Decoding Distillation", 2026 (arXiv 2607.26004).  Seen from x_n at t_n, head k says
the prediction of fine step k, decoded at level n with x_n.  The steps of a block n ... e - 1 are one DDIM
step whose x0 is the convex combination of its heads by `block_weights`, so that a block costs one call.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from halfstep.diffusion.block_weights import block_weights
from halfstep.diffusion.denoiser import Teacher
from halfstep.diffusion.loss_weighting import WEIGHTINGS
from halfstep.diffusion.prediction import Clip
from halfstep.diffusion.time_grids import Steps, Times
from halfstep.errors import ConfigError
from halfstep.methods.base import refuse_student
from halfstep.methods.diffusion.few_steps import FewStepsFromV
from halfstep.methods.diffusion.halving_checks import refuse_other_grid
from halfstep.methods.diffusion.one_student import OneStudent
from halfstep.methods.diffusion.parallel_decoding_loss import (
    ParallelDecodingLoss,
    Points,
    Solver,
)
from halfstep.methods.pipeline_like import PipelineLike
from halfstep.methods.stages import Stage
from halfstep.models.head_bank import check_heads
from halfstep.models.with_heads import with_heads


@dataclass(frozen=True, kw_only=True)
class ParallelHeads(OneStudent):
    """`ParallelDecoding` of a teacher that its grid can read."""

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
