"""The parts of a method: a plan, its stages and their objectives, without optimiser or device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import nn, Tensor

from halfstep.batch import Batch, Cond, Null
from halfstep.config import JsonObject
from halfstep.data import Data
from halfstep.diffusion.denoiser import Teacher
from halfstep.diffusion.prediction import Clipping, Prediction
from halfstep.diffusion.schedules import Schedule
from halfstep.diffusion.time_grids import Direction, on_schedule, Times
from halfstep.errors import ConfigError
from halfstep.methods.budget import largest, StageWork, updates_within
from halfstep.progress import Progress, SILENT
from halfstep.rng import Draw, Uniform

EDGE = 2.0**-24
"""Continuous times keep this distance from 0 and 1, where some log-SNR is infinite."""
MOST = 10**9
"""The most updates of a teacher by which a budget is shared out."""
Range = tuple[float, float]
"""The lowest and the highest guidance scale."""


class PipelineLike(Protocol):
    """The part of a `Pipeline` that methods read.

    denoiser       the network with its schedule and parameterisation, with or without guidance
    unconditional  the null label or the states of the empty text; None for a network without either
    times          the grids of a student; empty for a network trained at every time
    guidance_range the range of guidance scales that the network takes as an input
    guidance_norm  side of the patches on which guidance keeps the norm of the output; 0 for none
    clip           the sampler clips images to [-clip, clip] at every step, or None
    sampler        the student's sampler, ddim or stochastic
    direction      "denoise", or "invert" for a student that goes from data to noise
    clipping       "x0-and-eps" recomputes the eps of a clipped image; "x0" leaves it as predicted
    """

    @property
    def denoiser(self) -> Teacher: ...
    @property
    def unconditional(self) -> Null | None: ...
    @property
    def times(self) -> tuple[Times, ...]: ...
    @property
    def guidance_range(self) -> Range | None: ...
    @property
    def guidance_norm(self) -> int: ...
    @property
    def clip(self) -> float | None: ...
    @property
    def sampler(self) -> str: ...
    @property
    def direction(self) -> Direction: ...
    @property
    def clipping(self) -> Clipping: ...


@dataclass(frozen=True, eq=False)
class DenoiserOnly:
    """A denoiser as a method's teacher, without a pipeline around it."""

    denoiser: Teacher
    unconditional: Null | None = None
    times: tuple[Times, ...] = ()
    guidance_range: Range | None = None
    guidance_norm: int = 0
    clip: float | None = None
    sampler: str = "ddim"
    direction: Direction = "denoise"
    clipping: Clipping = "x0-and-eps"


class Objective:
    """A loss, one value per sample: called with (student, batch, draw), it returns float [B].

    `student` may be wrapped: call it, and read none of its attributes.
    """

    reads_walks: ClassVar[bool] = False
    """Whether it learns from a teacher's kept walks, and reads the shape of a batch alone."""

    @property
    def forwards(self) -> float:
        """The cost of one sample's update in forwards: a forward is 1, a forward and backward 3.

        On average, where samples cost differently.
        """
        return 3

    def __call__(self, student: Any, batch: Batch, draw: Draw) -> Tensor:
        """One loss per sample, shape [B]."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__(student, batch, draw)")

    def at(self, done: float) -> Self:
        """The objective when this share of its stage's updates is done, a function of `done` alone.

        Args:
            done: in [0, 1].
        """
        return self

    def from_noise(self) -> "Objective | None":
        """The objective on the student's own walks from noise, which reads no data.

        Without data, others are computed at states of walks (`halfstep.methods.diffusion.walks`): None.
        """
        return None

    def measure(self, student: Any, batch: Batch, draw: Draw) -> JsonObject:
        """Numbers for the log, by name.

        Args:
            student: the student.
            batch: x0, float [B, ...], with its conditions.
            draw: the randomness of the update.
        """
        return {}

    def cost(self, updates: int, batch: int) -> int:
        """The cost of a stage in forwards.

        Args:
            updates: of the stage.
            batch: samples of an update.
        """
        return round(updates * batch * self.forwards)

    def conditioned(self, cond: Cond | None, draw: Uniform) -> Cond | None:
        """The condition with what the objective draws for it, such as a guidance scale.

        Args:
            cond: the conditions, or None.
            draw: the randomness of the update.
        """
        return cond

    @property
    def inner(self) -> "Objective":
        """The objective inside this one, which computes the loss; by default itself."""
        return self

    @property
    def networks(self) -> list[nn.Module]:
        """The objective's networks, such as the teacher."""
        return [value for value in vars(self).values() if isinstance(value, nn.Module)]


