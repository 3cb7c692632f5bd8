"""Distillation of guided models: one call a step where guidance needs two, then fewer steps.

Meng et al., "On Distillation of Guided Diffusion Models", CVPR 2023, sections 3.1 and 3.2.  Names follow
the paper, except w = scale - 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast, ClassVar, Self

import torch
from torch import nn, Tensor

from halfstep.batch import Batch, Cond, Null
from halfstep.config import JsonObject
from halfstep.config.validate import CountOrNone, NotNegative, Updates, Validated
from halfstep.diffusion.denoiser import Denoiser, level_of
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.loss_weighting import truncated_snr, Weighting, WEIGHTINGS
from halfstep.diffusion.prediction import Clip, Prediction
from halfstep.errors import ConfigError
from halfstep.methods.base import Method, refuse_student
from halfstep.methods.default_updates import every_time_updates, PAPER
from halfstep.methods.diffusion.halving_checks import check_weighting
from halfstep.methods.diffusion.halving_options import HalvingOptions
from halfstep.methods.diffusion.matching import AtAllTimes, Places, teacher_clip
from halfstep.methods.diffusion.progressive import Progressive
from halfstep.methods.diffusion.v_teacher_first import VTeacherFirst, VTeacherOptions
from halfstep.methods.pipeline_like import DenoiserOnly, PipelineLike, Range
from halfstep.methods.random_times import levels_for, random_times
from halfstep.methods.stages import Objective, Stage, StagePlan
from halfstep.models import build, build_like, recipe
from halfstep.models.guidance_embedding import check_features
from halfstep.models.with_guidance import with_guidance
from halfstep.rng import Draw, fork_rng, Uniform
from halfstep.schema import literal


@dataclass(frozen=True, kw_only=True)
class GuidedMatching(Validated, Method):
    """One student for a range of guidance scales, one call a step (Meng et al. 2023, section 3.1)."""

    guidance_range: tuple[NotNegative, NotNegative] = (1.0, 5.0)
    """Lowest and highest guidance scale that the student takes as an input; 1 is no guidance.  Two equal
    scales give a student for that scale alone."""
    updates: Updates | None = None
    """Optimiser updates of the first stage, which learns the guided teacher at every time. By the data: a
    quarter of a teacher's default."""
    weighting: str = "truncated-snr"
    """Loss weight on the x0 error: constant, truncated-snr or snr+1."""
    levels: CountOrNone = 0
    """First stage: draw times from {1/levels, ..., 1}; 0 draws them from all of (0, 1), or from the
    schedule's table."""
    guidance_embed_dim: int = 256
    """Number of Fourier features of the scale: even."""
    student_net: str = ""
    """Another network for the student: uvit, unet, dit, mlp or package.module:function, with all of its
    options in `student`. It starts untrained."""
    student: dict[str, str] = field(default_factory=dict)
    """Options of a smaller student, as NAME VALUE pairs: embed_dim 64 depth 4. Other options are the
    teacher's, and it starts untrained; by default it starts as the teacher with a scale as an input."""
    walks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.guidance_range
        if not low <= high:
            raise ConfigError(
                f"guidance_range is the lowest and the highest scale, got {low:g} and {high:g}: write for "
                "example 1 and 5, or one scale twice"
            )
        if "guidance_embed_dim" in self.student:
            raise ConfigError(
                "guidance_embed_dim is an option of the method, not of the student: leave it out of student"
            )
        check_features(self.guidance_embed_dim)
        check_weighting(self.weighting)

    def plan(self, teacher: PipelineLike) -> list[StagePlan]:
        """One stage: the guided teacher at every time and scale."""
        span, cost = self.guidance_range, MatchGuided.forwards
        updates = every_time_updates(PAPER) if self.updates is None else self.updates
        return [StagePlan("guided", updates, guidance_range=span, forwards=cost)]

    def sized(self, teacher: PipelineLike, updates: int) -> Self:
        """The method with the updates of its first stage: a quarter of the teacher's unless given."""
        return (
            self if self.updates is not None else replace(self, updates=every_time_updates(updates))
        )

    def check(self, teacher: PipelineLike) -> None:
        """`ConfigError` for a teacher that cannot be guided, or already takes its scale as an input."""
        super().check(teacher)
        refuse_student(teacher)
        if teacher.unconditional is None:
            raise ConfigError(
                "guidance needs a null class, and this teacher has none: train it with labels and "
                "drop_labels (command line: --labels --drop-labels 0.1)"
            )
        if teacher.denoiser.guided:
            raise ConfigError(
                "this teacher is guided already, and its student would be guided twice: give the denoiser "
                "inside it, teacher.unguided"
            )
        levels_for(self.levels, teacher.denoiser.schedule)

    def stages(self, teacher: PipelineLike) -> Iterator[Stage]:
        [stage, *_], denoiser = self.plan(teacher), teacher.denoiser.unguided
        levels = levels_for(self.levels, denoiser.schedule)
        student, weighting = self.initial_student(denoiser), WEIGHTINGS[self.weighting]
        null = cast(Null, teacher.unconditional)
        norm, clip = teacher.guidance_norm, teacher_clip(teacher)
        match = MatchGuided(
            denoiser.freeze(), null, self.guidance_range, weighting, levels, norm, clip
        )
        yield stage.stage(student, match)

    @property
    def builds_student(self) -> bool:
        """Whether the student is built with other options than the teacher."""
        return bool(self.student or self.student_net)

    def summary(self) -> str:
        """guidance 1 to 5 in one call a step."""
        low, high = self.guidance_range
        return f"guidance {low:g} to {high:g} in one call a step"

    def initial_student(self, teacher: Denoiser) -> Denoiser:
        """The untrained student: the conditional teacher to the bit, or a new network."""
        student = teacher.trainable_copy()
        if not self.student and not self.student_net:
            student.net = with_guidance(student.net, width=self.guidance_embed_dim)
            return student
        name, config = recipe(student.net) if not self.student_net else (self.student_net, {})
        changes = {key: literal(value) for key, value in self.student.items()}
        weight = next(iter(student.net.parameters()))
        with fork_rng(0):
            options = {**config, **changes, "guidance_embed_dim": self.guidance_embed_dim}
            net = build(name, options) if self.student_net else build_like(student.net, options)
        student.net = net.to(weight.device, weight.dtype)
        return student


