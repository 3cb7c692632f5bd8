"""An eps teacher becomes a v teacher in the first stage of the run that distils it.

eps does not determine the data at SNR 0, where the grids of few-step students start (Salimans & Ho 2022,
section 4; Meng et al. 2023, section 4).  Every method whose targets start there extends `VTeacherFirst`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast, Self

import torch

from halfstep.config.validate import Updates
from halfstep.diffusion.denoiser import Denoiser, Teacher
from halfstep.errors import ConfigError
from halfstep.methods.base import Method
from halfstep.methods.default_updates import every_time_updates
from halfstep.methods.diffusion.reparameterise import reading_v, Reparameterise
from halfstep.methods.pipeline_like import DenoiserOnly, PipelineLike
from halfstep.methods.stages import Stage, StagePlan, teacher_times
from halfstep.models.hooks import unwrap


@dataclass(frozen=True, kw_only=True)
class VTeacherOptions:
    """Options of the stage that turns an eps teacher into a v teacher."""

    reparameterise_updates: Updates | None = None
    """Updates of the first stage of an eps teacher, which makes it a v teacher. By default as many as
    `updates`; by the data, a quarter of a teacher's default, where those are too."""

    @property
    def v_teacher_options(self) -> dict[str, Any]:
        """These options by name."""
        return {name: getattr(self, name) for name in VTeacherOptions.__dataclass_fields__}


@dataclass(frozen=True, kw_only=True)
class VTeacherFirst(VTeacherOptions, Method):
    """A method whose plan begins with a stage 'v-teacher' if its teacher predicts eps.

    It stands before the class that it extends, `class Progressive(VTeacherFirst, Halving)`, whose plan, check
    and stages then have a teacher that determines the data at the first time of its grid, or at t = 1 where
    the plan has no grid.
    """

    def plan(self, teacher: PipelineLike) -> list[StagePlan]:
        """The v teacher's stage if the teacher needs it, then the others."""
        first = self._first(teacher)
        others = super().plan(self.readable(teacher))
        return others if first is None else [*first.plan(teacher), *others]

    def check(self, teacher: PipelineLike) -> None:
        """`ConfigError` for an unfit teacher, and for options of a stage that it does not need."""
        first = self._first(teacher)
        if first is None:
            self._refuse_unused()
        else:
            self._refuse_untrained(first)
            first.check(teacher)
        super().check(self.readable(teacher))

    def stages(self, teacher: PipelineLike) -> Iterator[Stage]:
        """The stages; the others have the v teacher as their teacher."""
        first = self._first(teacher)
        return super().stages(teacher) if first is None else self._from_v(first, teacher)

    def readable(self, teacher: PipelineLike) -> PipelineLike:
        """The teacher, read as a v teacher with the same network if it becomes one first."""
        if self._first(teacher) is None:
            return teacher
        denoiser = teacher.denoiser
        return _with(teacher, reading_v(denoiser.unguided, denoiser.schedule))

    def plan_line(self, teacher: PipelineLike) -> str:
        """`summary`, after the v teacher where there is one."""
        if (first := self._first(teacher)) is None:
            return self.summary()
        return f"eps to v in {first.updates:,} updates, {self.summary()}"

    def sized(self, teacher: PipelineLike, updates: int) -> Self:
        """The method with the updates that it leaves open, those of the v teacher among them."""
        method = super().sized(self.readable(teacher), updates)
        if method == self or self.reparameterise_updates is not None:
            return method
        if self._first(teacher) is None:
            return method
        return replace(method, reparameterise_updates=every_time_updates(updates))

    def with_updates(self, teacher: PipelineLike, updates: Sequence[int]) -> Self:
        """The method with the updates of its stages, the v teacher's first where there is one."""
        if self._first(teacher) is None:
            return super().with_updates(teacher, updates)
        method = super().with_updates(self.readable(teacher), updates[1:])
        return replace(method, reparameterise_updates=updates[0])

    def _first(self, teacher: PipelineLike) -> Reparameterise | None:
        """The method of the first stage; None for a teacher that determines the data where it starts."""
        if not teacher.denoiser.parameterisation.blind_to_data:
            return None
        others = super().plan(teacher)
        if not is_blind(teacher.denoiser, (teacher_times(others) or (1.0,))[0]):
            return None
        updates = self.reparameterise_updates
        return Reparameterise(
            updates=self._default_updates(others) if updates is None else updates,
        )

    def _default_updates(self, others: list[StagePlan]) -> int:
        """Updates of the first stage unless they are given: those of the stage after it."""
        return others[0].updates

    def _from_v(self, first: Reparameterise, teacher: PipelineLike) -> Iterator[Stage]:
        [stage] = first.stages(teacher)
        v_teacher = _with(teacher, cast(Denoiser, unwrap(stage.student)))
        del teacher
        yield stage
        del stage  # with the teacher, which is not needed any more
        others = super().stages(v_teacher)
        del v_teacher
        yield from others

    def _refuse_unused(self) -> None:
        for name, value in self.v_teacher_options.items():
            if value is not None:
                raise ConfigError(
                    f"{name} is for a teacher that predicts eps, and this one's predictions determine the "
                    f"data where its grid starts: leave {name} out"
                )

    def _refuse_untrained(self, first: Reparameterise) -> None:
        if first.updates == 0:
            raise ConfigError(
                "the teacher predicts eps, which does not determine the data where its grid starts, and a v "
                "teacher of 0 updates predicts nothing: write reparameterise_updates=5000 or another number, "
                "or give times that start lower"
            )


def is_blind(teacher: Teacher, t: float) -> bool:
    """Whether a teacher of eps starts at t with almost no signal, so that it does not determine the data."""
    level = teacher.schedule.at(torch.tensor(t, dtype=torch.float64))
    return teacher.parameterisation.blind_to_data and bool(level.alpha < 0.1 * level.sigma)


def _with(teacher: PipelineLike, denoiser: Denoiser) -> DenoiserOnly:
    """The teacher with another denoiser."""
    names = [field.name for field in fields(DenoiserOnly) if field.name != "denoiser"]
    return DenoiserOnly(denoiser, **{name: getattr(teacher, name) for name in names})
