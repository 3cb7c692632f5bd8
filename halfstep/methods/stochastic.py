"""The student of the stochastic N-step sampler: one prediction spans two steps of its grid.

Meng et al., "On Distillation of Guided Diffusion Models", CVPR 2023, Algorithm 3.  It is progressive
distillation with jumps of 2 / N, but for the last step, t = 1 / N, which has 1 / N before it alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from halfstep.batch import Batch
from halfstep.denoiser import Denoiser, Denoises, level_of, Teacher
from halfstep.errors import ConfigError
from halfstep.methods.base import errors, Stage
from halfstep.methods.progressive import on_grid, Progressive, refuse_blind, two_step_target
from halfstep.noise import Draw
from halfstep.prediction import Prediction
from halfstep.timegrids import grid, Times
from halfstep.weighting import truncated_snr, Weighting, WEIGHTINGS


@dataclass(frozen=True, kw_only=True)
class Stochastic(Progressive):
    """Halve the number of steps of the stochastic sampler, again and again (Meng et al. 2023).

    A student of 2 steps spans both from t = 1, so it is the student of 1 step too: `stop` 1 ends there.
    """

    made_for: ClassVar[str] = "stochastic"

    def __post_init__(self) -> None:
        if self.start == 2:
            raise ConfigError(
                "the stochastic sampler spans 2 steps with one call, so from 2 steps nothing is left to "
                "halve: write start=4 or more"
            )
        super().__post_init__()

    @property
    def counts(self) -> list[int]:
        """Steps of the students, the most first; from 2 to 1 there is nothing to learn."""
        return [steps for steps in super().counts if steps > 1]

    def stages(self, teacher: Teacher) -> Iterator[Stage]:
        times = self.times or grid(self.grid, self.start, teacher.schedule)
        refuse_blind(teacher, times[0])
        weighting = WEIGHTINGS[self.weighting]
        for halving, steps in enumerate(self.counts):
            student = teacher.twin()  #                                        theta <- eta
            halve = HalveJumps(teacher.freeze(), times, weighting, self.target_clip or None)
            times = times[::2]  #                                              N <- N / 2
            updates = self.updates_for(halving, steps)
            name = f"{steps:04d}-steps"
            yield Stage(name, student, halve, updates, times, made_for=self.made_for)
            teacher = student  #                                               eta <- theta


@dataclass(frozen=True)
class HalveJumps:
    """Teach the student to do in one jump what the teacher does in two, each two steps of its grid long."""

    teacher: Denoises
    times: Times
    """The teacher's grid; the student's is every other time of it."""
    weighting: Weighting = truncated_snr
    clip: float | None = None
    forwards = 5

    def __call__(self, student: Denoiser, batch: Batch, draw: Draw) -> Tensor:
        x0, end = batch.x0, len(self.times) - 1
        i = 2 * draw.integers(len(self.times) // 2)  #                    t = i / N, i ~ {1, ..., N}
        # i = 1 has one step of 1 / N before it: the first of the two has no length.
        mid = i + 2 * (i + 2 < end)
        t, t_mid, t_end = on_grid(self.times, i, mid, (i + 4).clamp(max=end))
        eps = draw.normal(x0)
        x_t = level_of(self.teacher.schedule, t, x0).mix(x0, eps)
        target = two_step_target(self.teacher, x_t, t, t_mid, t_end, batch.cond, clip=self.clip)
        guess: Prediction = student(x_t, t, batch.cond)
        return self.weighting(*errors(guess, target))
