"""halfstep: how few steps can your diffusion model get away with, and what does it cost?

The public names load when they are first used, so that importing the package, and `halfstep --help`,
stay cheap.
"""

from importlib import import_module
from typing import Any, TYPE_CHECKING

from halfstep.version import __version__ as __version__

if TYPE_CHECKING:
    from halfstep.batch import Batch as Batch, Cond as Cond
    from halfstep.data import Augmentation as Augmentation, Dataset as Dataset, load as load_data
    from halfstep.diffusion.denoiser import Denoiser as Denoiser, NetTime as NetTime
    from halfstep.diffusion.guidance import ClassifierGuided as ClassifierGuided, Guided as Guided
    from halfstep.diffusion.prediction import (
        Eps as Eps,
        V as V,
        Velocity as Velocity,
        X0 as X0,
        X0AndEps as X0AndEps,
    )
    from halfstep.diffusion.samplers import sample as sample
    from halfstep.diffusion.schedules import (
        BetaTable as BetaTable,
        Cosine as Cosine,
        Karras as Karras,
        RectifiedFlow as RectifiedFlow,
        VPLinear as VPLinear,
    )
    from halfstep.errors import HalfstepError as HalfstepError
    from halfstep.evaluation.quality_gate import QualityGate as QualityGate
    from halfstep.evaluation.setups import Evaluation as Evaluation
    from halfstep.hub import load_published as load_published
    from halfstep.methods import (
        Chain as Chain,
        Denoising as Denoising,
        Encoder as Encoder,
        GuidedDistillation as GuidedDistillation,
        KnowledgeDistillation as KnowledgeDistillation,
        Method as Method,
        Progressive as Progressive,
        Reparameterise as Reparameterise,
        Shrink as Shrink,
        Stochastic as Stochastic,
    )
    from halfstep.methods.classifiers.supervised import Classification as Classification
    from halfstep.models import build as build
    from halfstep.models.classifiers.checkpoint import load_classifier as load_classifier
    from halfstep.models.with_guidance import with_guidance as with_guidance
    from halfstep.pipeline import Pipeline as Pipeline
    from halfstep.progress import Progress as Progress
    from halfstep.training import (
        distill as distill,
        distill_classifier as distill_classifier,
        train as train,
        train_classifier as train_classifier,
        TrainingConfig as TrainingConfig,
    )
    from halfstep.training.run_folder import RunFolder as RunFolder
    from halfstep.workflows.compress import compress as compress
    from halfstep.workflows.evaluate import evaluate as evaluate
    from halfstep.workflows.export import export as export
    from halfstep.workflows.report import write_report as write_report

_HOME = {
    "Augmentation": "data",
    "Batch": "batch",
    "BetaTable": "diffusion.schedules",
    "Chain": "methods",
    "Classification": "methods.classifiers.supervised",
    "ClassifierGuided": "diffusion.guidance",
    "Cond": "batch",
    "Cosine": "diffusion.schedules",
    "Dataset": "data",
    "Denoiser": "diffusion.denoiser",
    "Denoising": "methods",
    "Encoder": "methods",
    "Eps": "diffusion.prediction",
    "Evaluation": "evaluation.setups",
    "Guided": "diffusion.guidance",
    "GuidedDistillation": "methods",
    "HalfstepError": "errors",
    "Karras": "diffusion.schedules",
    "KnowledgeDistillation": "methods",
    "Method": "methods",
    "NetTime": "diffusion.denoiser",
    "Pipeline": "pipeline",
    "Progress": "progress",
    "Progressive": "methods",
    "QualityGate": "evaluation.quality_gate",
    "RectifiedFlow": "diffusion.schedules",
    "Reparameterise": "methods",
    "RunFolder": "training.run_folder",
    "Shrink": "methods",
    "Stochastic": "methods",
    "TrainingConfig": "training",
    "V": "diffusion.prediction",
    "VPLinear": "diffusion.schedules",
    "Velocity": "diffusion.prediction",
    "X0": "diffusion.prediction",
    "X0AndEps": "diffusion.prediction",
    "build": "models",
    "compress": "workflows.compress",
    "distill": "training",
    "distill_classifier": "training",
    "evaluate": "workflows.evaluate",
    "export": "workflows.export",
    "load_classifier": "models.classifiers.checkpoint",
    "load_data": "data:load",
    "load_published": "hub",
    "sample": "diffusion.samplers",
    "train": "training",
    "train_classifier": "training",
    "with_guidance": "models.with_guidance",
    "write_report": "workflows.report",
}
__all__ = [
    "X0",
    "Augmentation",
    "Batch",
    "BetaTable",
    "Chain",
    "Classification",
    "ClassifierGuided",
    "Cond",
    "Cosine",
    "Dataset",
    "Denoiser",
    "Denoising",
    "Encoder",
    "Eps",
    "Evaluation",
    "Guided",
    "GuidedDistillation",
    "HalfstepError",
    "Karras",
    "KnowledgeDistillation",
    "Method",
    "NetTime",
    "Pipeline",
    "Progress",
    "Progressive",
    "QualityGate",
    "RectifiedFlow",
    "Reparameterise",
    "RunFolder",
    "Shrink",
    "Stochastic",
    "TrainingConfig",
    "V",
    "VPLinear",
    "Velocity",
    "X0AndEps",
    "build",
    "compress",
    "distill",
    "distill_classifier",
    "evaluate",
    "export",
    "load_classifier",
    "load_data",
    "load_published",
    "sample",
    "train",
    "train_classifier",
    "with_guidance",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'halfstep' has no attribute '{name}'")
    home, _, other = _HOME[name].partition(":")
    return getattr(import_module(f"halfstep.{home}"), other or name)
