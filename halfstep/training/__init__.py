"""The engine: one loop for every method, runs that go on where they stopped, one process or many."""

from halfstep.errors import Stopped
from halfstep.training.api import distill, train
from halfstep.training.classifiers.api import train_classifier
from halfstep.training.classifiers.distillation import distill_classifier
from halfstep.training.config import TrainingConfig
from halfstep.training.progress import ProgressCallback
from halfstep.training.stages import RunOptions

__all__ = [
    "ProgressCallback",
    "RunOptions",
    "Stopped",
    "TrainingConfig",
    "distill",
    "distill_classifier",
    "train",
    "train_classifier",
]
