"""Cached walks: walk the teacher once, keep every point, and learn where its trajectories land.

Luhman & Luhman, "Knowledge Distillation in Iterative Generative Models for Improved Sampling Speed", 2021,
teach one call the end of a trajectory; here a student of N steps is taught the end of each of its N segments
t -> e.  The target is the inverse of `two_step_target`: the prediction with which one DDIM step goes from
the kept x_t to the kept x_e, whatever solver made them::

    x0 = (sigma_t x_e - sigma_e x_t) / (sigma_t alpha_e - sigma_e alpha_t)
    eps = (alpha_e x_t - alpha_t x_e) / (sigma_t alpha_e - sigma_e alpha_t)

An update asks no teacher, and no data are needed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from halfstep.batch import Batch, Cond
from halfstep.config.validate import Count, CountOrNone
from halfstep.diffusion.denoiser import Teacher
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.loss_weighting import truncated_snr, Weighting, WEIGHTINGS
from halfstep.diffusion.prediction import Prediction
from halfstep.diffusion.samplers import calls, check_solver, check_walk, solver_grid, step_ends
from halfstep.diffusion.schedules import Schedule
from halfstep.diffusion.time_grids import Steps, Times
from halfstep.errors import ConfigError
from halfstep.methods.base import errors
from halfstep.methods.diffusion.few_steps import FewStepsFromV, Segments
from halfstep.methods.diffusion.halving_checks import refuse_other_grid
from halfstep.methods.diffusion.kept_walks import FromWalks, WalkOrder, WalkSource
from halfstep.methods.diffusion.landing_target import landing_target, refuse_no_length
from halfstep.methods.diffusion.matching import on_grid
from halfstep.methods.diffusion.walk_spans import even_spans, of_one_student, toward
from halfstep.methods.pipeline_like import PipelineLike
from halfstep.methods.stages import Stage, StagePlan, teacher_calls
from halfstep.models.with_end_time import with_end_time
from halfstep.rng import Draw


@dataclass(frozen=True, kw_only=True)
class WalkSegments(Segments):
    """`CachedWalks` of a teacher that its grid can read."""

    start: Steps = 16
    """Steps of the teacher's trajectories: a multiple of --first."""
    solver: str = "heun"
    """Solver of the teacher's trajectories: ddim, heun, dpmpp-2m, diffusers:NAME; dpmpp-3s or dpm-fast, whose
    network calls --start counts."""
    noises: Count | None = None
    """Noises at which the teacher's trajectories begin. By default 12 for each update of the first student,
    from 1,000 to 50,000."""
    new_noises: CountOrNone = 0
    """Noises that are added within every stage, a ninth after each tenth of it."""
    half: bool = False
    """Keep the trajectories in float16, half as large."""
    guidance_scale: float = 1.0
    """Scale of the teacher's guidance, which the students fold in: one call a step. 1 is off."""
    warm_start: bool = True
    """Start each student as the one of twice its steps; otherwise every student starts as the teacher."""
    one_student: bool = False
    """Train a single student for all numbers of steps, which is told where its step ends: a flow map. It has
    the updates of all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_solver(self.solver)
        ends = step_ends(self.solver, self.start)
        if inner := [k for k in self.points if k not in ends]:
            raise ConfigError(
                f"'{self.solver}' in {self.start} calls ends no whole step after {inner[0]} of them, "
                f"where a student of {self.first} steps is: write start={3 * self.first}"
            )

    @property
    def points(self) -> tuple[int, ...]:
        """The numbers of the grid's points that are kept: the ends of the first student's segments."""
        return tuple(range(0, self.start + 1, self.start // self.first))

    def walk_times(self, schedule: Schedule) -> Times:
        """The grid that the solver walks on.

        Args:
            schedule: the teacher's.

        Raises:
            ConfigError: times for a solver with a grid of its own.
        """
        own = solver_grid(self.solver, self.start, schedule, self.grid)
        if self.times and own[-1]:
            raise ConfigError(
                f"'{self.solver}' has a time grid of its own: leave times out, or write solver='dpmpp-2m'"
            )
        return self.times or own

    def fine_times(self, schedule: Schedule) -> Times:
        """The same grid to t = 0: the end of a walk is data, wherever the solver's own grid ends.

        Args:
            schedule: the teacher's.
        """
        return (*self.walk_times(schedule)[:-1], 0.0)

    @property
    def first_noises(self) -> int:
        """The number of walks that the first update chooses from."""
        updates = self.updates_for(0, self.first)
        return min(max(12 * updates, 1_000), 50_000) if self.noises is None else self.noises

    def plan(self, teacher: PipelineLike) -> list[StagePlan]:
        """One stage for each number of steps; the first pays for the walks."""
        plan = super().plan(teacher)
        price = calls(self.solver, self.start) * teacher_calls(self._walker(teacher))
        scale = self.guidance_scale
        if self.one_student:
            plan = [of_one_student(plan, plan[0].times)]
        return [
            replace(
                stage,
                guidance_range=None if scale == 1 else (scale, scale),
                clips=not self.target_clip,
                once=price * (self.new_noises + (0 if number else self.first_noises)),
            )
            for number, stage in enumerate(plan)
        ]

    def forwards_of(self, teacher: PipelineLike) -> int:
        """The student's forward and backward: an update asks no teacher."""
        return 3

    def sized(self, teacher: PipelineLike, updates: int) -> Self:
        """The method with its updates, and the number of noises that follows from them."""
        method = super().sized(teacher, updates)
        return replace(method, noises=method.first_noises)

    def with_updates(self, teacher: PipelineLike, updates: Sequence[int]) -> Self:
        """The method whose stages have these updates, with as many walks as before.

        Args:
            teacher: the pipeline to distil.
            updates: of each student.
        """
        if self.one_student:
            count = len(self.counts)
            updates = [(updates[0] + k) // count for k in range(count)][::-1]
        return replace(super().with_updates(teacher, updates), noises=self.first_noises)

    def check(self, teacher: PipelineLike) -> None:
        """`ConfigError` for a teacher that cannot walk so, or a grid on which a segment has no target."""
        super().check(teacher)
        self._check_guidance(teacher)
        schedule, clip = teacher.denoiser.schedule, self._clip(teacher)
        if teacher.times and self.solver != "ddim":
            raise ConfigError(
                f"this teacher is a student, made for steps of ddim, and has no walks by '{self.solver}': "
                "write solver='ddim', or give the teacher that it was distilled from"
            )
        if clip is not None and clip.kind == "x0" and self.solver != "ddim":
            raise ConfigError(
                f"this teacher clips x0 alone, which the steps of '{self.solver}' do not allow: write "
                "solver='ddim' or target_clip=0"
            )
        refuse_other_grid(teacher, self.fine_times(schedule))
        check_walk(schedule, self.walk_times(schedule), self.solver, self.points, clip)
        for stage in self.plan(teacher):
            refuse_no_length(schedule, stage.times)

    def _check_guidance(self, teacher: PipelineLike) -> None:
        if self.guidance_scale == 1:
            return
        if teacher.unconditional is None:
            raise ConfigError(
                "this teacher has no null class or empty text and cannot be guided: write guidance_scale=1"
            )
        if teacher.guidance_range is not None or teacher.denoiser.guided:
            raise ConfigError(
                "this teacher is guided already, and takes no guidance_scale: leave it out"
            )

    def stages(self, teacher: PipelineLike) -> Iterator[Stage]:
        """The students; the walks are made before the first update."""
        eta, plan = teacher.denoiser.freeze(), self.plan(teacher)
        source = self.source(teacher)
        begin, student = self.first_noises, eta.unguided
        for number, stage in enumerate(plan):
            student = (student if self.warm_start else eta).trainable_copy()
            if self.one_student:
                student.net = with_end_time(student.net)
            yield stage.stage(student, self.objective(source, stage, begin, first=not number))
            begin += self.new_noises

    def source(self, teacher: PipelineLike) -> WalkSource:
        """The walks of a teacher, which are not made yet.

        Args:
            teacher: the pipeline to distil.
        """
        return WalkSource(
            self._walker(teacher),
            self.solver,
            self.walk_times(teacher.denoiser.schedule),
            self.points,
            self._clip(teacher),
            self.guidance_scale,
            teacher.guidance_norm if self.guidance_scale != 1 else 0,
            self.half,
        )

    def _walker(self, teacher: PipelineLike) -> Teacher:
        """The teacher with its guidance."""
        denoiser, null = teacher.denoiser, teacher.unconditional
        if self.guidance_scale == 1 or null is None:
            return denoiser
        norm = teacher.guidance_norm
        return Guided(denoiser.unguided, self.guidance_scale, null, norm=norm)

    def objective(
        self, source: WalkSource, stage: StagePlan, begin: int, *, first: bool = True
    ) -> "Landing":
        """The objective of a stage's student.

        Args:
            source: the walks.
            stage: with the student's grid.
            begin: walks at its beginning.
            first: whether it is the first stage, which pays for them.
        """
        times, spans = stage.times, tuple[tuple[int, int], ...]()
        if self.one_student:
            times, spans = stage.fine_times, even_spans(self.first, self.stop)
        return Landing(
            source, times, WEIGHTINGS[self.weighting],
            WalkOrder(begin, self.new_noises, stage.updates),
            self.new_noises + (begin if first else 0), spans,
        )  # fmt: skip

    def summary(self) -> str:
        """8, 4, 2 and 1 steps along 16 of the teacher by heun."""
        return f"{super().summary()} by {self.solver}"


@dataclass(frozen=True, kw_only=True)
class CachedWalks(FewStepsFromV, WalkSegments):
    """One call lands where the teacher's trajectory lands (trajectory regression, Luhman & Luhman 2021).

    Trajectories are sampled and kept once, and serve every number of steps. A teacher that predicts eps
    becomes a v teacher first.

    Raises:
        ConfigError: `start` is no multiple of `first`, or `first` not `stop` times a power of two; a solver
            that draws noise; numbers of updates or times that do not fit; a weight that vanishes where
            students start.
    """

    walks: ClassVar[bool] = True
    keeps_walks: ClassVar[bool] = True


@dataclass(frozen=True)
class Landing(FromWalks):
    """Match the student's one DDIM step from a kept x_t to the kept x_e at the end of its segment."""

    source: WalkSource
    times: Times
    """The student's grid."""
    weighting: Weighting = truncated_snr
    order: WalkOrder = field(default_factory=WalkOrder)
    """The walks and segments of each update."""
    made: int = 0
    """Walks that are made for this stage, and paid for."""
    spans: tuple[tuple[int, int], ...] = ()
    """Start and end of each segment on the grid, of a student that is told its end; by default its steps."""

    def __call__(self, student: Any, batch: Batch, draw: Draw) -> Tensor:
        x_t, x_e, k, cond = self._kept(batch.x0, draw) or self._rehearsed(batch, draw)
        t, e = on_grid(self.times, *self._ends(k))
        target = landing_target(self.source.teacher.schedule, x_t, x_e, t, e)
        guess: Prediction = student(x_t, t, toward(e, cond) if self.spans else cond)
        return self.weighting(*errors(guess, target))

    def _kept(self, like: Tensor, draw: Draw) -> tuple[Tensor, Tensor, Tensor, Cond | None] | None:
        """x_t, x_e, the number of the segment and the condition of kept walks; None outside of training."""
        if draw.place is None:
            return None
        i, k = self.order.pairs(draw, self._segments)
        walks = self.source.up_to(self.order.walks_at(draw.place[2]))
        ends = walks.places(self.times)
        x_t, x_e = (walks.at(i, ends[j]).to(like) for j in self._ends(k))
        cond = walks.cond(i)
        return x_t, x_e, k.to(like.device), None if cond is None else cond.to(like.device)

    def _rehearsed(self, batch: Batch, draw: Draw) -> tuple[Tensor, Tensor, Tensor, Cond | None]:
        """Noise in place of walks, for checks and timing outside of training."""
        k = torch.arange(len(batch.x0), device=batch.x0.device) % self._segments
        return draw.normal(batch.x0), draw.normal(batch.x0), k, batch.cond

    @property
    def _segments(self) -> int:
        return len(self.spans) or len(self.times) - 1

    def _ends(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end of these segments."""
        if not self.spans:
            return k, k + 1
        spans = torch.tensor(self.spans, device=k.device)[k]
        return spans[:, 0], spans[:, 1]

    def cost(self, updates: int, batch: int) -> int:
        """The updates, and the walks that are made for them.

        Args:
            updates: of the stage.
            batch: samples of an update.
        """
        return super().cost(updates, batch) + self.made * self.source.forwards
