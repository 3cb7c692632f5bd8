"""The parts of a method: a plan, its stages, and their objectives.  Knows no optimiser and no device."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import nn, Tensor

from halfstep.batch import Batch
from halfstep.data import Data
from halfstep.diffusion.denoiser import Teacher
from halfstep.diffusion.prediction import Prediction
from halfstep.diffusion.schedules import Schedule
from halfstep.diffusion.time_grids import Direction, on_schedule, Times
from halfstep.errors import ConfigError
from halfstep.progress import Progress, SILENT
from halfstep.rng import Draw

EDGE = 2.0**-24
"""Continuous times stay this far from 0 and 1, where some level is infinite."""
Range = tuple[float, float]
"""The lowest and the highest guidance scale."""


class PipelineLike(Protocol):
    """The part of a `Pipeline` that methods read.

    denoiser       the network with its schedule and parameterisation, or one that is guided
    unconditional  the label, or the states of the empty text, that mean "no condition"; None without
    times          the grids of a student; empty for a network that was trained at every time
    guidance_range the range of guidance scales that the network takes as an input
    clip           the sampler clips images to [-clip, clip] at every step, or None
    sampler        a student's own, ddim or stochastic
    direction      "denoise", or "invert" for a student that goes from data to noise
    """

    @property
    def denoiser(self) -> Teacher: ...
    @property
    def unconditional(self) -> int | Tensor | None: ...
    @property
    def times(self) -> tuple[Times, ...]: ...
    @property
    def guidance_range(self) -> Range | None: ...
    @property
    def clip(self) -> float | None: ...
    @property
    def sampler(self) -> str: ...
    @property
    def direction(self) -> Direction: ...


@dataclass(frozen=True, eq=False)
class DenoiserOnly:
    """A denoiser as a method's teacher, without a pipeline around it."""

    denoiser: Teacher
    unconditional: int | Tensor | None = None
    times: tuple[Times, ...] = ()
    guidance_range: Range | None = None
    clip: float | None = None
    sampler: str = "ddim"
    direction: Direction = "denoise"


class Objective:
    """A loss: one value a sample.  `student` may be wrapped: call it, and read no attribute of it."""

    @property
    def forwards(self) -> int:
        """The cost of one update of a sample in forwards: a forward 1, a forward and backward 3."""
        return 3

    def __call__(self, student: Any, batch: Batch, draw: Draw) -> Tensor:
        """One loss per sample, shape [B]."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__(student, batch, draw)")

    def at(self, done: float) -> Self:
        """The objective when that share of its stage's updates is done, a function of nothing else."""
        return self

    def measure(self, student: Any, batch: Batch, draw: Draw) -> Mapping[str, Any]:
        """Numbers for the log, by name."""
        return {}

    @property
    def networks(self) -> list[nn.Module]:
        """The networks that it holds, such as the teacher."""
        return [value for value in vars(self).values() if isinstance(value, nn.Module)]


@dataclass(frozen=True)
class Stage:
    """One student and what it learns."""

    name: str
    student: nn.Module
    objective: Objective
    updates: int
    times: Times = ()
    """The grid the student is to be sampled on; empty for a student of every time."""
    guidance_range: Range | None = None
    """The range of guidance scales that the student takes as an input; None is as its teacher."""
    sampler: str = "ddim"
    """The sampler of that grid: ddim or stochastic."""
    direction: Direction = "denoise"
    """From noise to data, or "invert", from data to noise."""


def student_name(steps: int) -> str:
    """The name of the stage whose student takes so many steps: 0004-steps."""
    return f"{steps:04d}-steps"


@dataclass(frozen=True)
class StagePlan:
    """A stage as it is planned, before there is a network."""

    name: str
    """Of a student with steps `student_name(steps)`: a gate and a command find it by them."""
    updates: int
    times: Times = ()
    """The grid the student is to be sampled on; empty for a student of every time."""
    teacher_times: Times = ()
    """The grid the teacher is sampled on in this stage; empty where it is asked at every time."""
    guidance_range: Range | None = None
    """The range of guidance scales that the student takes as an input; None is as its teacher."""
    sampler: str = "ddim"
    """The sampler of these grids."""
    direction: Direction = "denoise"
    """From noise to data, or "invert", from data to noise."""
    grid: str = "uniform"
    """The name of the grid that these times lie on: where other numbers of steps would lie."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.name != student_name(self.steps):
            raise ConfigError(
                f"the stage of a student of {self.steps} steps is called '{self.name}': write "
                f"'{student_name(self.steps)}'"
            )

    @property
    def steps(self) -> int | None:
        """The student's number of steps; None for a student of every time."""
        return len(self.times) - 1 if self.times else None

    def stage(self, student: nn.Module, objective: Objective) -> Stage:
        """The stage with its student and what that learns."""
        return Stage(
            self.name,
            student,
            objective,
            self.updates,
            self.times,
            self.guidance_range,
            self.sampler,
            self.direction,
        )


