"""Options and checks of the methods that end in students of few steps on a fine grid of their teacher."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor

from halfstep.config.validate import NotNegative, Updates, Validated
from halfstep.diffusion.denoiser import Denoises, level_of
from halfstep.diffusion.loss_weighting import Weighting
from halfstep.diffusion.prediction import Clip, Prediction
from halfstep.diffusion.schedules import Schedule
from halfstep.diffusion.time_grids import checked, Direction, grid, GridName, Steps, Times
from halfstep.errors import ConfigError
from halfstep.methods.base import Method
from halfstep.methods.default_updates import every_time_updates, halving_updates, PAPER
from halfstep.methods.diffusion.halving_checks import (
    check_updates,
    check_weighting,
    refuse_other_clip,
)
from halfstep.methods.diffusion.matching import Matching, Places
from halfstep.methods.diffusion.two_step_target import shares
from halfstep.methods.diffusion.v_teacher_first import VTeacherFirst
from halfstep.methods.pipeline_like import PipelineLike
from halfstep.methods.stages import StagePlan, student_name


@dataclass(frozen=True, kw_only=True)
class FewSteps(Validated, Method):
    """Students of few steps, one a stage, whose steps end on a fine grid of the teacher."""

    start: Steps = 64
    """Steps the teacher is sampled with: `stop` times a power of two."""
    stop: Steps = 1
    """Steps the last student takes."""
    updates: tuple[Updates, ...] | None = None
    """Optimiser updates: one number for every student (twice that for 2 steps and for 1), or one each. By
    the data: a sixteenth of a teacher's default."""
    weighting: str = "truncated-snr"
    """Loss weight on the x0 error: constant, truncated-snr or snr+1."""
    grid: GridName = "auto"
    """Where the teacher's steps lie; a student's begin and end at some of them. auto: trailing on a table of
    levels, and uniform on any other schedule."""
    times: Times = ()
    """A grid given as start + 1 times, noise first; overrides `grid`."""
    target_clip: NotNegative = 0.0
    """Clip the teacher's images to [-target_clip, target_clip] at every step of a target. Guided pixels
    need it, for a student that is clipped too. 0 does not clip (the paper)."""
    sampler: ClassVar[str] = "ddim"
    direction: ClassVar[Direction] = "denoise"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_counts()
        if self.updates is not None:
            check_updates(self.updates, self.start, self.counts)
        if self.times and len(checked(self.times)) != self.start + 1:
            raise ConfigError(
                f"times has {len(self.times)} entries, which is {len(self.times) - 1} steps: write "
                f"start={len(self.times) - 1}"
            )
        self._check_weighting()

    def _check_weighting(self) -> None:
        check_weighting(self.weighting)

    def _check_counts(self) -> None:
        """`ConfigError` unless `start` can become `stop` by halving."""
        ratio, remainder = divmod(self.start, max(self.stop, 1))
        if self.stop < 1 or remainder or ratio < 2 or ratio & (ratio - 1):
            stop = max(self.stop, 1)
            raise ConfigError(
                f"cannot halve from {self.start} to {self.stop} steps: start must be stop times a "
                f"power of two, for example start={stop * 2 ** max(1, ratio.bit_length() - 1)}"
                f" with stop={stop}{self._reachable()}"
            )

    def _reachable(self) -> str:
        odd = self.start
        while odd > 1 and odd % 2 == 0:
            odd //= 2
        if odd == self.start or self.start < 2:
            return ""
        halves = [self.start // 2**k for k in range(1, (self.start // odd).bit_length())]
        return f"; {self.start} steps can stop at {', '.join(map(str, halves))}"

    @property
    def most(self) -> int:
        """Steps of the first student."""
        return self.start // 2

    @property
    def counts(self) -> list[int]:
        """The students' numbers of steps, the largest first."""
        return [self.most // 2**k for k in range((self.most // self.stop).bit_length())]

    def fine_times(self, schedule: Schedule) -> Times:
        """The teacher's grid of `start` steps.

        Args:
            schedule: the teacher's.
        """
        return self.times or grid(self.grid, self.start, schedule)

    def updates_for(self, student: int, steps: int) -> int:
        """The updates of the student of `steps` steps: the paper doubles the last two.

        Args:
            student: its number, from 0.
            steps: its steps.
        """
        numbers = (halving_updates(PAPER),) if self.updates is None else self.updates
        if len(numbers) > 1:
            return numbers[student]
        return numbers[0] * (2 if steps <= 2 else 1)

    def with_updates(self, teacher: PipelineLike, updates: Sequence[int]) -> Self:
        """The method with the updates of each student; a single one of 2 steps or 1 doubles its own."""
        if len(updates) == 1 and self.counts[0] <= 2:
            updates = [updates[0] // 2]
        return replace(self, updates=tuple(updates))

    def sized(self, teacher: PipelineLike, updates: int) -> Self:
        """The method with its updates: a sixteenth of the teacher's unless some are given."""
        if self.updates is not None:
            return self
        return replace(self, updates=(halving_updates(updates),))

    def check(self, teacher: PipelineLike) -> None:
        """`ConfigError` for a teacher that is sampled otherwise, or clipped otherwise."""
        refuse_other_clip(teacher, self.target_clip)
        super().check(teacher)

    def _clip(self, teacher: PipelineLike) -> Clip | None:
        """The clipping of the teacher's images in targets."""
        return Clip(self.target_clip, teacher.clipping) if self.target_clip else None

    def _leaves_eps(self, teacher: PipelineLike) -> bool:
        """Whether targets merge steps that clip x0 alone.

        Their x0 may lie beyond the bound, so students are sampled unclipped, also as the next teacher.
        """
        return self.target_clip > 0 and teacher.clipping == "x0"


@dataclass(frozen=True, kw_only=True)
class Segments(FewSteps):
    """One student for each number of steps, taught along segments of the teacher's grid.

    A student of N steps has N segments, each of start / N of the teacher's steps.
    """

    start: Steps = 64
    """Steps the teacher is sampled with: a multiple of `first`."""
    first: Steps = 8
    """Steps of the first student: `stop` times a power of two. The next have half as many each."""

    def _check_counts(self) -> None:
        ratio, remainder = divmod(self.first, max(self.stop, 1))
        if self.stop < 1 or remainder or ratio < 1 or ratio & (ratio - 1):
            raise ConfigError(
                f"cannot halve from first={self.first} to stop={self.stop} steps: first must be stop times "
                f"a power of two, for example first={max(self.stop, 1) * 8} with stop={max(self.stop, 1)}"
            )
        if self.start % self.first or self.start < self.first:
            raise ConfigError(
                f"start={self.start} steps have no {self.first} segments of equal length: write a multiple "
                f"of first, for example start={self.first * 8}"
            )

    @property
    def most(self) -> int:
        """Steps of the first student."""
        return self.first

    def plan(self, teacher: PipelineLike) -> list[StagePlan]:
        """One stage for each number of steps, on the ends of its segments."""
        fine = self.fine_times(teacher.denoiser.schedule)
        return [
            StagePlan(
                student_name(steps),
                self.updates_for(student, steps),
                fine[:: self.start // steps],
                fine,
                sampler=self.sampler,
                direction=self.direction,
                grid=self.grid,
                clips=not self._leaves_eps(teacher),
                forwards=self.forwards_of(teacher),
            )
            for student, steps in enumerate(self.counts)
        ]

    def forwards_of(self, teacher: PipelineLike) -> int:
        """The cost of one sample's update in forwards.

        Args:
            teacher: the pipeline to distil.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forwards_of(teacher)")

    def summary(self) -> str:
        """8, 4, 2 and 1 steps along 64 of the teacher."""
        *many, last = map(str, self.counts)
        counts = f"{', '.join(many)} and {last}" if many else last
        return (
            f"{counts} step{'s' if many or last != '1' else ''} along {self.start} of the teacher"
        )


@dataclass(frozen=True, kw_only=True)
class FewStepsFromV(VTeacherFirst):
    """`VTeacherFirst` for `FewSteps`: the v teacher has by default as many updates as the first student."""

    def _default_updates(self, others: list[StagePlan]) -> int:
        updates: Sequence[int] | None = self.updates  # type: ignore[attr-defined]
        return every_time_updates(PAPER) if updates is None else updates[0]


class Merging(Matching):
    """An objective whose targets merge steps on a grid, such as a teacher's two into one.

    times  the fine grid, in the order of the steps
    clip   of the teacher's images, also of students that are sampled clipped; None does not clip
    """

    teacher: Denoises
    times: Times
    weighting: Weighting
    clip: Clip | None

    def loss(self, guess: Prediction, target: Prediction) -> Tensor:
        if self._clips_students:
            assert self.clip is not None
            guess = forgiven(guess, target, self.clip.bound)
        return super().loss(guess, target)

    def sampled(self, x_t: Tensor, places: Places, guess: Prediction) -> Prediction:
        if not self._clips_students:
            return guess
        assert self.clip is not None
        return self.clip(guess, x_t, level_of(self.teacher.schedule, places[0], x_t))

    @property
    def _clips_students(self) -> bool:
        return self.clip is not None and self.clip.kind == "x0-and-eps"

    def all_places(self) -> Places:
        """Every t, t_mid and t_end that a target can have."""
        raise NotImplementedError(f"{type(self).__name__} has no all_places()")

    def look_ahead(self) -> None:
        """`ConfigError` if a step of the grid has no target."""
        *places, t_end = self.all_places()
        for t, t_mid in pairwise(places):
            two = t_mid != t_end
            for share in shares(self.teacher.schedule, t[two], t_mid[two], t_end[two]):
                if not bool((finite := share.isfinite()).all()):
                    first = float(t[two][~finite][0])
                    raise ConfigError(
                        f"two steps from t = {first:g} cannot be merged into one, as the schedule's levels "
                        "at the ends of a step are equal or not finite: give times where they differ"
                    )


def forgiven(guess: Prediction, target: Prediction, clip: float) -> Prediction:
    """The guess without its errors beyond [-clip, clip], which a sampler that clips never sees.

    Where the target lies on the bound and the guess beyond it, both clip to the same pixel, and the guess is
    replaced by the target; elsewhere it is unchanged and keeps its gradient.
    """
    same = guess.x0.clamp(-clip, clip) == target.x0
    return Prediction(
        torch.where(same, target.x0, guess.x0), torch.where(same, target.eps, guess.eps)
    )