@dataclass(frozen=True)
class Stage:
    """A student and its objective.

    Args:
        name: names the stage's folder.
        student: the network that is trained.
        objective: its loss.
        updates: optimiser updates.
    """

    name: str
    student: nn.Module
    objective: Objective
    updates: int
    times: Times = ()
    """The grid the student is to be sampled on; empty for a student of every time, or of `grids`."""
    guidance_range: Range | None = None
    """The range of guidance scales that the student takes as an input; None is as its teacher."""
    sampler: str = "ddim"
    """The sampler of the grid, such as ddim or stochastic."""
    direction: Direction = "denoise"
    """From noise to data, or "invert", from data to noise."""
    clips: bool = True
    """Whether the student's sampler clips as its teacher's does; False clips nothing."""
    grids: tuple[Times, ...] = ()
    """The grids of a student that serves several numbers of steps, the most first; each is judged."""
    fine_times: Times = ()
    """The grid of the fine steps that a student of `grids` takes several of at once."""


def student_name(steps: int) -> str:
    """The name of the stage with a student of `steps` steps: 0004-steps."""
    return f"{steps:04d}-steps"


@dataclass(frozen=True)
class StagePlan:
    """A stage as planned, without a network.

    Args:
        updates: optimiser updates.

    Raises:
        ConfigError: another name than `student_name(steps)` of a student with steps, or than that of its
            sampler for a student of several grids.
    """

    name: str
    """`student_name(steps)` for a student with steps, by which gates and commands find it; the sampler for a
    student of `grids`."""
    updates: int
    times: Times = ()
    """The grid the student is to be sampled on; empty for a student of every time, or of `grids`."""
    teacher_times: Times = ()
    """The grid the teacher is sampled on in this stage; empty where it is evaluated at every time."""
    guidance_range: Range | None = None
    """The range of guidance scales that the student takes as an input; None is as its teacher."""
    sampler: str = "ddim"
    """The sampler of both grids."""
    direction: Direction = "denoise"
    """From noise to data, or "invert", from data to noise."""
    grid: str = "auto"
    """The name of the grid of these times, which also gives the times of other numbers of steps."""
    clips: bool = True
    """Whether the student's sampler clips as its teacher's does; False clips nothing."""
    forwards: float = 3
    """`Objective.forwards` of the stage, by which times left are estimated and budgets shared out."""
    grids: tuple[Times, ...] = ()
    """The grids of a student that serves several numbers of steps, the most first; `teacher_times` is then
    the grid of its fine steps, with all of their times, unless `fine_times` is."""
    fine_times: Times = ()
    """The grid of the fine steps of a student of `grids`, where it is not its teacher's."""
    once: int = 0
    """Forwards that the stage costs whatever its updates, such as the walks that it keeps."""

    def __post_init__(self) -> None:
        if self.times and self.grids:
            raise ConfigError(
                f"the stage '{self.name}' has times and grids: write times for a student of one grid, or "
                "grids"
            )
        if self.grids and self.name != self.sampler:
            raise ConfigError(
                f"the stage of a student of several grids is named '{self.name}': write "
                f"'{self.sampler}', its sampler"
            )
        if self.times and self.name != student_name(len(self.times) - 1):
            raise ConfigError(
                f"the stage of a student of {self.steps} steps is named '{self.name}': write "
                f"'{student_name(len(self.times) - 1)}'"
            )

    @property
    def steps(self) -> int | None:
        """The student's fewest steps; None for a student of every time."""
        return min((len(times) - 1 for times in self.grids or (self.times,) if times), default=None)

    def cost(self, batch: int) -> int:
        """The cost of the stage in forwards.

        Args:
            batch: samples of an update.
        """
        return round(self.updates * self.forwards * batch) + self.once

    def stage(self, student: nn.Module, objective: Objective) -> Stage:
        """The stage with its student and objective.

        Args:
            student: the network that is trained.
            objective: its loss.
        """
        return Stage(
            self.name, student, objective, self.updates, self.times,
            self.guidance_range, self.sampler, self.direction, self.clips,
            self.grids, (self.fine_times or self.teacher_times) if self.grids else (),
        )  # fmt: skip