@dataclass(frozen=True, kw_only=True)
class GuidedHalving(GuidedMatching):
    """The guided student, then fewer steps, of a teacher that determines the data at their first time."""

    halving: Progressive | None = field(default_factory=Progressive)
    """The halvings of its steps (section 3.2); None is the first stage alone."""

    def plan(self, teacher: PipelineLike) -> list[StagePlan]:
        """The first stage, then one for each halving."""
        halvings = self.halving.plan(teacher) if self.halving else []
        return super().plan(teacher) + [
            replace(stage, guidance_range=self.guidance_range) for stage in halvings
        ]

    def sized(self, teacher: PipelineLike, updates: int) -> Self:
        """The method with the updates of both stages."""
        halving = self.halving and self.halving.sized(teacher, updates)
        return replace(super().sized(teacher, updates), halving=halving)

    def check(self, teacher: PipelineLike) -> None:
        """`ConfigError` for a teacher that cannot be guided, or whose student cannot be halved."""
        super().check(teacher)
        if self.halving is not None:
            self.halving.check(teacher)

    def stages(self, teacher: PipelineLike) -> Iterator[Stage]:
        [first] = super().stages(teacher)
        eta = DenoiserOnly(
            cast(Denoiser, first.student), clip=teacher.clip, clipping=teacher.clipping
        )
        del teacher
        yield first
        del first  # and the teacher with it: the student is the teacher from now on
        halvings = self.halving.stages(eta) if self.halving else iter(())
        del eta
        for stage in halvings:
            yield at_any_scale(stage, self.guidance_range)

    def summary(self) -> str:
        """guidance 1 to 5 in one call a step, 8 -> 4 -> 2 steps."""
        halving = f", {self.halving.summary()}" if self.halving else ""
        return super().summary() + halving


@dataclass(frozen=True, kw_only=True)
class GuidedDistillation(VTeacherFirst, GuidedHalving):
    """One student for a range of guidance scales, one call a step, and fewer steps (Meng et al. 2023).

    A teacher that predicts eps becomes a v teacher first.

    Raises:
        ConfigError: a range that falls, an odd number of Fourier features, or an unknown weight.
    """

    @classmethod
    def options(cls) -> type:
        """The flat options of both stages."""
        return GuidedOptions