def updates_after(plan: Sequence[StagePlan], name: str) -> int:
    """Updates of the stages that follow the stage of this name."""
    names = [stage.name for stage in plan]
    return sum(stage.updates for stage in plan[names.index(name) + 1 :])


def teacher_times(plan: Sequence[StagePlan]) -> Times:
    """The grid that the first halved student's teacher is sampled on; empty where nothing is halved."""
    return next((stage.teacher_times for stage in plan if stage.teacher_times), ())


class Method:
    """A way to make students: a dataclass of its options with a plan, and stages that carry it out."""

    gated: ClassVar[bool] = True
    """Whether its students draw samples in fewer steps, so that a quality gate may end the run."""

    def plan(self, teacher: PipelineLike) -> list[StagePlan]:
        """The stages in order, with their grids of time."""
        raise NotImplementedError(f"{type(self).__name__} has no plan(teacher)")

    def stages(self, teacher: PipelineLike) -> Iterator[Stage]:
        """The stages of a teacher that `check` allows; code after a `yield` runs once its student is
        trained."""
        raise NotImplementedError(f"{type(self).__name__} has no stages(teacher)")

    def check(self, teacher: PipelineLike) -> None:
        """`ConfigError` for a teacher that cannot be distilled so."""
        for stage in self.plan(teacher):
            if teacher.guidance_range is not None and stage.guidance_range is not None:
                raise ConfigError(
                    "this teacher takes its guidance scale as an input already: give the one it was made "
                    "from, or halve it with 'halfstep distill progressive'"
                )
            refuse_other_sampler(teacher, stage)

    @property
    def needs_data(self) -> bool:
        """Whether the data are to decide an option: `resolve` does."""
        return False

    def resolve(
        self,
        teacher: PipelineLike,
        data: Data | None,
        *,
        previous: Mapping[str, Any] | None = None,
        progress: Progress = SILENT,
    ) -> Self:
        """The method with all options decided.

        data   as the teacher's network reads it; None decides without: for refusals before it is read
        begun  the options of the run that is continued
        """
        return self

    @property
    def builds_student(self) -> bool:
        """Whether the first student is a network of other options, which may not take the samples."""
        return False

    def summary(self) -> str:
        """The method in a line."""
        return (type(self).__doc__ or type(self).__name__).strip().splitlines()[0].rstrip(".")

    @classmethod
    def options(cls) -> type:
        """The dataclass of options for a command line and a TOML file; it has a method `build`."""
        return cls

    def build(self) -> "Method":
        """The method of these options."""
        return self


def refuse_student(teacher: PipelineLike) -> None:
    """`ConfigError` for a student as the teacher of a stage that asks it at every time."""
    if teacher.times:
        raise ConfigError(
            f"this teacher is a student of {len(teacher.times[-1]) - 1} steps, which answers at the times "
            "of its own grid alone, and it would be asked at every time: give the teacher that it was "
            "distilled from"
        )


def refuse_other_sampler(teacher: PipelineLike, stage: StagePlan) -> None:
    """`ConfigError` for a student as the teacher of students for another sampler or direction."""
    if teacher.times and (teacher.sampler, teacher.direction) != (stage.sampler, stage.direction):
        raise ConfigError(
            f"this teacher is a student for sampler '{teacher.sampler}' and direction '{teacher.direction}', "
            f"and its students would be for '{stage.sampler}' and '{stage.direction}', with other steps: "
            "give the teacher that it was distilled from"
        )


def errors(guess: Prediction, target: Prediction) -> tuple[Tensor, Tensor]:
    """Mean squared errors of x0 and of eps over each sample, shape [B] both: what a weighting weighs."""
    x_err = (target.x0 - guess.x0).square().flatten(1).mean(1)
    return x_err, (target.eps - guess.eps).square().flatten(1).mean(1)


def levels_for(levels: int, schedule: Schedule) -> int | None:
    """How many levels `random_times` draws from: `levels`, else the table's own; None: all of (0, 1).

    `ConfigError` where the schedule has no level at one of them, which chance would find in mid-training.
    """
    count: int | None = levels or getattr(schedule, "levels", None)
    if count:  # of very many the lowest, where a table has its gap
        on_schedule(tuple(k / count for k in range(count, 0, -1)[-1000:]), schedule)
    return count


def random_times(draw: Draw, levels: int | None) -> Tensor:
    """t float64 [B]: uniform in (0, 1), or with `levels` uniform on {1 / levels, ..., 1}."""
    if levels is None:
        return draw.uniform().clamp(EDGE, 1 - EDGE)
    chosen = draw.integers(levels) + 1
    return chosen.to(torch.float32 if chosen.device.type == "mps" else torch.float64) / levels
