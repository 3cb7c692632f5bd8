"""Progressive distillation: halve the number of sampling steps, again and again.

Salimans & Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", ICLR 2022,
Algorithm 2.  Names follow the paper, except z -> x_t and t', t'' -> t_mid, t_end.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Self

import torch
from torch import Tensor

from halfstep.batch import Cond
from halfstep.config.validate import NotNegative, Updates, Validated
from halfstep.diffusion.denoiser import Denoises, level_of, Teacher
from halfstep.diffusion.loss_weighting import truncated_snr, Weighting, WEIGHTINGS
from halfstep.diffusion.prediction import Clip, Prediction
from halfstep.diffusion.schedules import arriving, Schedule
from halfstep.diffusion.time_grids import checked, Direction, grid, GridName, Steps, Times
from halfstep.errors import ConfigError
from halfstep.methods.base import (
    Method,
    PipelineLike,
    Stage,
    StagePlan,
    student_name,
)
from halfstep.methods.default_updates import every_time_updates, halving_updates, PAPER
from halfstep.methods.diffusion.halving_checks import (
    check_updates,
    check_weighting,
    refuse_other_clip,
    refuse_other_grid,
)
from halfstep.methods.diffusion.matching import Matching, Places
from halfstep.methods.diffusion.v_teacher_first import VTeacherFirst
from halfstep.rng import Draw


@dataclass(frozen=True, kw_only=True)
class Halving(Validated, Method):
    """Halve the number of sampling steps, again and again, of a teacher that its grid can read."""

    start: Steps = 64
    """Steps the teacher is sampled with: `stop` times a power of two."""
    stop: Steps = 1
    """Steps the last student takes."""
    updates: tuple[Updates, ...] | None = None
    """Optimiser updates: one number for every halving (twice that for 2 steps and for 1), or one each. By
    the data: a sixteenth of a teacher's default."""
    weighting: str = "truncated-snr"
    """Loss weight on the x0 error: constant, truncated-snr or snr+1."""
    grid: GridName = "auto"
    """Where the teacher's steps lie; a student's lie on every other one of them. auto: trailing on a table
    of levels, and uniform on any other schedule."""
    times: Times = ()
    """A grid given as start + 1 times, noise first; overrides `grid`."""
    target_clip: NotNegative = 0.0
    """Clip the teacher's images to [-target_clip, target_clip] at every step of a target. Guided pixels
    need it, for a student that is clipped too. 0 does not clip (the paper)."""
    sampler: ClassVar[str] = "ddim"
    direction: ClassVar[Direction] = "denoise"

    def __post_init__(self) -> None:
        super().__post_init__()
        ratio, remainder = divmod(self.start, max(self.stop, 1))
        if self.stop < 1 or remainder or ratio < 2 or ratio & (ratio - 1):
            stop = max(self.stop, 1)
            raise ConfigError(
                f"cannot halve from {self.start} to {self.stop} steps: start must be stop times a "
                f"power of two, for example start={stop * 2 ** max(1, ratio.bit_length() - 1)}"
                f" with stop={stop}{self._reachable()}"
            )
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

    @property
    def counts(self) -> list[int]:
        """The students' numbers of steps, the largest first."""
        return [self.start // 2**k for k in range(1, (self.start // self.stop).bit_length())]

    def _reachable(self) -> str:
        odd = self.start
        while odd > 1 and odd % 2 == 0:
            odd //= 2
        if odd == self.start or self.start < 2:
            return ""
        halves = [self.start // 2**k for k in range(1, (self.start // odd).bit_length())]
        return f"; {self.start} steps can stop at {', '.join(map(str, halves))}"

    def plan(self, teacher: PipelineLike) -> list[StagePlan]:
        """One stage for each halving: N -> N / 2 steps on every other time of the grid."""
        times, stages = self._grid(teacher.denoiser.schedule), list[StagePlan]()
        for halving, steps in enumerate(self.counts):
            name, updates, teachers = student_name(steps), self.updates_for(halving, steps), times
            times = times[::2]  #                                              N <- N / 2
            stages.append(
                StagePlan(
                    name,
                    updates,
                    times,
                    teachers,
                    sampler=self.sampler,
                    direction=self.direction,
                    grid=self.grid,
                    clips=not self._leaves_eps(teacher),
                    forwards=Halve.forwards,
                )
            )
        return stages

    def _grid(self, schedule: Schedule) -> Times:
        return self.times or grid(self.grid, self.start, schedule)

    def check(self, teacher: PipelineLike) -> None:
        """`ConfigError` for a teacher that is sampled otherwise, or a grid that cannot be halved."""
        refuse_other_clip(teacher, self.target_clip)
        super().check(teacher)
        plan, denoiser = self.plan(teacher), teacher.denoiser
        refuse_other_grid(teacher, plan[0].teacher_times)
        for stage in plan:
            self.objective(denoiser, stage.teacher_times).look_ahead()

    def _leaves_eps(self, teacher: PipelineLike) -> bool:
        """Whether targets merge steps that clip x0 alone.

        Their x0 may lie beyond the bound, so students are sampled unclipped, also as the next teacher.
        """
        return self.target_clip > 0 and teacher.clipping == "x0"

    def stages(self, teacher: PipelineLike) -> Iterator[Stage]:
        plan, eta = self.plan(teacher), teacher.denoiser
        clip = Clip(self.target_clip, teacher.clipping) if self.target_clip else None
        del teacher
        for stage in plan:
            student = eta.trainable_copy()  #                                  theta <- eta
            halve = self.objective(eta.freeze(), stage.teacher_times, clip)
            yield stage.stage(student, halve)
            eta = student  #                                                   eta <- theta
            clip = clip if stage.clips else None

    def summary(self) -> str:
        """8 -> 4 -> 2 steps."""
        return f"{' -> '.join(map(str, [self.start, *self.counts]))} steps"

    def objective(self, teacher: Teacher, times: Times, clip: Clip | None = None) -> "Halve":
        """The objective of the student of a teacher that is sampled on this grid, clipped so."""
        return Halve(teacher, times, WEIGHTINGS[self.weighting], clip)

    def updates_for(self, halving: int, steps: int) -> int:
        """The updates of the halving that ends at `steps`: the paper doubles the last two."""
        numbers = (halving_updates(PAPER),) if self.updates is None else self.updates
        if len(numbers) > 1:
            return numbers[halving]
        return numbers[0] * (2 if steps <= 2 else 1)

    def sized(self, teacher: PipelineLike, updates: int) -> Self:
        """The halvings with their updates: a sixteenth of the teacher's unless some are given."""
        if self.updates is not None:
            return self
        return replace(self, updates=(halving_updates(updates),))


@dataclass(frozen=True, kw_only=True)
class Progressive(VTeacherFirst, Halving):
    """Halve the number of sampling steps, again and again (Salimans & Ho 2022).

    A teacher that predicts eps becomes a v teacher first.

    Raises:
        ConfigError: `start` is not `stop` times a power of two, the numbers of updates or times do not
            match the halvings, or a weight vanishes where students start.
    """

    walks: ClassVar[bool] = True

    def _default_updates(self, others: list[StagePlan]) -> int:
        return every_time_updates(PAPER) if self.updates is None else self.updates[0]


@dataclass(frozen=True)
class Halve(Matching):
    """Match the student's one DDIM step to the teacher's two."""

    teacher: Denoises
    times: Times
    """The teacher's grid; the student's is every other time of it."""
    weighting: Weighting = truncated_snr
    clip: Clip | None = None
    forwards = 5

    def places(self, draw: Draw) -> Places:
        """t, t_mid and t_end: the start of the student's step and the ends of the teacher's two."""
        i = 2 * draw.integers(len(self.times) // 2)  #                    t = i / N, i ~ {1, ..., N}
        return on_grid(self.times, *self.steps_from(i))

    def target(self, x_t: Tensor, places: Places, cond: Cond | None) -> Prediction:
        t, t_mid, t_end, *_ = places
        return two_step_target(self.teacher, x_t, t, t_mid, t_end, cond, clip=self.clip)

    def loss(self, guess: Prediction, target: Prediction) -> Tensor:
        if self.clip is not None and self.clip.kind == "x0-and-eps":
            guess = forgiven(guess, target, self.clip.bound)
        return super().loss(guess, target)

    @property
    def walk_length(self) -> int:
        return len(self.times) // 2

    def walk_places(self, k: Tensor, jitter: Tensor) -> Places:
        """Every other time of the teacher's grid: the next place begins where two steps land."""
        return on_grid(self.times, *self.steps_from(2 * k))

    def sampled(self, x_t: Tensor, places: Places, guess: Prediction) -> Prediction:
        if self.clip is None or self.clip.kind == "x0":
            return guess
        return self.clip(guess, x_t, level_of(self.teacher.schedule, places[0], x_t))

    def steps_from(self, i: Tensor) -> tuple[Tensor, ...]:
        """The grid indices of the start of the student's step and the ends of the teacher's two."""
        return i, i + 1, i + 2

    def look_ahead(self) -> None:
        """`ConfigError` if a step of the grid has no target."""
        t, t_mid, t_end = on_grid(
            self.times, *self.steps_from(2 * torch.arange(len(self.times) // 2))
        )
        for share in shares(self.teacher.schedule, t, t_mid, t_end):
            if not bool((finite := share.isfinite()).all()):
                first = float(t[~finite][0])
                raise ConfigError(
                    f"two steps from t = {first:g} cannot be merged into one, as the schedule's levels at "
                    "the ends of a step are equal or not finite: give times where they differ"
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


def on_grid(times: Times, *indices: Tensor) -> tuple[Tensor, ...]:
    """The times at these indices, float64 on the indices' device (float32 where it has none)."""
    table = _on_device(times, indices[0].device)
    return tuple(table[i] for i in indices)


@lru_cache(maxsize=8)  # a copy to the device waits for it, so not one every update
def _on_device(times: Times, device: torch.device) -> Tensor:
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.tensor(times, dtype=dtype, device=device)


@torch.no_grad()
def two_step_target(
    teacher: Denoises,
    x_t: Tensor,
    t: Tensor,
    t_mid: Tensor,
    t_end: Tensor,
    cond: Cond | None = None,
    *,
    clip: float | Clip | None = None,
) -> Prediction:
    """The prediction with which ONE DDIM step t -> t_end lands where TWO teacher steps land.

    Algorithm 2's x~ = (z_t'' - (sigma_t'' / sigma_t) z_t) / (alpha_t'' - (sigma_t'' / sigma_t) alpha_t)
    as the convex combination it is, for any schedule and without its cancellation::

        x~ = [(rho_m - rho_t) x_1 + (rho_e - rho_m) x_2] / (rho_e - rho_t)  with  rho = alpha / sigma

    and eps~ the same with rho = sigma / alpha. At t_end = 0 the step ends in clean data: x~ = x_2. Never
    differentiated.

    Args:
        teacher: the frozen denoiser.
        x_t: float [B, ...], noisy data.
        t: float64 [B], the start of the step.
        t_mid: float64 [B], t > t_mid > t_end, or towards noise t < t_mid < t_end; t_mid = t is a single
            step.
        t_end: float64 [B], its end.
        cond: the conditions, or None.
        clip: clip the images of the teacher's steps to [-clip, clip] (which needs sigma > 0), or a
            `Clip`; None, as in the paper, does not clip.

    Raises:
        ConfigError: a teacher that predicts eps where alpha = 0, or x0 where sigma = 0.
    """
    clipped = Clip.of(clip)

    def step(x: Tensor, t: Tensor, to: Tensor) -> Prediction:
        pred = teacher(x, t, cond)
        if clipped is None:
            return pred
        after = clipped(pred, x, level_of(teacher.schedule, t, x))
        return (
            after if clipped.kind == "x0-and-eps" else _merged(teacher.schedule, pred, after, t, to)
        )

    first = step(x_t, t, t_mid)
    x_mid = level_of(teacher.schedule, t_mid, x_t).mix(first.x0, first.eps)
    second = step(x_mid, t_mid, t_end)
    x_share, eps_share = shares(teacher.schedule, t, t_mid, t_end)
    shape = -1, *[1] * (x_t.ndim - 1)
    x0 = torch.lerp(first.x0, second.x0, x_share.to(x_t.dtype).reshape(shape))
    return Prediction(x0, torch.lerp(first.eps, second.eps, eps_share.to(x_t.dtype).reshape(shape)))


def shares(schedule: Schedule, t: Tensor, t_mid: Tensor, t_end: Tensor) -> tuple[Tensor, Tensor]:
    """The second step's shares in the two-step x0 and the two-step eps, in [0, 1] and t's dtype."""
    start, mid, end = schedule.at(t), schedule.at(t_mid), arriving(schedule, t_end)
    second = end.alpha * mid.sigma - mid.alpha * end.sigma
    both = end.alpha * start.sigma - start.alpha * end.sigma
    x_share = start.sigma * second / (mid.sigma * both)
    return x_share, start.alpha * second / (mid.alpha * both)


def _merged(
    schedule: Schedule, pred: Prediction, clipped: Prediction, t: Tensor, to: Tensor
) -> Prediction:
    """The consistent prediction whose DDIM step lands where a step lands that clips x0 and leaves eps.

    Algorithm 2's x~ = (z_s - (sigma_s / sigma_t) z_t) / (alpha_s - (sigma_s / sigma_t) alpha_t) at the
    landing z_s = alpha_s c + sigma_s eps, exact to the bit where nothing is clipped: x~ = x0 + g (c - x0),
    eps~ = eps - (alpha_t / sigma_t) g (c - x0), g = alpha_s sigma_t / (alpha_s sigma_t - alpha_t sigma_s).
    g is 1 at s = 0 and grows as steps shrink: x~ may lie far beyond the bound.  A step of no length is pred.
    """
    start, end = schedule.at(t), arriving(schedule, to)
    length = end.alpha * start.sigma - end.sigma * start.alpha
    scale = (end.alpha / length).where(length != 0, 0)
    change = clipped.x0 - pred.x0

    def times_change(gain: Tensor) -> Tensor:
        return gain.to(change.dtype).reshape(-1, *[1] * (change.ndim - 1)) * change

    return Prediction(
        pred.x0 + times_change(scale * start.sigma), pred.eps - times_change(scale * start.alpha)
    )
