"""Methods: one file per paper or idea.  `METHODS` is the list that the command line and docs read."""

from halfstep.methods.base import Method, Objective, Stage
from halfstep.methods.denoising import Denoising
from halfstep.methods.encoder import Encoder
from halfstep.methods.guided import GuidedDistillation
from halfstep.methods.knowledge import KnowledgeDistillation
from halfstep.methods.plan import Plan
from halfstep.methods.progressive import Progressive, two_step_target
from halfstep.methods.reparameterise import Reparameterise
from halfstep.methods.shrink import Shrink
from halfstep.methods.stochastic import Stochastic

METHODS = {
    "progressive": Progressive,
    "guided": GuidedDistillation,
    "stochastic": Stochastic,
    "encoder": Encoder,
    "reparameterise": Reparameterise,
    "knowledge": KnowledgeDistillation,
    "shrink": Shrink,
    "plan": Plan,
}
"""What `halfstep distill` offers."""

__all__ = [
    "METHODS",
    "Denoising",
    "Encoder",
    "GuidedDistillation",
    "KnowledgeDistillation",
    "Method",
    "Objective",
    "Plan",
    "Progressive",
    "Reparameterise",
    "Shrink",
    "Stage",
    "Stochastic",
    "two_step_target",
]
