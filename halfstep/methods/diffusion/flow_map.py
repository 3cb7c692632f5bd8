"""A bisection flow map: one network that is told where its step ends, and serves any number of steps.

Shortcut models (Frans et al., "One Step Diffusion via Shortcut Models", 2024) with a teacher; flow maps
(Boffi et al., "Flow map matching", 2024).  The two-step target with the student itself first, t -> m, and
second, m -> e, where a step spans 2^k of the teacher's and m is its middle.  A step of one is the teacher's.
Names follow `two_step_target`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from halfstep.diffusion.denoiser import Denoiser, Teacher
from halfstep.diffusion.loss_weighting import WEIGHTINGS
from halfstep.diffusion.prediction import Clip
from halfstep.diffusion.time_grids import Steps, Times
from halfstep.errors import ConfigError
from halfstep.methods.diffusion.few_steps import FewStepsFromV
from halfstep.methods.diffusion.flow_map_loss import FlowMapLoss
from halfstep.methods.diffusion.halving_checks import refuse_other_grid, refuse_solver
from halfstep.methods.diffusion.one_student import OneStudent
from halfstep.methods.diffusion.two_step_target import Solver
from halfstep.methods.pipeline_like import PipelineLike
from halfstep.methods.stages import Stage
from halfstep.models.end_time_embedding import check_end_features
from halfstep.models.with_end_time import with_end_time


@dataclass(frozen=True, kw_only=True)
class Spans(OneStudent):
    """`FlowMap` of a teacher that its grid can read."""

    start: Steps = 64
    """Steps the teacher is sampled with: `first` times a power of two."""
    first: Steps = 8
    """Most steps at which the student is evaluated: `stop` times a power of two. It takes every number from
    `stop` to `start`."""
    stop: Steps = 1
    """Fewest steps of the student."""
    solver: Solver = "ddim"
    """Solver of the teacher's steps: ddim, or heun, which is more exact and takes two calls a step."""
    t_end_embed_dim: int = 256
    """Number of sines and cosines of the time where a step ends: even."""
    sampler: ClassVar[str] = "flow-map"
    keeps_network: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_end_features(self.t_end_embed_dim)

    def _check_counts(self) -> None:
        super()._check_counts()
        if (ratio := self.start // self.first) & (ratio - 1):
            raise ConfigError(
                f"start={self.start} steps cannot be bisected to steps of one from first={self.first}: write "
                f"first times a power of two, for example start={self.first * 2 ** (ratio.bit_length())}"
            )
        if self.start == self.stop:
            raise ConfigError(
                f"start={self.start} and stop={self.stop} leave no step to bisect: write a larger start, for "
                f"example start={2 * self.start}"
            )

    def check(self, teacher: PipelineLike) -> None:
        """`ConfigError` for a teacher of another grid, or a grid on which a step has no target."""
        refuse_solver(teacher, self.solver, leaves_eps=self._leaves_eps(teacher))
        super().check(teacher)
        fine = self.fine_times(teacher.denoiser.schedule)
        refuse_other_grid(teacher, fine)
        self.objective(teacher.denoiser, fine).look_ahead()

    def stages(self, teacher: PipelineLike) -> Iterator[Stage]:
        eta, clip = teacher.denoiser, self._clip(teacher)
        [plan] = self.plan(teacher)
        student = self.initial_student(eta)
        yield plan.stage(student, self.objective(eta.freeze(), plan.teacher_times, clip))

    def initial_student(self, teacher: Teacher) -> Denoiser:
        """The untrained student: the teacher to the bit, wherever it is told that its step ends.

        Args:
            teacher: the denoiser to distil.
        """
        student = teacher.trainable_copy()
        student.net = with_end_time(student.net, width=self.t_end_embed_dim)
        return student

    def objective(self, teacher: Teacher, fine: Times, clip: Clip | None = None) -> FlowMapLoss:
        """The objective of the student of a teacher on this fine grid, clipped so.

        Args:
            teacher: the frozen denoiser.
            fine: its grid.
            clip: of the targets; None does not clip.
        """
        longest = (self.start // self.stop).bit_length() - 1
        weighting = WEIGHTINGS[self.weighting]
        return FlowMapLoss(teacher, fine, longest, weighting, clip, self.solver)

    def summary(self) -> str:
        """8, 4, 2 and 1 steps of one flow map along 64 of the teacher."""
        counts, along, rest = super().summary().partition(" along ")
        return f"{counts} of one flow map{along}{rest}"


@dataclass(frozen=True, kw_only=True)
class FlowMap(FewStepsFromV, Spans):
    """One student that is told where its step ends, for any number of steps (shortcut, Frans et al. 2024).

    A teacher that predicts eps becomes a v teacher first.

    Raises:
        ConfigError: `start` is not `first` times a power of two, or `first` not `stop` times one; more than
            one number of updates; times that do not fit; a weight that vanishes where students start.
    """

    walks: ClassVar[bool] = True
