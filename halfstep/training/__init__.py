"""The engine: one loop for every method, runs that go on where they stopped, one process or many."""

from halfstep.training.jobs import distill, train
from halfstep.training.loop import Stopped
from halfstep.training.settings import Training
from halfstep.training.watch import Silent, Watch

__all__ = ["Silent", "Stopped", "Training", "Watch", "distill", "train"]
