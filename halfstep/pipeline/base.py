"""The fields of a pipeline, checked, and what follows from them alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Self

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from halfstep.batch import Cond, NAMED, Null
from halfstep.config.validate import Count, CountOrNone, NotNegative, Validated
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import Clip, Clipping
from halfstep.diffusion.samplers import PublishedScheduler
from halfstep.diffusion.time_grids import checked, Direction, on_schedule, Steps, Times
from halfstep.errors import ConfigError
from halfstep.models.codec import Codec, Texts
from halfstep.models.guidance_embedding import reads_scale
from halfstep.pipeline.samplers import (
    check_sampler,
    check_student,
    HAVE_GRIDS,
    KEEP_EPS,
    refuse_untold,
    student_grid,
    teacher_grid,
)

SIZES: Mapping[str, Callable[[int, int], list[float]]] = {
    "time_ids": lambda height, width: [height, width, 0, 0, height, width],
    "resolution": lambda height, width: [height, width],
    "aspect_ratio": lambda height, width: [height / width],
}
"""Named tensors of diffusers' networks that tell of the image and not of its text, by its size in pixels:
guidance keeps them."""


@dataclass(frozen=True)
class Origin:
    """The diffusers pipeline of a model: its class, and its folder or name on the hub."""

    pipeline: str
    source: str


@dataclass(frozen=True, eq=False)
class PipelineFields(Validated):
    """The fields of a `Pipeline`, which documents them."""

    denoiser: Denoiser
    shape: tuple[Count, ...]
    times: tuple[Times, ...] = ()
    class_names: tuple[str, ...] = ()
    null: CountOrNone | None = None
    clip: Annotated[float, Gt(0)] | None = None
    sampler: str = "ddim"
    steps: Annotated[Steps, Ge(1)] = 64
    codec: Codec | None = None
    empty: Tensor | None = None
    texts: Texts | None = None
    guidance_range: tuple[NotNegative, NotNegative] | None = None
    direction: Direction = "denoise"
    added: Mapping[str, Tensor] = field(default_factory=dict)
    scheduler: PublishedScheduler | None = None
    clipping: Clipping = "x0-and-eps"
    origin: Origin | None = None
    guidance_norm: CountOrNone = 0
    fine_times: Times = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shape:
            raise ConfigError(
                "a sample has at least one axis, got shape (): write for example (2,)"
            )
        if self.guidance_range is not None and not self.guidance_range[0] <= self.guidance_range[1]:
            raise ConfigError(
                f"guidance_range is the lowest scale and the highest, got {self.guidance_range}: write "
                "them in order"
            )
        if self.clip is None and self.clipping != "x0-and-eps":
            raise ConfigError(
                f"clipping='{self.clipping}' is the kind of a clip, and this pipeline clips nothing: give "
                "clip, for example clip=1.0, or leave clipping out"
            )
        for times in self.times:
            checked(times)
        self._check_fine_times()
        check_sampler(self.sampler, self.scheduler)
        if self.times and self.sampler in HAVE_GRIDS:
            raise ConfigError(
                f"'{self.sampler}' has a grid of its own and so has a student: write sampler='ddim'"
            )
        rows = getattr(self.denoiser.net, "num_classes", None)
        if self.null is not None and rows is not None and self.null >= rows:
            raise ConfigError(
                f"null is the label of no class, below the network's num_classes = {rows}, got {self.null}: "
                f"write for example null={rows - 1}"
            )
        _check_added(self.added)

    def _check_fine_times(self) -> None:
        """`ConfigError` unless the grids' times are among the fine ones, with their ends."""
        if not self.fine_times:
            return
        checked(self.fine_times)
        ends = self.fine_times[0], self.fine_times[-1]
        for times in self.times:
            if (times[0], times[-1]) != ends or not set(times) <= set(self.fine_times):
                raise ConfigError(
                    f"a grid of {len(times) - 1} steps has other times than fine_times, whose steps it takes "
                    "several of at once: give times that are among them, with the first and the last"
                )

    @property
    def step_counts(self) -> tuple[int, ...]:
        """The numbers of steps of a student's grids; empty for a network without."""
        return tuple(len(times) - 1 for times in self.times)

    @property
    def default_steps(self) -> int:
        """The number of steps by default: `steps`, or a student's fewest."""
        if not self.times or (self.fine_times and self.steps >= min(self.step_counts)):
            return self.steps
        return min(self.step_counts)

    @property
    def at_each_count(self) -> list[Self]:
        """The student at each of its numbers of steps, the most first; itself if it has but one."""
        if not self.fine_times:
            return [self]
        grids = sorted(self.times, key=len, reverse=True)
        return [replace(self, times=(times,), steps=len(times) - 1) for times in grids]

    def on_grids(self, *grids: Times) -> Self:
        """A copy that samples on these grids; by ddim, if its sampler has a grid of its own."""
        sampler = "ddim" if self.sampler in HAVE_GRIDS else self.sampler
        return replace(self, times=grids, sampler=sampler)

    @property
    def reference_sampler(self) -> str:
        """The sampler that students are measured against: a teacher's DDIM, or a student's sampler."""
        return self.sampler if self.times else "ddim"

    def grid(self, steps: int | None = None, sampler: str | None = None) -> Times:
        """The grid of `steps` steps; `ConfigError` lists a student's grids if none has as many.

        sampler  to use on the grid, by default the pipeline's
        """
        sampler = sampler or self.sampler
        if self.times:
            check_student(sampler, self.sampler, self.direction)
        refuse_untold(sampler, self.times)
        check_sampler(sampler, self.scheduler)
        return self._times(steps, sampler)

    def _times(self, steps: int | None, sampler: str = "ddim") -> Times:
        schedule = self.denoiser.schedule
        steps = self.default_steps if steps is None else steps
        if self.times:
            times = student_grid(self.times, self.sampler, steps, sampler, self.fine_times)
        else:
            times = teacher_grid(steps, sampler, schedule, self.scheduler)
        return on_schedule(times, schedule)

    def clip_of(self, sampler: str) -> Clip | None:
        """How sampling by this sampler clips; None does not clip.

        Clipping "x0" leaves eps in ddim and stochastic.  Steps of every other sampler go through x_t and the
        clipped x0, which determine eps: there it is "x0-and-eps".
        """
        if self.clip is None:
            return None
        return Clip(self.clip, self.clipping if sampler in KEEP_EPS else "x0-and-eps")

    @property
    def unconditional(self) -> Null | None:
        """The null label, or the states of the empty text; None if it has neither.

        With named tensors it is a condition of one row, with all of these but `SIZES`.
        """
        added = {k: v for k, v in self.text_defaults.added.items() if k not in SIZES}
        if not added:
            return self.null if self.empty is None else self.empty
        label = None if self.null is None else torch.tensor([self.null])
        return replace(self.text_defaults, label=label, added=added)

    @property
    def takes_scale(self) -> bool:
        """Whether its network takes the guidance scale as an input; that of a LoRA holds its one scale."""
        if self.guidance_range is None:
            return False
        low, high = self.guidance_range
        return low < high or reads_scale(self.denoiser.net)

    @property
    def middle_scale(self) -> float | None:
        """The middle of `guidance_range`, where an export keeps the input for it; None without one."""
        scales = self.guidance_range if self.takes_scale else None
        return None if scales is None else sum(scales) / 2

    @property
    def pixels(self) -> tuple[int, ...]:
        """Height and width of its images in pixels; empty for points."""
        factor = 1 if self.codec is None else self.codec.factor
        return tuple(side * factor for side in self.shape[1:])

    @property
    def text_defaults(self) -> Cond:
        """The states and named tensors of the empty text, in one row; an empty `Cond` without them."""
        states = None if self.empty is None else self.empty[None]
        return Cond(None, states, added={name: value[None] for name, value in self.added.items()})

    @property
    def device(self) -> torch.device:
        """The device of its network; the CPU if that has no parameters."""
        return next((p.device for p in self.denoiser.parameters()), torch.device("cpu"))


def _check_added(added: Mapping[str, Tensor]) -> None:
    """`ConfigError` unless these are finite tensors with names of their own."""
    for name, value in added.items():
        if name in NAMED:
            raise ConfigError(
                f"{name} is no name of an added tensor, since conditions have a field of that name: leave it "
                "out of added"
            )
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"added holds tensors by name, and {name} is a {type(value).__name__}: give the values of "
                "one sample as a tensor"
            )
        if not bool(value.isfinite().all()):
            raise ConfigError(
                f"{name} of added has values that are nan or infinite: give the encoder's values for the "
                "empty text"
            )