def teacher_calls(teacher: Teacher) -> int:
    """The calls of a network that one prediction of a teacher takes: two with guidance."""
    return 2 if teacher.guided else 1


def cost_after(plan: Sequence[StagePlan], name: str, batch: int) -> float:
    """The cost of the stages after the stage of this name, in forwards of a batch.

    Args:
        plan: the stages of a method.
        name: of one of them.
        batch: samples of an update.
    """
    names = [stage.name for stage in plan]
    return sum(stage.cost(batch) for stage in plan[names.index(name) + 1 :]) / batch


def teacher_times(plan: Sequence[StagePlan]) -> Times:
    """The grid of the first halving's teacher; empty without a halving."""
    return next((stage.teacher_times for stage in plan if stage.teacher_times), ())


class Method:
    """A distillation method: a dataclass of options with a plan and the stages that run it.

    Raises:
        ConfigError: options beyond their range, when it is made; a teacher that it cannot distil, in
            `check`.
    """

    gated: ClassVar[bool] = True
    """Whether the students sample in fewer steps, so that a quality gate may end the run."""
    keeps_network: ClassVar[bool] = True
    """Whether the students have the teacher's network, so that they can be LoRAs of it."""
    walks: ClassVar[bool] = False
    """Whether every objective is a `Matching`, or reads kept walks, so that walks may stand for data."""
    keeps_walks: ClassVar[bool] = False
    """Whether objectives read kept walks of the teacher, whose folder may be named."""

    def plan(self, teacher: PipelineLike) -> list[StagePlan]:
        """The stages in order, with their time grids.

        Args:
            teacher: the pipeline to distil.
        """
        raise NotImplementedError(f"{type(self).__name__} has no plan(teacher)")

    def stages(self, teacher: PipelineLike) -> Iterator[Stage]:
        """The stages for a teacher that passes `check`; code after a `yield` runs after its training.

        Args:
            teacher: the pipeline to distil, on its device.
        """
        raise NotImplementedError(f"{type(self).__name__} has no stages(teacher)")

    def check(self, teacher: PipelineLike) -> None:
        """Refuse a teacher that this method cannot distil.

        Args:
            teacher: the pipeline to distil.

        Raises:
            ConfigError: the teacher does not fit, with the reason.
        """
        for stage in self.plan(teacher):
            if teacher.guidance_range is not None and stage.guidance_range is not None:
                raise ConfigError(
                    "this teacher takes its guidance scale as an input already: give its original "
                    "teacher, or halve it with 'halfstep distill progressive'"
                )
            refuse_other_sampler(teacher, stage)

    def check_without_data(self, walk: str = "teacher") -> None:
        """Refuse a method that cannot be distilled without data.

        Args:
            walk: the network that walks from noise, teacher or student.

        Raises:
            ConfigError: the method compares with data or starts from them.
        """
        if not self.walks:
            raise ConfigError(
                f"{type(self).__name__} compares with data or starts from them, and --data none has none: "
                "name data, or use progressive, stochastic, guided or reparameterise"
            )

    @property
    def needs_data(self) -> bool:
        """Whether `resolve` decides an option from the data."""
        return False

    def resolve(
        self,
        teacher: PipelineLike,
        data: Data | None,
        *,
        previous: JsonObject | None = None,
        progress: Progress = SILENT,
    ) -> Self:
        """The method with all options decided.

        Args:
            teacher: the pipeline to distil.
            data: as the teacher's network reads it; None decides without it, for checks before it is
                read.
            previous: the options of the run that is continued.
            progress: advances while the data are looked at.
        """
        return self

    def sized(self, teacher: PipelineLike, updates: int) -> Self:
        """The method with the updates that it leaves open, as shares of its teacher's.

        Until then it plans with shares of 800,000, the updates of Salimans & Ho's teacher.

        Args:
            teacher: the pipeline to distil.
            updates: that a teacher of these data has by default: 200 passes over them.
        """
        return self

    def with_updates(self, teacher: PipelineLike, updates: Sequence[int]) -> Self:
        """The method whose stages have these numbers of updates.

        Args:
            teacher: the pipeline to distil.
            updates: of each stage of `plan`, in order.

        Raises:
            ConfigError: a method whose updates cannot be given by stage.
        """
        raise ConfigError(
            f"{type(self).__name__} cannot be given a budget: write its with_updates(teacher, updates), or "
            "leave it out"
        )

    def with_budget(
        self, teacher: PipelineLike, forwards: int, batch: int, *, name: str = ""
    ) -> Self:
        """The method with the updates whose cost is at most this budget, and within 1 % of it.

        The stages share it as they share the updates that the method plans without it; updates that it leaves
        open are first those of the largest teacher whose plan fits, which its walks follow.

        Args:
            teacher: the pipeline to distil.
            forwards: the budget; a forward counts 1, forward and backward 3.
            batch: samples of an update.
            name: of the method, for an error.

        Raises:
            ConfigError: a budget that is too small, with the smallest that works.
        """

        def fits(updates: int) -> bool:
            return self.sized(teacher, updates).cost(teacher, batch) <= forwards

        method = (
            self if self.sized(teacher, 1) == self else self.sized(teacher, largest(fits, MOST))
        )
        plan = method.plan(teacher)
        work = [StageWork(stage.updates, stage.forwards * batch) for stage in plan]
        once = sum(stage.once for stage in plan)
        named = name or type(self).__name__
        return method.with_updates(teacher, updates_within(work, forwards, once, name=named))

    def cost(self, teacher: PipelineLike, batch: int) -> int:
        """The cost of all stages in forwards.

        Args:
            teacher: the pipeline to distil.
            batch: samples of an update.
        """
        return sum(stage.cost(batch) for stage in self.plan(teacher))

    @property
    def builds_student(self) -> bool:
        """Whether the first student is a network of other options, which may not fit the samples."""
        return False

    def summary(self) -> str:
        """The method in one line."""
        return (type(self).__doc__ or type(self).__name__).strip().splitlines()[0].rstrip(".")

    def readable(self, teacher: PipelineLike) -> PipelineLike:
        """The teacher as the method's own stages have it, after a stage that changes what it predicts.

        Args:
            teacher: the pipeline to distil.
        """
        return teacher

    def plan_line(self, teacher: PipelineLike) -> str:
        """The method in one line, with what it does for this teacher.

        Args:
            teacher: the pipeline to distil.
        """
        return self.summary()

    @classmethod
    def options(cls) -> type:
        """The dataclass of options for the command line and TOML files, with a method `build`."""
        return cls

    def build(self) -> "Method":
        """The method of these options."""
        return self


