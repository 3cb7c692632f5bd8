"""Methods: one file per paper or idea.  `METHODS` lists those that `halfstep distill` offers."""

from halfstep.methods.base import DenoiserOnly, Method, Objective, PipelineLike, Stage, StagePlan
from halfstep.methods.denoising import Denoising
from halfstep.methods.encoder import Encoder
from halfstep.methods.guided import GuidedDistillation
from halfstep.methods.knowledge import KnowledgeDistillation
from halfstep.methods.plan import Chain
from halfstep.methods.progressive import Progressive, two_step_target
from halfstep.methods.reparameterise import Reparameterise
from halfstep.methods.shrink import Shrink
from halfstep.methods.stochastic import Stochastic

METHODS: dict[str, type[Method]] = {
    "progressive": Progressive,
    "guided": GuidedDistillation,
    "stochastic": Stochastic,
    "encoder": Encoder,
    "reparameterise": Reparameterise,
    "shrink": Shrink,
    "plan": Chain,
}
"""The methods of diffusion models that `halfstep distill` offers, by name."""

__all__ = [
    "METHODS",
    "Chain",
    "DenoiserOnly",
    "Denoising",
    "Encoder",
    "GuidedDistillation",
    "KnowledgeDistillation",
    "Method",
    "Objective",
    "PipelineLike",
    "Progressive",
    "Reparameterise",
    "Shrink",
    "Stage",
    "StagePlan",
    "Stochastic",
    "two_step_target",
]
