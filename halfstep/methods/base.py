"""The base class of methods: a plan and its stages, without optimiser or device."""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

from torch import Tensor

from halfstep.config import JsonObject
from halfstep.data import Data
from halfstep.diffusion.prediction import Prediction
from halfstep.errors import ConfigError
from halfstep.methods.budget import largest, StageWork, updates_within
from halfstep.methods.pipeline_like import PipelineLike
from halfstep.methods.stages import Stage, StagePlan
from halfstep.progress import Progress, SILENT

MOST = 10**9
"""The most updates of a teacher by which a budget is shared out."""


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
