"""The part of a pipeline that methods read, and a denoiser alone in its place."""

from dataclasses import dataclass
from typing import Protocol

from halfstep.batch import Null
from halfstep.diffusion.denoiser import Teacher
from halfstep.diffusion.prediction import Clipping
from halfstep.diffusion.time_grids import Direction, Times

Range = tuple[float, float]
"""The lowest and the highest guidance scale."""


class PipelineLike(Protocol):
    """The part of a `Pipeline` that methods read.

    denoiser       the network with its schedule and parameterisation, with or without guidance
    unconditional  the null label or the states of the empty text; None for a network without either
    times          the grids of a student; empty for a network trained at every time
    guidance_range the range of guidance scales that the network takes as an input
    guidance_norm  side of the patches on which guidance keeps the norm of the output; 0 for none
    clip           the sampler clips images to [-clip, clip] at every step, or None
    sampler        the student's sampler, ddim or stochastic
    direction      "denoise", or "invert" for a student that goes from data to noise
    clipping       "x0-and-eps" recomputes the eps of a clipped image; "x0" leaves it as predicted
    """

    @property
    def denoiser(self) -> Teacher: ...
    @property
    def unconditional(self) -> Null | None: ...
    @property
    def times(self) -> tuple[Times, ...]: ...
    @property
    def guidance_range(self) -> Range | None: ...
    @property
    def guidance_norm(self) -> int: ...
    @property
    def clip(self) -> float | None: ...
    @property
    def sampler(self) -> str: ...
    @property
    def direction(self) -> Direction: ...
    @property
    def clipping(self) -> Clipping: ...


@dataclass(frozen=True, eq=False)
class DenoiserOnly:
    """A denoiser as a method's teacher, without a pipeline around it."""

    denoiser: Teacher
    unconditional: Null | None = None
    times: tuple[Times, ...] = ()
    guidance_range: Range | None = None
    guidance_norm: int = 0
    clip: float | None = None
    sampler: str = "ddim"
    direction: Direction = "denoise"
    clipping: Clipping = "x0-and-eps"