def refuse_student(teacher: PipelineLike) -> None:
    """`ConfigError` for a student as the teacher of a stage that evaluates it at every time."""
    if teacher.times:
        raise ConfigError(
            f"this teacher is a student of {len(teacher.times[-1]) - 1} steps, trained on its own grid "
            "alone, and would be evaluated at every time: give the teacher that it was distilled from"
        )


def refuse_other_sampler(teacher: PipelineLike, stage: StagePlan) -> None:
    """`ConfigError` for a student as the teacher of students for another sampler or direction.

    The fine steps of a student of several grids are its teacher's by DDIM.
    """
    own = "ddim" if stage.grids else stage.sampler
    if teacher.times and (teacher.sampler, teacher.direction) != (own, stage.direction):
        raise ConfigError(
            f"this teacher is a student for sampler '{teacher.sampler}' and direction '{teacher.direction}', "
            f"and its students would be for '{stage.sampler}' and '{stage.direction}', with other steps: "
            "give the teacher that it was distilled from"
        )


def errors(guess: Prediction, target: Prediction) -> tuple[Tensor, Tensor]:
    """The mean squared errors of x0 and of eps per sample, [B] each, as weightings take them."""
    x_err = (target.x0 - guess.x0).square().flatten(1).mean(1)
    return x_err, (target.eps - guess.eps).square().flatten(1).mean(1)


def levels_for(levels: int, schedule: Schedule) -> int | None:
    """The number of levels for `random_times`: `levels`, else the table's; None means all of (0, 1).

    `ConfigError` where the schedule has no level at one of these times.
    """
    count: int | None = levels or getattr(schedule, "levels", None)
    if count:  # of very many only the lowest, where a table has its gap
        on_schedule(tuple(k / count for k in range(count, 0, -1)[-1000:]), schedule)
    return count


def random_times(draw: Draw, levels: int | None) -> Tensor:
    """Random times, float64 [B]: uniform in (0, 1), or with `levels` uniform on {1 / levels, ..., 1}."""
    if levels is None:
        return draw.uniform().clamp(EDGE, 1 - EDGE)
    chosen = draw.integers(levels) + 1
    return chosen.to(torch.float32 if chosen.device.type == "mps" else torch.float64) / levels
