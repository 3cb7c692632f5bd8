"""Find the largest micro-batch that fits when memory runs out."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from halfstep.errors import ConfigError


@contextmanager
def naming_memory(size: int, attempt: Callable[[int], None] | None) -> Iterator[None]:
    """Around an update: running out of memory raises `ConfigError` with the micro-batch that fits.

    size     the micro-batch of the update
    attempt  a forward and backward of so many samples, discarded; None advises half the size untried
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not _is_memory(error):
            raise
        reason = str(error).splitlines()[0]
        # The failed update's frames still hold its tensors, and would leave no room for the attempts.
        traceback.clear_frames(error.__traceback__)
        fits = size // 2 if attempt is None else _largest(attempt, size)
        advice = (
            f"add --micro-batch-size {fits}"
            if fits
            else "not even one sample fits: use a smaller network"
        )
        raise ConfigError(
            f"out of memory with a micro-batch of {size} ({reason}): {advice}"
        ) from None


def _is_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _largest(attempt: Callable[[int], None], size: int) -> int:
    """The largest of size / 2, size / 4, ... 1 that `attempt` survives; 0 if none."""
    while size > 1:
        size //= 2
        try:
            attempt(size)
        except Exception as error:  # whatever it is, that size is no advice
            traceback.clear_frames(error.__traceback__)
        else:
            return size
    return 0
