"""A whole plan as one method: a smaller network, then any guidance scale in one call, then fewer steps.

In this order: a small network that is distilled to few steps directly loses more than one that was first
distilled at every time (EdgeFusion 2024 found so of text-to-image models).  Each stage's student is the
next one's teacher.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import Tensor

from halfstep.denoiser import Teacher
from halfstep.errors import ConfigError
from halfstep.kinds import NotNegative, Updates
from halfstep.methods.base import Stage
from halfstep.methods.guided import GuidedDistillation
from halfstep.methods.progressive import Progressive
from halfstep.methods.shrink import Shrink
from halfstep.nets.watched import bare
from halfstep.timegrids import Steps, Times


@dataclass(frozen=True, kw_only=True)
class Plan(Shrink):
    """Shrink, guide, halve: a smaller network, one call for any guidance scale if asked, fewer steps."""

    guidance: tuple[NotNegative, NotNegative] | None = None
    """Lowest and highest guidance scale that the students take as an input; without, no stage of it."""
    guided_updates: Updates = 10_000
    """Updates of the stage that learns the guided network."""
    start: Steps = 64
    """Steps that the smaller network is sampled with: `stop` times a power of two."""
    stop: Steps = 4
    """Steps the last student takes."""
    halving_updates: tuple[Updates, ...] = (10_000,)
    """Updates of the halvings: one number for all (twice that for 2 steps and for 1), or one each."""
    grid: Literal["uniform", "trailing", "logsnr", "karras"] = "uniform"
    """Where the steps lie; a student's lie on every other one of them."""
    times: Times = ()
    """A grid of one's own, noise first, start + 1 times; overrides `grid`."""
    target_clip: NotNegative = 0.0
    """Halvings teach what a sampler makes that clips images to [-target_clip, target_clip] at every step;
    0 leaves targets as they are."""
    scale_features: int = 256
    """Number of Fourier features of the guidance scale: even."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("guided_updates", "scale_features") if self.guidance is None else ():
            if getattr(self, name) != getattr(Plan, name):
                raise ConfigError(
                    f"{name} is of the stage that learns guidance, and there is none: give guidance, such as "
                    f"(1, 3), or leave {name} out"
                )
        _ = self.after

    @property
    def shrink(self) -> Shrink:
        """The first stage by itself."""
        return Shrink(**{one.name: getattr(self, one.name) for one in fields(Shrink)})

    @property
    def after(self) -> GuidedDistillation | Progressive:
        """What comes after it."""
        if self.guidance is None:
            return self._halving()
        return GuidedDistillation(
            guidance=self.guidance,
            updates=self.guided_updates,
            start=self.start,
            stop=self.stop,
            halving_updates=self.halving_updates,
            weighting=self.weighting,
            levels=self.levels,
            grid=self.grid,
            times=self.times,
            target_clip=self.target_clip,
            features=self.scale_features,
        )

    def _halving(self) -> Progressive:
        return Progressive(
            start=self.start,
            stop=self.stop,
            updates=self.halving_updates,
            weighting=self.weighting,
            grid=self.grid,
            times=self.times,
            target_clip=self.target_clip,
        )

    @property
    def halving(self) -> Progressive | None:
        """The halving that it ends in; None where there are no steps to halve."""
        return None if self.start == self.stop else self._halving()

    def stages(self, teacher: Teacher, null: int | Tensor | None = None) -> Iterator[Stage]:
        """The stage that shrinks, then those of what comes after it."""
        next(self._later(teacher, null))  # what it refuses is refused before the first is trained
        first = next(self.shrink.stages(teacher, null))
        small = bare(first.student)
        del teacher
        yield first
        del first  # with the teacher, which nobody needs from here on
        yield from self._later(small, null)

    def _later(self, teacher: Any, null: int | Tensor | None) -> Iterator[Stage]:
        after = self.after
        if isinstance(after, Progressive):
            return after.stages(teacher)
        return after.stages(teacher, null)
