"""The encoder: progressive distillation run towards noise (Meng et al. 2023).

One DDIM step from t to t + 1 / N replaces two of the teacher's.  With kappa = sigma / alpha the target is
eps~ = [(kappa_m - kappa_t) eps_1 + (kappa_e - kappa_m) eps_2] / (kappa_e - kappa_t): `two_step_target` on
the reversed grid.
"""

from dataclasses import dataclass
from typing import ClassVar

from halfstep.diffusion.denoiser import Teacher
from halfstep.diffusion.loss_weighting import forgets_eps, WEIGHTINGS
from halfstep.diffusion.prediction import Clip
from halfstep.diffusion.samplers.invert import refuse_blind_to_noise
from halfstep.diffusion.time_grids import Direction
from halfstep.errors import ConfigError, unknown
from halfstep.methods.diffusion.progressive import Halve, Halving
from halfstep.methods.pipeline_like import PipelineLike
from halfstep.methods.stages import StagePlan


@dataclass(frozen=True, kw_only=True)
class Encoder(Halving):
    """Halve the number of steps from data to noise, again and again (Meng et al. 2023).

    Raises:
        ConfigError: as of `Progressive`; a weight that ignores errors at t = 0, where an encoder starts.
    """

    weighting: str = "snr+1"
    """Loss weight on the x0 error: snr (the eps error), truncated-snr or snr+1 (the v error)."""
    direction: ClassVar[Direction] = "invert"
    gated: ClassVar[bool] = False

    def _check_weighting(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise unknown("weighting", self.weighting, WEIGHTINGS)
        if self.target_clip:
            raise ConfigError(
                "an encoder starts at t = 0, where the eps of a clipped image would be the clipping error "
                "divided by no noise: leave target_clip out"
            )
        if forgets_eps(WEIGHTINGS[self.weighting]):
            raise ConfigError(
                f"the weight '{self.weighting}' ignores an eps error at t = 0, where an encoder starts: "
                "write weighting='snr+1', 'truncated-snr' or 'snr'"
            )

    def check(self, teacher: PipelineLike) -> None:
        """Refuse a teacher that cannot encode on this grid.

        Args:
            teacher: the pipeline to distil.

        Raises:
            ConfigError: a teacher whose output does not determine eps at the data's end of the grid.
        """
        super().check(teacher)
        refuse_blind_to_noise(teacher.denoiser, self.plan(teacher)[0].teacher_times[-1])

    def objective(self, teacher: Teacher, stage: StagePlan, clip: Clip | None = None) -> Halve:
        """The objective of a stage's student: t = i / N, i ~ {0, ..., N - 1}.

        Args:
            teacher: the frozen denoiser.
            stage: with the grids of both.
            clip: of the targets; None does not clip.
        """
        return Halve(teacher, stage.teacher_times[::-1], WEIGHTINGS[self.weighting])
