"""Whoever shows progress, and the numbers that are shown."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from halfstep.methods.base import Stage
from halfstep.training.signals import Asked


class Watch(Protocol):
    """Whoever shows progress."""

    def begin(self, stage: Stage, update: int) -> None: ...
    def step(self, update: int, rate: float) -> None: ...
    def measure(self, loss: float) -> None: ...
    def end(self, stage: Stage) -> None: ...
    def note(self, text: str) -> None: ...


class Silent:
    """Shows nothing."""

    def begin(self, stage: Stage, update: int) -> None: ...
    def step(self, update: int, rate: float) -> None: ...
    def measure(self, loss: float) -> None: ...
    def end(self, stage: Stage) -> None: ...
    def note(self, text: str) -> None: ...


class Notes:
    """Progress of which a watch shows the notes alone."""

    def __init__(self, watch: Watch):
        self.note = watch.note

    def expect(self, steps: int) -> None: ...
    def advance(self, steps: int = 1) -> None: ...


class Leaving:
    """A watch that prints for a reader who may leave, as `| head` does: the run is asked to stop then."""

    def __init__(self, watch: Watch, asked: Asked):
        self._watch, self._asked = watch, asked

    def _tell(self, tell: Callable[[], None]) -> None:
        try:
            tell()
        except BrokenPipeError as error:
            self._asked.cause = error
            self._asked.set()

    def begin(self, stage: Stage, update: int) -> None:
        self._tell(partial(self._watch.begin, stage, update))

    def step(self, update: int, rate: float) -> None:
        self._tell(partial(self._watch.step, update, rate))

    def measure(self, loss: float) -> None:
        self._tell(partial(self._watch.measure, loss))

    def end(self, stage: Stage) -> None:
        self._tell(partial(self._watch.end, stage))

    def note(self, text: str) -> None:
        self._tell(partial(self._watch.note, text))


class Tally:
    """Losses and norms since the last report, kept on the device: reading them waits for it."""

    def __init__(self, device: torch.device):
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.losses = torch.zeros((), device=device, dtype=dtype)
        self.norms = torch.zeros((), device=device, dtype=dtype)
        self.bad = torch.full((), -1, device=device)
        self.count = 0

    def add(self, loss: Tensor, norm: Tensor, update: int, *, scaled: bool) -> None:
        """Take in an update.  Under loss scaling an infinite gradient is ordinary: it was skipped."""
        fine = loss.isfinite() if scaled else loss.isfinite() & norm.isfinite()
        self.bad = torch.where((self.bad < 0) & ~fine, update, self.bad)
        self.losses += loss
        self.norms = torch.maximum(self.norms, torch.where(norm.isfinite(), norm, 0.0))
        self.count += 1

    def reset(self) -> None:
        self.losses.zero_()
        self.norms.zero_()
        self.count = 0
