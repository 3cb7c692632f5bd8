"""The engine: one loop for every method, runs that go on where they stopped, one process or many."""

from halfstep.errors import Stopped
from halfstep.training.classifiers import train_classifier
from halfstep.training.denoisers import distill, train
from halfstep.training.jobs import RunOptions
from halfstep.training.knowledge import distill_classifier
from halfstep.training.settings import TrainingConfig
from halfstep.training.watch import Silent, Watch

__all__ = [
    "RunOptions",
    "Silent",
    "Stopped",
    "TrainingConfig",
    "Watch",
    "distill",
    "distill_classifier",
    "train",
    "train_classifier",
]
