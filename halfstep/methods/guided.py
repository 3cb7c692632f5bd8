"""Distillation of guided models: one call where guidance needs two, then fewer and fewer steps.

Meng et al., "On Distillation of Guided Diffusion Models", CVPR 2023, sections 3.1 and 3.2.  Names follow
the paper, except w = scale - 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from halfstep.batch import Batch, Cond
from halfstep.denoiser import Denoiser, Guided, level_of
from halfstep.errors import ConfigError
from halfstep.kinds import CountOrNone, hold_to_kinds, NotNegative, Updates
from halfstep.methods.base import errors, levels_for, Objective, random_times, Stage
from halfstep.methods.progressive import Progressive, refuse_blind
from halfstep.nets import build, built_again, recipe
from halfstep.nets.guidance import check_features
from halfstep.nets.guided import with_guidance
from halfstep.noise import Draw, untouched
from halfstep.prediction import Prediction
from halfstep.schema import literal
from halfstep.timegrids import grid, on_schedule, Steps, Times
from halfstep.weighting import truncated_snr, Weighting, WEIGHTINGS

Range = tuple[float, float]
"""The lowest and the highest guidance scale."""


@dataclass(frozen=True, kw_only=True)
class GuidedDistillation:
    """One student for a range of guidance scales, one call a step, and fewer steps (Meng et al. 2023)."""

    guidance: tuple[NotNegative, NotNegative] = (1.0, 5.0)
    """Lowest and highest guidance scale that the student takes as an input; 1 is off.  Both the same is a
    student for that scale alone."""
    updates: Updates = 10_000
    """Optimiser updates of the first stage, which learns the guided teacher at every time."""
    start: Steps = 64
    """Steps the guided teacher is sampled with: `stop` times a power of two."""
    stop: Steps = 1
    """Steps the last student takes; as many as `start` is the first stage alone."""
    halving_updates: tuple[Updates, ...] = (10_000,)
    """Updates of the halvings: one number for all (twice that for 2 steps and for 1), or one each."""
    weighting: str = "truncated-snr"
    """Loss weight on the x0 error: constant, truncated-snr or snr+1."""
    levels: CountOrNone = 0
    """First stage: draw times from {1/levels, ..., 1}; 0 draws them from all of (0, 1), or from the
    schedule's table."""
    grid: Literal["uniform", "trailing", "logsnr", "karras"] = "uniform"
    """Where the teacher's steps lie; a student's lie on every other one of them."""
    times: Times = ()
    """A grid of one's own, noise first, start + 1 times; overrides `grid`."""
    target_clip: NotNegative = 0.0
    """Halvings teach what the guided teacher's sampler makes when it clips images to [-target_clip,
    target_clip] at every step: 1 where its pipeline clips; 0 leaves targets as they are (the paper)."""
    features: int = 256
    """Number of Fourier features of the scale: even."""
    student_net: str = ""
    """A student of another kind: uvit, unet, dit, mlp or package.module:function, with all of its options
    in `student`. It begins untrained."""
    student: dict[str, str] = field(default_factory=dict)
    """Options of a smaller student, as NAME VALUE pairs: embed_dim 64 depth 4. The others are as the
    teacher's, and it begins untrained; without any it is the teacher and a scale, to begin with."""

    def __post_init__(self) -> None:
        hold_to_kinds(self)
        low, high = self.guidance
        if not low <= high:
            raise ConfigError(
                f"guidance is the lowest scale and the highest, got {low:g} and {high:g}: write for example "
                "1 and 5, or one scale twice"
            )
        for name in ("times", "target_clip"):
            if self.start == self.stop and getattr(self, name):
                raise ConfigError(
                    f"{name} is of the halvings, and from {self.start} to {self.stop} steps there are none: "
                    "leave it out"
                )
        if "guidance" in self.student:
            raise ConfigError(
                "guidance is no option of this student, which takes its scale by 'features': leave it out"
            )
        check_features(self.features)
        self._checked_halving()

    def _checked_halving(self) -> None:
        start = self.start if self.start != self.stop else 2 * self.start
        Progressive(
            start=start,
            stop=self.stop,
            updates=(0,),
            weighting=self.weighting,
            times=self.times,
            target_clip=self.target_clip,
        )
        count = (start // self.stop).bit_length() - 1
        if len(self.halving_updates) not in (1, count):
            raise ConfigError(
                f"halving_updates has {len(self.halving_updates)} numbers for {count} halvings "
                f"({self.start} to {self.stop}): give one for all, or one each"
            )

    @property
    def halving(self) -> Progressive | None:
        """The second stage; None where there are no steps to halve."""
        if self.start == self.stop:
            return None
        return Progressive(
            start=self.start,
            stop=self.stop,
            updates=self.halving_updates,
            weighting=self.weighting,
            grid=self.grid,
            times=self.times,
            target_clip=self.target_clip,
        )

    def stages(self, teacher: Denoiser, null: int | Tensor | None = None) -> Iterator[Stage]:
        """The first stage, then one for each halving.

        null  the label that means none, or the states of the empty text: what guidance leads away from
        """
        if null is None:
            raise ConfigError(
                "guidance leads away from a null class, and this teacher has none: train it with labels "
                "and drop_labels (command line: --labels --drop-labels 0.1)"
            )
        if (halving := self.halving) is not None:
            halving.grid_of(teacher)  # what it refuses is refused before the first stage is trained
        else:
            own = self.times or grid(self.grid, self.start, teacher.schedule)
            refuse_blind(teacher, on_schedule(own, teacher.schedule)[0])
        levels = levels_for(self.levels, teacher.schedule)
        student, weighting = self.begun(teacher), WEIGHTINGS[self.weighting]
        match = MatchGuided(teacher.freeze(), null, self.guidance, weighting, levels)
        yield Stage("guided", student, match, self.updates, guidance=self.guidance)
        del teacher, match  # from here on nobody needs it
        halvings = halving.stages(student) if halving else iter(())
        del student
        for stage in halvings:
            yield at_any_scale(stage, self.guidance)

    def begun(self, teacher: Denoiser) -> Denoiser:
        """The student as it begins: the conditional teacher to the bit, or a network of its own."""
        student = teacher.twin()
        if not self.student and not self.student_net:
            student.net = with_guidance(student.net, width=self.features)
            return student
        name, config = recipe(student.net) if not self.student_net else (self.student_net, {})
        own = {key: literal(value) for key, value in self.student.items()}
        weight = next(iter(student.net.parameters()))
        with untouched(0):
            options = {**config, **own, "guidance": self.features}
            net = build(name, options) if self.student_net else built_again(student.net, options)
        student.net = net.to(weight.device, weight.dtype)
        return student


@dataclass(frozen=True)
class MatchGuided:
    """weight * ||x0_hat(x_t, w) - [(1 + w) x0_c - w x0_null]||^2, w and t uniform (section 3.1)."""

    teacher: Denoiser
    null: int | Tensor
    guidance: Range
    weighting: Weighting = truncated_snr
    levels: int | None = None
    forwards = 5

    def __call__(self, student: Any, batch: Batch, draw: Draw) -> Tensor:
        scale = random_scales(draw, self.guidance)
        t, eps = random_times(draw, self.levels), draw.normal(batch.x0)
        x_t = level_of(self.teacher.schedule, t, batch.x0).mix(batch.x0, eps)
        with torch.no_grad():
            target: Prediction = Guided(self.teacher, scale, self.null)(x_t, t, batch.cond)
        guess: Prediction = student(x_t, t, told(batch.cond, scale))
        return self.weighting(*errors(guess, target))

    @torch.no_grad()
    def measure(self, student: Any, batch: Batch, draw: Draw) -> dict[str, dict[str, float]]:
        """The root mean square error of x0 by guidance scale, at five scales of the range, or its one."""
        t, eps = random_times(draw, self.levels), draw.normal(batch.x0)
        x_t = level_of(self.teacher.schedule, t, batch.x0).mix(batch.x0, eps)
        cond = batch.cond or Cond()
        null: Prediction = self.teacher(x_t, t, cond.without(self.null))
        label: Prediction = self.teacher(x_t, t, cond)
        found = {}
        for scale in dict.fromkeys(torch.linspace(*self.guidance, 5).tolist()):
            guess: Prediction = student(x_t, t, told(cond, torch.full_like(t, scale)))
            error = guess.x0 - null.toward(label, scale).x0
            found[f"{scale:g}"] = float(error.square().mean().sqrt())
        return {"x0_error_by_scale": found}


@dataclass(frozen=True)
class AnyScale:
    """An objective of networks that take their guidance scale as an input: one is drawn a sample."""

    objective: Objective
    guidance: Range

    @property
    def forwards(self) -> int:
        return self.objective.forwards

    def __call__(self, student: Any, batch: Batch, draw: Draw) -> Tensor:
        scale = random_scales(draw, self.guidance)
        return self.objective(student, replace(batch, cond=told(batch.cond, scale)), draw)


def at_any_scale(stage: Stage, guidance: Range) -> Stage:
    """The stage of a teacher, and so of a student, that takes a scale of this range as an input."""
    return replace(stage, objective=AnyScale(stage.objective, guidance), guidance=guidance)


def random_scales(draw: Draw, guidance: Range) -> Tensor:
    """Guidance scales, w = scale - 1 uniform between the ends (Meng et al. 2023, section 3.1), [B]."""
    low, high = guidance
    return low + (high - low) * draw.uniform()


def told(cond: Cond | None, scale: Tensor) -> Cond:
    """The condition, and the scale for the network."""
    return replace(cond or Cond(), guidance=scale)
