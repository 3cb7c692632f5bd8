"""The stages of a method: their objectives, and their plan without networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn, Tensor

from halfstep.batch import Batch, Cond
from halfstep.config import JsonObject
from halfstep.diffusion.denoiser import Teacher
from halfstep.diffusion.time_grids import Direction, Times
from halfstep.errors import ConfigError
from halfstep.methods.pipeline_like import Range
from halfstep.rng import Draw, Uniform


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
