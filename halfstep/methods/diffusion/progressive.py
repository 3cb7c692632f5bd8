"""Progressive distillation: halve the number of sampling steps, again and again.

Salimans & Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", ICLR 2022,
Algorithm 2.  Names follow the paper, except z -> x_t and t', t'' -> t_mid, t_end.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Teacher
from halfstep.diffusion.loss_weighting import truncated_snr, Weighting, WEIGHTINGS
from halfstep.diffusion.prediction import Clip, Prediction
from halfstep.diffusion.time_grids import Steps, Times
from halfstep.errors import ConfigError
from halfstep.methods.diffusion.few_steps import FewSteps, FewStepsFromV, Merging
from halfstep.methods.diffusion.halving_checks import refuse_other_grid, refuse_solver
from halfstep.methods.diffusion.matching import on_grid, Places
from halfstep.methods.diffusion.two_step_target import CALLS, Solver, steps_target
from halfstep.methods.pipeline_like import PipelineLike
from halfstep.methods.stages import Stage, StagePlan, student_name, teacher_calls
from halfstep.rng import Draw


@dataclass(frozen=True, kw_only=True)
class Halving(FewSteps):
    """Halve the number of sampling steps, again and again, of a teacher that its grid can read."""

    @property
    def first_solver(self) -> Solver:
        """Solver of the teacher's steps in the first student's targets."""
        return "ddim"

    def plan(self, teacher: PipelineLike) -> list[StagePlan]:
        """One stage for each student: N -> N / 2 steps on every other time of the grid."""
        times, stages = self.fine_times(teacher.denoiser.schedule), list[StagePlan]()
        calls = teacher_calls(teacher.denoiser) * CALLS[self.first_solver]
        for student, steps in enumerate(self.counts):
            merged, teachers = (len(times) - 1) // steps, times
            times = times[::merged]  #                                         N <- N / 2
            stages.append(
                StagePlan(
                    student_name(steps),
                    self.updates_for(student, steps),
                    times,
                    teachers,
                    sampler=self.sampler,
                    direction=self.direction,
                    grid=self.grid,
                    clips=not self._leaves_eps(teacher),
                    forwards=3 + merged * calls,
                )
            )
            calls = 1  # of a student, which DDIM samples
        return stages

    def check(self, teacher: PipelineLike) -> None:
        """`ConfigError` for a teacher that is sampled otherwise, or a grid that cannot be halved."""
        super().check(teacher)
        plan, denoiser = self.plan(teacher), teacher.denoiser
        refuse_other_grid(teacher, plan[0].teacher_times)
        for stage in plan:
            self.objective(denoiser, stage).look_ahead()

    def stages(self, teacher: PipelineLike) -> Iterator[Stage]:
        plan, eta, clip = self.plan(teacher), teacher.denoiser, self._clip(teacher)
        del teacher
        for stage in plan:
            student = eta.trainable_copy()  #                                  theta <- eta
            halve = self.objective(eta.freeze(), stage, clip)
            yield stage.stage(student, halve)
            eta = student  #                                                   eta <- theta
            clip = clip if stage.clips else None

    def summary(self) -> str:
        """8 -> 4 -> 2 steps."""
        return f"{' -> '.join(map(str, [self.start, *self.counts]))} steps"

    def objective(self, teacher: Teacher, stage: StagePlan, clip: Clip | None = None) -> "Halve":
        """The objective of a stage's student.

        Args:
            teacher: the frozen denoiser.
            stage: with the grids of both.
            clip: of the targets; None does not clip.
        """
        merged = (len(stage.teacher_times) - 1) // len(stage.times[1:])
        solver = self.first_solver if stage.steps == self.most else "ddim"
        weighting = WEIGHTINGS[self.weighting]
        return Halve(teacher, stage.teacher_times, weighting, clip, merged, solver)


@dataclass(frozen=True, kw_only=True)
class Progressive(FewStepsFromV, Halving):
    """Halve the number of sampling steps, again and again (Salimans & Ho 2022).

    A teacher that predicts eps becomes a v teacher first.

    Raises:
        ConfigError: `start` is not `stop` times a power of two, the numbers of updates or times do not
            match the halvings, or a weight vanishes where students start.
    """

    first: Steps | None = None
    """Steps of the first student: each merges start / first of its teacher's steps. By default half of
    `start`."""
    solver: Solver = "ddim"
    """Solver of the teacher's steps in the first student's targets: ddim (the paper), or heun, which is more
    exact and takes two calls a step."""
    walks: ClassVar[bool] = True

    def _check_counts(self) -> None:
        super()._check_counts()
        if self.first is None:
            return
        halvings = [self.start // 2**k for k in range(1, (self.start // self.stop).bit_length())]
        if self.first not in halvings:
            raise ConfigError(
                f"the first student of {self.start} steps halved to {self.stop} has "
                f"{' or '.join(map(str, halvings))} steps, got first={self.first}: write one of these"
            )

    @property
    def most(self) -> int:
        """Steps of the first student."""
        return super().most if self.first is None else self.first

    @property
    def first_solver(self) -> Solver:
        """Solver of the teacher's steps in the first student's targets."""
        return self.solver

    def check(self, teacher: PipelineLike) -> None:
        """Refuse a teacher that is sampled otherwise, or a grid that cannot be halved.

        Args:
            teacher: the pipeline to distil.

        Raises:
            ConfigError: a teacher that is a student of other steps, or for another sampler or clipping.
        """
        refuse_solver(teacher, self.solver, leaves_eps=self._leaves_eps(teacher))
        super().check(teacher)


@dataclass(frozen=True)
class Halve(Merging):
    """Match the student's one DDIM step to the teacher's two, or to as many as it merges."""

    teacher: Teacher
    times: Times
    """The teacher's grid."""
    weighting: Weighting = truncated_snr
    clip: Clip | None = None
    merged: int = 2
    """The teacher's steps in one of the student's, whose grid is every so many times of `times`."""
    solver: Solver = "ddim"
    """Solver of the teacher's steps."""

    @property
    def forwards(self) -> int:
        """Those of the teacher's steps, and the student's forward and backward."""
        return self.merged * teacher_calls(self.teacher) * CALLS[self.solver] + 3

    def places(self, draw: Draw) -> Places:
        """The start of the student's step, t, and the ends of the teacher's, of two t_mid and t_end."""
        i = self.merged * draw.integers(self.walk_length)  #              t = i / N, i ~ {1, ..., N}
        return on_grid(self.times, *self.steps_from(i))

    def target(self, x_t: Tensor, places: Places, cond: Cond | None) -> Prediction:
        ends = places[: self.merged + 1]
        return steps_target(self.teacher, x_t, ends, cond, clip=self.clip, solver=self.solver)

    @property
    def walk_length(self) -> int:
        return len(self.times) // self.merged

    def walk_places(self, k: Tensor, jitter: Tensor) -> Places:
        """Every time of the student's grid: the next place begins where the teacher's steps land."""
        return on_grid(self.times, *self.steps_from(self.merged * k))

    def steps_from(self, i: Tensor) -> tuple[Tensor, ...]:
        """The grid indices of the start of the student's step and the ends of the teacher's.

        Args:
            i: int64 [B], the start's.
        """
        return tuple(i + k for k in range(self.merged + 1))

    def all_places(self) -> Places:
        """Every start of a student's step, with the ends of the teacher's."""
        return on_grid(self.times, *self.steps_from(self.merged * torch.arange(self.walk_length)))
