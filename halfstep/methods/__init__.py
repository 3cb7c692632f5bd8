"""Methods: one file per paper or idea.  `METHODS` is the list that the command line and docs read."""

from halfstep.methods.base import Method, Objective, Stage
from halfstep.methods.denoising import Denoising
from halfstep.methods.guided import GuidedDistillation
from halfstep.methods.progressive import Progressive, two_step_target
from halfstep.methods.reparameterise import Reparameterise

METHODS = {
    "progressive": Progressive,
    "guided": GuidedDistillation,
    "reparameterise": Reparameterise,
}
"""What `halfstep distill` offers."""

__all__ = [
    "METHODS",
    "Denoising",
    "GuidedDistillation",
    "Method",
    "Objective",
    "Progressive",
    "Reparameterise",
    "Stage",
    "two_step_target",
]
