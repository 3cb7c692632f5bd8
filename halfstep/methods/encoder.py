"""The encoder: progressive distillation run towards noise (Meng et al. 2023).

From t to t + 1 / N in one DDIM step, what the teacher does in two.  With kappa = sigma / alpha the target
is eps~ = [(kappa_m - kappa_t) eps_1 + (kappa_e - kappa_m) eps_2] / (kappa_e - kappa_t): `two_step_target` on
the grid read backwards.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from halfstep.denoiser import Teacher
from halfstep.errors import ConfigError
from halfstep.methods.base import Stage
from halfstep.methods.progressive import Halve, Progressive
from halfstep.samplers.encode import refuse_blind_to_noise
from halfstep.timegrids import grid
from halfstep.weighting import forgets_eps, WEIGHTINGS


@dataclass(frozen=True, kw_only=True)
class Encoder(Progressive):
    """Halve the number of steps from data to noise, again and again (Meng et al. 2023)."""

    weighting: str = "snr+1"
    """Loss weight on the x0 error: snr (the eps error), truncated-snr or snr+1 (the v error)."""
    made_for: ClassVar[str] = "encode"

    def _refuse_weighting(self) -> None:
        if self.target_clip:
            raise ConfigError(
                "an encoder starts at t = 0, where the eps of a clipped image would be the clipping divided "
                "by no noise: leave target_clip out"
            )
        if forgets_eps(WEIGHTINGS[self.weighting]):
            raise ConfigError(
                f"the weight '{self.weighting}' leaves nothing of an eps error at t = 0, where an encoder "
                "starts: write weighting='snr+1', 'truncated-snr' or 'snr'"
            )

    def stages(self, teacher: Teacher) -> Iterator[Stage]:
        times = self.times or grid(self.grid, self.start, teacher.schedule)
        refuse_blind_to_noise(teacher, times[-1])
        weighting = WEIGHTINGS[self.weighting]
        for halving, steps in enumerate(self.counts):
            student = teacher.twin()  #                                        theta <- eta
            # t = i / N, i ~ {0, ..., N - 1}: the grid read backwards.
            halve = Halve(teacher.freeze(), times[::-1], weighting)
            times = times[::2]  #                                              N <- N / 2
            updates = self.updates_for(halving, steps)
            name = f"{steps:04d}-steps"
            yield Stage(name, student, halve, updates, times, made_for=self.made_for)
            teacher = student  #                                               eta <- theta
