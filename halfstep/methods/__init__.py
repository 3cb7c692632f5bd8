"""Methods: one file per paper or idea.  `METHODS` lists those that `halfstep distill` offers."""

from halfstep.methods.base import Method
from halfstep.methods.classifiers.knowledge import KnowledgeDistillation
from halfstep.methods.diffusion.cached_walks import CachedWalks
from halfstep.methods.diffusion.chain import Chain
from halfstep.methods.diffusion.denoising import Denoising
from halfstep.methods.diffusion.encoder import Encoder
from halfstep.methods.diffusion.flow_map import FlowMap
from halfstep.methods.diffusion.guided import GuidedDistillation
from halfstep.methods.diffusion.multistep_consistency import MultistepConsistency
from halfstep.methods.diffusion.parallel_decoding import ParallelDecoding
from halfstep.methods.diffusion.progressive import Progressive
from halfstep.methods.diffusion.reparameterise import Reparameterise
from halfstep.methods.diffusion.shrink import Shrink
from halfstep.methods.diffusion.stochastic import Stochastic
from halfstep.methods.diffusion.two_step_target import two_step_target
from halfstep.methods.pipeline_like import DenoiserOnly, PipelineLike
from halfstep.methods.stages import Objective, Stage, StagePlan

METHODS: dict[str, type[Method]] = {
    "progressive": Progressive,
    "guided": GuidedDistillation,
    "stochastic": Stochastic,
    "flow-map": FlowMap,
    "multistep-consistency": MultistepConsistency,
    "cached-walks": CachedWalks,
    "parallel-decoding": ParallelDecoding,
    "encoder": Encoder,
    "reparameterise": Reparameterise,
    "shrink": Shrink,
    "plan": Chain,
}
"""The methods of diffusion models that `halfstep distill` offers, by name."""

__all__ = [
    "METHODS",
    "CachedWalks",
    "Chain",
    "DenoiserOnly",
    "Denoising",
    "Encoder",
    "FlowMap",
    "GuidedDistillation",
    "KnowledgeDistillation",
    "Method",
    "MultistepConsistency",
    "Objective",
    "ParallelDecoding",
    "PipelineLike",
    "Progressive",
    "Reparameterise",
    "Shrink",
    "Stage",
    "StagePlan",
    "Stochastic",
    "two_step_target",
]
