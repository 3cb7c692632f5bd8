"""Options and plan of the methods whose one student takes every number of steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from halfstep.config.validate import Updates
from halfstep.diffusion.denoiser import Teacher
from halfstep.diffusion.prediction import Clip
from halfstep.diffusion.time_grids import Times
from halfstep.errors import ConfigError
from halfstep.methods.default_updates import halving_updates, PAPER
from halfstep.methods.diffusion.few_steps import Segments
from halfstep.methods.pipeline_like import PipelineLike
from halfstep.methods.stages import Objective, StagePlan


@dataclass(frozen=True, kw_only=True)
class OneStudent(Segments):
    """One stage, whose student takes every number of steps from `stop` on."""

    updates: tuple[Updates, ...] | None = None
    """Optimiser updates of the one student. By the data: three eighths of a teacher's default, as halvings
    to 8, 4, 2 and 1 steps take."""

    def _check_counts(self) -> None:
        super()._check_counts()
        if self.updates is not None and len(self.updates) > 1:
            raise ConfigError(
                f"there is one student for all numbers of steps, and updates has {len(self.updates)} "
                "numbers: give one"
            )

    def plan(self, teacher: PipelineLike) -> list[StagePlan]:
        """One stage: the student of every number of steps."""
        fine = self.fine_times(teacher.denoiser.schedule)
        return [
            StagePlan(
                self.sampler,
                self._updates,
                teacher_times=fine,
                sampler=self.sampler,
                grid=self.grid,
                clips=not self._leaves_eps(teacher),
                forwards=self.objective(teacher.denoiser, fine).forwards,
                grids=tuple(fine[:: self.start // count] for count in self.counts),
            )
        ]

    @property
    def _updates(self) -> int:
        """The student's updates; by default those of halvings to its numbers of steps."""
        return self._of(halving_updates(PAPER)) if self.updates is None else self.updates[0]

    def _of(self, halving: int) -> int:
        """As many updates as halvings to the same numbers of steps have: twice as many for 2 and for 1."""
        return sum(halving * (2 if count <= 2 else 1) for count in self.counts)

    def with_updates(self, teacher: PipelineLike, updates: Sequence[int]) -> Self:
        """The method with the updates of its one student."""
        return replace(self, updates=tuple(updates))

    def sized(self, teacher: PipelineLike, updates: int) -> Self:
        """The method with its updates, unless some are given."""
        if self.updates is not None:
            return self
        return replace(self, updates=(self._of(halving_updates(updates)),))

    def objective(self, teacher: Teacher, fine: Times, clip: Clip | None = None) -> Objective:
        """The objective of the student of a teacher on this fine grid, clipped so."""
        raise NotImplementedError(f"{type(self).__name__} has no objective(teacher, fine)")