@dataclass(frozen=True, kw_only=True)
class GuidedOptions(VTeacherOptions, HalvingOptions, GuidedMatching):
    """Options of `GuidedDistillation`, flat."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.build()

    def build(self) -> GuidedDistillation:
        """The method of these options."""
        options = {option.name: getattr(self, option.name) for option in fields(GuidedMatching)}
        halving = self.halvings(self.weighting)
        return GuidedDistillation(**options, halving=halving, **self.v_teacher_options)


@dataclass(frozen=True)
class MatchGuided(AtAllTimes):
    """weight * ||x0_hat(x_t, w) - [(1 + w) x0_c - w x0_null]||^2, w and t uniform (section 3.1)."""

    teacher: Denoiser
    null: Null
    guidance_range: Range
    weighting: Weighting = truncated_snr
    levels: int | None = None
    norm: int = 0
    clip: Clip | None = None
    forwards = 5

    def conditioned(self, cond: Cond | None, draw: Uniform) -> Cond:
        return with_scale(cond, random_scales(draw, self.guidance_range))

    @torch.no_grad()
    def target(self, x_t: Tensor, places: Places, cond: Cond | None) -> Prediction:
        assert cond is not None and cond.guidance_scale is not None
        teachers = replace(cond, guidance_scale=None)
        pred: Prediction = self._guided(cond.guidance_scale)(x_t, places[0], teachers)
        return pred

    def _guided(self, scale: float | Tensor) -> Guided:
        return Guided(self.teacher, scale, self.null, norm=self.norm)

    def measure(self, student: Any, batch: Batch, draw: Draw) -> JsonObject:
        t, eps = random_times(draw, self.levels), draw.normal(batch.x0)
        x_t = level_of(self.teacher.schedule, t, batch.x0).mix(batch.x0, eps)
        return self.measure_at(student, x_t, (t,), batch.cond)

    @torch.no_grad()
    def measure_at(
        self, student: Any, x_t: Tensor, places: Places, cond: Cond | None
    ) -> JsonObject:
        """The root mean square error of x0 by guidance scale, at five scales of the range."""
        t, cond = places[0], replace(cond or Cond(), guidance_scale=None)
        null: Prediction = self.teacher(x_t, t, cond.dropped(self.null))
        label: Prediction = self.teacher(x_t, t, cond)
        error_by_scale = {}
        for scale in dict.fromkeys(torch.linspace(*self.guidance_range, 5).tolist()):
            guess: Prediction = student(x_t, t, with_scale(cond, torch.full_like(t, scale)))
            error = guess.x0 - self._guided(scale).combined(null, label, x_t, t).x0
            error_by_scale[f"{scale:g}"] = float(error.square().mean().sqrt())
        return {"x0_error_by_scale": error_by_scale}


@dataclass(frozen=True)
class AnyScale(Objective):
    """An objective for networks that take their guidance scale as an input, drawn for each sample."""

    objective: Objective
    guidance_range: Range

    @property
    def forwards(self) -> float:
        return self.objective.forwards

    def __call__(self, student: Any, batch: Batch, draw: Draw) -> Tensor:
        scale = random_scales(draw, self.guidance_range)
        return self.objective(student, replace(batch, cond=with_scale(batch.cond, scale)), draw)

    def at(self, done: float) -> Self:
        return replace(self, objective=self.objective.at(done))

    def cost(self, updates: int, batch: int) -> int:
        return self.objective.cost(updates, batch)

    def from_noise(self) -> Self | None:
        own = self.objective.from_noise()
        return None if own is None else replace(self, objective=own)

    def conditioned(self, cond: Cond | None, draw: Uniform) -> Cond | None:
        scale = random_scales(draw, self.guidance_range)
        return self.objective.conditioned(with_scale(cond, scale), draw)

    @property
    def inner(self) -> Objective:
        return self.objective.inner

    @property
    def networks(self) -> list[nn.Module]:
        return self.objective.networks


def at_any_scale(stage: Stage, guidance_range: Range) -> Stage:
    """The stage with a teacher and a student that take a scale of this range as an input."""
    return replace(
        stage, objective=AnyScale(stage.objective, guidance_range), guidance_range=guidance_range
    )


def random_scales(draw: Uniform, guidance_range: Range) -> Tensor:
    """Guidance scales, w = scale - 1 uniform between the ends (Meng et al. 2023, section 3.1), [B]."""
    low, high = guidance_range
    return low + (high - low) * draw.uniform()


def with_scale(cond: Cond | None, scale: Tensor) -> Cond:
    """The condition with the guidance scale for the network."""
    return replace(cond or Cond(), guidance_scale=scale)
