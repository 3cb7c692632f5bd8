"""The progress of a run: the callback that shows it, and the numbers that are shown."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from halfstep.methods.stages import Stage
from halfstep.progress import Progress
from halfstep.training.signals import StopRequest


class ProgressCallback:
    """Called as a run goes on; the methods do nothing unless a subclass overrides them."""

    def begin(self, stage: Stage, update: int) -> None:
        """A stage begins, or goes on after so many updates."""

    def step(self, update: int, rate: float) -> None:
        """So many updates are done; the learning rate of the last."""

    def measure(self, loss: float) -> None:
        """The mean loss since the last time."""

    def end(self, stage: Stage) -> None:
        """A stage is finished."""

    def note(self, text: str) -> None:
        """A sentence that the user should know."""

    def work(self, title: str) -> AbstractContextManager[Progress]:
        """Around work of this title before or between updates, whose progress it shows."""
        return nullcontext(Notes(self))


class Notes:
    """A `Progress` whose notes go to a callback, and nothing else."""

    def __init__(self, callback: ProgressCallback):
        self.note = callback.note

    def expect(self, steps: int) -> None: ...
    def advance(self, steps: int = 1) -> None: ...


class StopOnBrokenPipe(ProgressCallback):
    """A callback that asks the run to stop when its output is closed, as by `| head`."""

    def __init__(self, callback: ProgressCallback, request: StopRequest):
        self._callback, self._request = callback, request

    def _call(self, method: Callable[[], None]) -> None:
        try:
            method()
        except BrokenPipeError as error:
            self._request.cause = error
            self._request.set()

    def begin(self, stage: Stage, update: int) -> None:
        self._call(partial(self._callback.begin, stage, update))

    def step(self, update: int, rate: float) -> None:
        self._call(partial(self._callback.step, update, rate))

    def measure(self, loss: float) -> None:
        self._call(partial(self._callback.measure, loss))

    def end(self, stage: Stage) -> None:
        self._call(partial(self._callback.end, stage))

    def note(self, text: str) -> None:
        self._call(partial(self._callback.note, text))

    def work(self, title: str) -> AbstractContextManager[Progress]:
        return self._callback.work(title)


HALF_LIFE = 30.0
"""Seconds after which half of a measured speed is forgotten."""


class TimeLeft:
    """The seconds that work takes, from its cost and the speed of the work before it.

    The speed is a mean that forgets by half every `HALF_LIFE` seconds, and goes on from stage to stage.  The
    first update of a stage counts only until there is another: it chooses kernels, or compiles.
    """

    def __init__(self) -> None:
        self._seconds = self._cost = self._last = 0.0
        self._is_first = True
        self._alone: tuple[float, float] | None = None

    def begin(self, now: float) -> None:
        """Begin a stage; the time since the last update is no part of any."""
        self._last, self._is_first = now, True

    def add(self, cost: float, now: float) -> None:
        """Add an update that ends now."""
        seconds, self._last = now - self._last, now
        if self._is_first:
            self._is_first, self._alone = False, (cost, seconds)
            return
        kept = 2 ** (-seconds / HALF_LIFE)
        self._seconds = kept * self._seconds + seconds
        self._cost = kept * self._cost + cost

    def seconds(self, cost: float) -> float | None:
        """The seconds that work of this cost takes; None before the first update."""
        known = (self._cost, self._seconds) if self._cost else self._alone
        return None if known is None else cost / known[0] * known[1]


class Tally:
    """Losses and norms since the last report, kept on the device: reading them waits for it."""

    def __init__(self, device: torch.device):
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.losses = torch.zeros((), device=device, dtype=dtype)
        self.norms = torch.zeros((), device=device, dtype=dtype)
        self.bad = torch.full((), -1, device=device)
        self.count = 0

    def add(self, loss: Tensor, norm: Tensor, update: int, *, scaled: bool) -> None:
        """Add an update.  Under loss scaling an infinite gradient is ordinary: the update was skipped."""
        fine = loss.isfinite() if scaled else loss.isfinite() & norm.isfinite()
        self.bad = torch.where((self.bad < 0) & ~fine, update, self.bad)
        self.losses += loss
        self.norms = torch.maximum(self.norms, torch.where(norm.isfinite(), norm, 0.0))
        self.count += 1

    def reset(self) -> None:
        self.losses.zero_()
        self.norms.zero_()
        self.count = 0
