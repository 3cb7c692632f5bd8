"""The pace of a training and its memory, for the log."""

import time
from collections.abc import Callable

import psutil
import torch


class Pace:
    """Samples a second since the last `restart`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Begin to count again, so that the time of saving and drawing is not counted."""
        self._since = self._clock()

    def samples_per_second(self, samples: int) -> float:
        """The pace of so many samples, over all processes."""
        return samples / max(self._clock() - self._since, 1e-9)


def memory_in_use(device: torch.device) -> int:
    """Bytes of memory: at its peak on a GPU, of this process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return int(psutil.Process().memory_info().rss)
