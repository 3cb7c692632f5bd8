"""Multistep consistency distillation: from anywhere in a segment, one call jumps to the segment's end.

Heek, Hoogeboom & Salimans, "Multistep Consistency Models", 2024; one segment is consistency distillation,
Song et al., "Consistency Models", ICML 2023.  The two-step target with the teacher first, t -> m on a fine
grid, and the student itself second, m -> e, the end of the segment.  Names follow `two_step_target`.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import nn, Tensor

from halfstep.batch import Cond
from halfstep.config.validate import Count, NotNegative
from halfstep.diffusion.denoiser import level_of, Teacher
from halfstep.diffusion.loss_weighting import truncated_snr, Weighting, WEIGHTINGS
from halfstep.diffusion.prediction import Clip, Prediction
from halfstep.diffusion.schedules import Schedule
from halfstep.diffusion.time_grids import Times
from halfstep.errors import ConfigError
from halfstep.methods.diffusion.few_steps import FewStepsFromV, Merging, Segments
from halfstep.methods.diffusion.halving_checks import refuse_other_grid, refuse_solver
from halfstep.methods.diffusion.matching import arriving_at, on_grid, Places
from halfstep.methods.diffusion.ramp import Ramp
from halfstep.methods.diffusion.two_step_target import (
    CALLS,
    one_step_target,
    Predicts,
    Solver,
    two_step_target,
)
from halfstep.methods.pipeline_like import PipelineLike
from halfstep.methods.stages import Stage, StagePlan, teacher_calls
from halfstep.models.eval_mode import evaluating
from halfstep.rng import Draw


@dataclass(frozen=True, kw_only=True)
class ConsistencySegments(Segments):
    """`MultistepConsistency` of a teacher that its grid can read."""

    warm_start: bool = True
    """Start each student as the one of twice its steps; otherwise every student starts as the teacher."""
    solver: Solver = "ddim"
    """Solver of the teacher's fine steps: ddim, or heun, which is more exact and takes two calls a step."""
    ramp_from: Count | None = None
    """Fine steps at the beginning of each stage: they grow to `start`, evenly on a log scale. By default
    there are `start` from the beginning. Needs data."""
    addim: NotNegative = 0.0
    """Adjust the noise of the teacher's step (aDDIM) for a variance of the data of addim / (2 + SNR). The
    paper takes 0.1; 0 does not adjust."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ramp_from is not None:
            self._check_ramp(self.ramp_from)
        if self.addim and self.target_clip:
            raise ConfigError(
                "addim changes the noise of a step, and target_clip computes it anew from the clipped image: "
                "leave one of them out"
            )
        if self.addim and self.solver != "ddim":
            raise ConfigError("addim adjusts DDIM's steps: leave addim or solver out")

    def _check_ramp(self, ramp_from: int) -> None:
        if not self.first <= ramp_from <= self.start or ramp_from % self.first:
            raise ConfigError(
                f"the fine steps grow from ramp_from={ramp_from} to start={self.start}: write a multiple of "
                f"first={self.first} from {self.first} to {self.start}"
            )

    def check(self, teacher: PipelineLike) -> None:
        """`ConfigError` for a teacher of another grid, or a grid on which a step has no target."""
        refuse_solver(teacher, self.solver, leaves_eps=self._leaves_eps(teacher))
        super().check(teacher)
        plan, denoiser = self.plan(teacher), teacher.denoiser
        refuse_other_grid(teacher, plan[0].teacher_times)
        if teacher.times:
            self._refuse_for_students()
        for stage in plan:
            self.objective(denoiser, stage).look_ahead()

    def _refuse_for_students(self) -> None:
        if self.ramp_from is not None:
            raise ConfigError(
                "ramp_from begins with longer steps of the teacher, and this one is a student, which was "
                "trained on its own grid alone: leave ramp_from out"
            )
        if self.addim:
            raise ConfigError(
                "addim adds the variance that the mean of the data lacks, and this teacher is a student, "
                "whose images are no means: leave addim out"
            )

    def check_without_data(self, walk: str = "teacher") -> None:
        """Refuse a ramp, whose fine steps walks would not follow.

        Args:
            walk: the network that walks from noise, teacher or student.

        Raises:
            ConfigError: fine steps that grow.
        """
        if self.ramp_from is not None:
            raise ConfigError(
                "ramp_from changes the fine steps while walks of all of them are under way: name data in "
                "place of none, or leave ramp_from out"
            )
        super().check_without_data(walk)

    def forwards_of(self, teacher: PipelineLike) -> int:
        """The teacher's step, the student's jump, and its forward and backward."""
        return 4 + teacher_calls(teacher.denoiser) * CALLS[self.solver]

    def stages(self, teacher: PipelineLike) -> Iterator[Stage]:
        eta, clip = teacher.denoiser.freeze(), self._clip(teacher)
        start = eta
        for stage in self.plan(teacher):
            student = start.trainable_copy()
            yield stage.stage(student, self.objective(eta, stage, clip))
            start = student if self.warm_start else eta

    def objective(
        self, teacher: Teacher, stage: StagePlan, clip: Clip | None = None
    ) -> "ConsistencyLoss":
        """The objective of a stage's student.

        Args:
            teacher: the frozen denoiser.
            stage: with the grids of both.
            clip: of the targets; None does not clip.
        """
        ramp = None if self.ramp_from is None else Ramp(self.ramp_from)
        return ConsistencyLoss(
            teacher, stage.teacher_times, len(stage.times) - 1, WEIGHTINGS[self.weighting], clip,
            self.addim, ramp, self.solver,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MultistepConsistency(FewStepsFromV, ConsistencySegments):
    """From anywhere in a segment, one call jumps to its end (multistep consistency, Heek et al. 2024).

    `first` and `stop` 1 is consistency distillation (Song et al. 2023). A teacher that predicts eps becomes
    a v teacher first.

    Raises:
        ConfigError: `start` is no multiple of `first`, or `first` not `stop` times a power of two; numbers of
            updates, times or fine steps that do not fit; a weight that vanishes where students start.
    """

    walks: ClassVar[bool] = True


@dataclass(frozen=True)
class ConsistencyLoss(Merging):
    """Match the student's jump to the segment's end to the teacher's fine step and the jump from there."""

    teacher: Teacher
    times: Times
    """The fine grid."""
    segments: int
    """Their number, which divides the fine steps."""
    weighting: Weighting = truncated_snr
    clip: Clip | None = None
    addim: float = 0.0
    ramp: Ramp | None = None
    solver: Solver = "ddim"
    student: Predicts | None = None
    """Jumps from the end of the teacher's step, without gradients: the network in training."""

    @property
    def forwards(self) -> int:
        """The teacher's step, the student's jump, and its forward and backward."""
        return teacher_calls(self.teacher) * CALLS[self.solver] + 4

    @property
    def length(self) -> int:
        """Fine steps of a segment."""
        return (len(self.times) - 1) // self.segments

    def at(self, done: float) -> Self:
        """The objective with the fine grid of the ramp.

        Args:
            done: in [0, 1].
        """
        if self.ramp is None:
            return self
        levels = getattr(self.teacher.schedule, "levels", None)
        times = self.ramp.times(self.segments, self.times, done, levels)
        return replace(self, times=times)

    def places(self, draw: Draw) -> Places:
        """t on the fine grid, m the next time, e the end of its segment."""
        return self._places(draw.integers(len(self.times) - 1))

    def _places(self, i: Tensor) -> Places:
        end = (i // self.length + 1) * self.length
        return on_grid(self.times, i, i + 1, end)

    def all_places(self) -> Places:
        """Those of every fine time."""
        return self._places(torch.arange(len(self.times) - 1))

    def with_student(self, student: Any) -> Self:
        """The objective whose second prediction is this student's."""
        return replace(self, student=student)

    def target(self, x_t: Tensor, places: Places, cond: Cond | None) -> Prediction:
        t, m, e = places
        if not self.addim:
            return two_step_target(
                self.teacher, x_t, t, m, e, cond, second=self._jump, clip=self.clip,
                solver=self.solver,
            )  # fmt: skip
        return self._adjusted(x_t, t, m, e, cond)

    def _jump(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        """The student's prediction, as its sampler takes it: clipped, and without dropout."""
        assert self.student is not None  # `with_student` is the objective's own way to targets
        network = self.student if isinstance(self.student, nn.Module) else None
        with evaluating(network) if network else nullcontext():
            return self.sampled(x_t, (t,), self.student(x_t, t, cond))

    @torch.no_grad()
    def _adjusted(
        self, x_t: Tensor, t: Tensor, m: Tensor, e: Tensor, cond: Cond | None
    ) -> Prediction:
        """The target whose x_m has c times the noise of the teacher's step (aDDIM).

        x~ = two-step + (c - 1) eps_1 / (rho_e - rho_t), nothing added at e = 0, with c^2 = 1 +
        (rho_m - rho_t)^2 Var[x0 | x_t], the variance taken as addim / (2 + SNR).
        """
        schedule = self.teacher.schedule
        start, mid = level_of(schedule, t, x_t), level_of(schedule, m, x_t)
        end, first = arriving_at(schedule, e, x_t), self.teacher(x_t, t, cond)
        snr = (start.alpha / start.sigma) ** 2
        # (rho_m - rho_t) sigma_m = alpha_m - alpha_t sigma_m / sigma_t; at m = 0 no x_m is read.
        step = (mid.alpha - start.alpha * mid.sigma / start.sigma) / mid.sigma
        c = (1 + step**2 * self.addim / (2 + snr)).sqrt().where(mid.sigma > 0, 1)
        given = _Given(schedule, Prediction(first.x0, c * first.eps))
        two = two_step_target(given, x_t, t, m, e, cond, second=self._jump)
        length = end.alpha * start.sigma - start.alpha * end.sigma
        added = (c - 1) * end.sigma * start.sigma / length * first.eps
        return Prediction.from_x0(two.x0 + added, x_t, start)

    # -- walks: of the teacher, a fine step at a time ----------------------------------------------

    @property
    def walk_length(self) -> int:
        return len(self.times) - 1

    def walk_places(self, k: Tensor, jitter: Tensor) -> Places:
        return self._places(k)

    @property
    def walk_forwards(self) -> int:
        """The teacher's step, which the target does not return."""
        return teacher_calls(self.teacher) * CALLS[self.solver]

    def step_prediction(
        self, x_t: Tensor, places: Places, cond: Cond | None, target: Prediction | None
    ) -> Prediction:
        t, m, _ = places
        return one_step_target(self.teacher, x_t, t, m, cond, clip=self.clip, solver=self.solver)

    def landing(
        self, x_t: Tensor, places: Places, pred: Prediction, fresh: Callable[[], Tensor]
    ) -> Tensor:
        """The end of the fine step: a walk visits every fine time."""
        return super().landing(x_t, places[:2], pred, fresh)


@dataclass(frozen=True)
class _Given:
    """A denoiser with one known prediction."""

    schedule: Schedule
    pred: Prediction

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return self.pred
