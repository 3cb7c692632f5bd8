"""The student of the stochastic N-step sampler: one prediction spans two steps of its grid.

Meng et al., "On Distillation of Guided Diffusion Models", CVPR 2023, Algorithm 3.  It is progressive
distillation with jumps of 2 / N, except for the last step, t = 1 / N, which has only 1 / N left.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from halfstep.diffusion.denoiser import Teacher
from halfstep.diffusion.loss_weighting import WEIGHTINGS
from halfstep.diffusion.prediction import Clip, Prediction
from halfstep.diffusion.samplers.stochastic import jump
from halfstep.errors import ConfigError
from halfstep.methods.diffusion.few_steps import FewStepsFromV
from halfstep.methods.diffusion.matching import arriving_at, on_grid, Places
from halfstep.methods.diffusion.progressive import Halve, Halving
from halfstep.methods.stages import StagePlan


@dataclass(frozen=True, kw_only=True)
class Stochastic(FewStepsFromV, Halving):
    """Halve the number of steps of the stochastic sampler, again and again (Meng et al. 2023).

    A student of 2 steps spans both from t = 1, so it is the student of 1 step too: `stop` 1 ends there.

    Raises:
        ConfigError: as of `Progressive`; `start` below 4, as one call already spans 2 steps.
    """

    sampler: ClassVar[str] = "stochastic"
    walks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.start == 2:
            raise ConfigError(
                "the stochastic sampler spans 2 steps with one call, so 2 steps cannot be halved: write "
                "start=4 or more"
            )
        super().__post_init__()

    @property
    def counts(self) -> list[int]:
        """The students' numbers of steps, the largest first, without 1, which equals 2."""
        return [steps for steps in super().counts if steps > 1]

    def objective(
        self, teacher: Teacher, stage: StagePlan, clip: Clip | None = None
    ) -> "HalveJumps":
        """The objective of a stage's student.

        Args:
            teacher: the frozen denoiser.
            stage: with the grids of both.
            clip: of the targets; None does not clip.
        """
        return HalveJumps(teacher, stage.teacher_times, WEIGHTINGS[self.weighting], clip)


@dataclass(frozen=True)
class HalveJumps(Halve):
    """Match the student's one jump to the teacher's two, each two steps of the teacher's grid long."""

    def steps_from(self, i: Tensor) -> tuple[Tensor, ...]:
        """The grid indices of the start of the student's jump and the ends of the teacher's two."""
        end = len(self.times) - 1
        # i = 1 has one step of 1 / N left: the first of the two has no length.
        mid = i + 2 * (i + 2 < end)
        return i, mid, (i + 4).clamp(max=end)

    def walk_places(self, k: Tensor, jitter: Tensor) -> Places:
        """t, t_mid and t_end, and the next time of the student's grid, to which noise leads back."""
        return *super().walk_places(k, jitter), *on_grid(self.times, 2 * k + 2)

    def landing(
        self, x_t: Tensor, places: Places, pred: Prediction, fresh: Callable[[], Tensor]
    ) -> Tensor:
        schedule, (*_, t_end, t_next) = self.teacher.schedule, places
        end, following = (arriving_at(schedule, t, x_t) for t in (t_end, t_next))
        return jump(pred, end, following, fresh)
