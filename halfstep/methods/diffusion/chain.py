"""A chain of methods: a smaller network, then any guidance scale in one call, then fewer steps.

In this order, because a small network distilled directly to few steps loses more than one that was first
distilled at every time (EdgeFusion 2024, for text-to-image models).  Each stage's student is the teacher of
the next.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import cast, ClassVar, Self

from halfstep.config import JsonObject
from halfstep.config.validate import NotNegative, Updates, Validated
from halfstep.data import Data
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.time_grids import Steps
from halfstep.errors import ConfigError
from halfstep.methods.base import Method
from halfstep.methods.diffusion.guided import GuidedDistillation
from halfstep.methods.diffusion.halving_options import HalvingOptions
from halfstep.methods.diffusion.progressive import Progressive
from halfstep.methods.diffusion.shrink import Shrink
from halfstep.methods.diffusion.v_teacher_first import VTeacherFirst, VTeacherOptions
from halfstep.methods.pipeline_like import DenoiserOnly, PipelineLike
from halfstep.methods.stages import Stage, StagePlan
from halfstep.models.hooks import unwrap
from halfstep.progress import Progress, SILENT


@dataclass(frozen=True, kw_only=True)
class Parts(Validated, Method):
    """A smaller network, then the method that distils it, of a teacher that determines the data."""

    keeps_network: ClassVar[bool] = False
    shrink: Shrink
    """The smaller network."""
    then: GuidedDistillation | Progressive
    """The distillation of the smaller network to fewer calls."""

    def plan(self, teacher: PipelineLike) -> list[StagePlan]:
        """The stage that shrinks, then those that follow it."""
        return self.shrink.plan(teacher) + self.then.plan(teacher)

    def check(self, teacher: PipelineLike) -> None:
        """`ConfigError` for a teacher that any of the methods refuses, before the first is trained."""
        self.shrink.check(teacher)
        self.then.check(teacher)

    def stages(self, teacher: PipelineLike) -> Iterator[Stage]:
        [first] = self.shrink.stages(teacher)
        small = DenoiserOnly(
            cast(Denoiser, unwrap(first.student)),
            teacher.unconditional,
            guidance_range=teacher.guidance_range,
            clip=teacher.clip,
            clipping=teacher.clipping,
        )
        del teacher
        yield first
        del first  # with the teacher, which is not needed any more
        later = self.then.stages(small)
        del small
        yield from later

    def sized(self, teacher: PipelineLike, updates: int) -> Self:
        """The chain with the updates of its parts."""
        shrink, then = self.shrink.sized(teacher, updates), self.then.sized(teacher, updates)
        return replace(self, shrink=shrink, then=then)

    @property
    def needs_data(self) -> bool:
        """Whether the data decide which blocks are kept."""
        return self.shrink.needs_data

    def resolve(
        self,
        teacher: PipelineLike,
        data: Data | None,
        *,
        previous: JsonObject | None = None,
        progress: Progress = SILENT,
    ) -> Self:
        """The chain with the blocks that are kept: see `Shrink.resolve`."""
        before = (previous or {}).get("shrink")
        shrink = self.shrink.resolve(teacher, data, previous=before, progress=progress)
        return replace(self, shrink=shrink)

    @property
    def builds_student(self) -> bool:
        """Whether the smaller network is built of other options."""
        return self.shrink.builds_student

    def summary(self) -> str:
        """shrink to depth 2, 8 -> 4 -> 2 steps."""
        return f"{self.shrink.summary()}, {self.then.summary()}"


@dataclass(frozen=True, kw_only=True)
class Chain(VTeacherFirst, Parts):
    """Shrink, guide, halve: a smaller network, optionally one call for any guidance scale, fewer steps.

    A teacher that predicts eps becomes a v teacher first.

    Raises:
        ConfigError: options of its parts that do not go together.
    """

    @classmethod
    def options(cls) -> type:
        """The flat options of all parts."""
        return ChainOptions


@dataclass(frozen=True, kw_only=True)
class ChainOptions(VTeacherOptions, HalvingOptions, Shrink):
    """Options of `Chain`, flat."""

    stop: Steps = 4
    """Steps the last student takes."""
    guidance_range: tuple[NotNegative, NotNegative] | None = None
    """Lowest and highest guidance scale that the students take as an input; without it, no such stage."""
    guided_updates: Updates | None = None
    """Updates of the stage that learns the guided network. By the data: a quarter of a teacher's default."""
    guidance_embed_dim: int = 256
    """Number of Fourier features of the guidance scale: even."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.build()

    def build(self) -> Chain:
        """The chain of these options."""
        options = {option.name: getattr(self, option.name) for option in fields(Shrink)}
        return Chain(shrink=Shrink(**options), then=self._then(), **self.v_teacher_options)

    def _then(self) -> GuidedDistillation | Progressive:
        halving = self.halvings(self.weighting)
        if self.guidance_range is None:
            self._refuse_unguided()
            return halving or Progressive(start=self.start, stop=self.stop)
        return GuidedDistillation(
            guidance_range=self.guidance_range,
            updates=self.guided_updates,
            weighting=self.weighting,
            levels=self.levels,
            guidance_embed_dim=self.guidance_embed_dim,
            halving=halving,
        )

    def _refuse_unguided(self) -> None:
        for name in ("guided_updates", "guidance_embed_dim"):
            if getattr(self, name) != getattr(ChainOptions, name):
                raise ConfigError(
                    f"{name} is for the stage that learns guidance, which needs a guidance_range: give "
                    f"one, such as (1, 3), or leave {name} out"
                )
