"""The engine: one loop for every method, runs that go on where they stopped, one process or many."""

from halfstep.training.jobs import distill, train
from halfstep.training.loop import Silent, Stopped, Watch
from halfstep.training.settings import Training

__all__ = ["Silent", "Stopped", "Training", "Watch", "distill", "train"]
