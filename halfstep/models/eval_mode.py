"""The modes of a network's parts: to train it, and in eval mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn, Tensor


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """All of it in eval mode; afterwards every part is in the mode that it was in, also after an error."""
    modes = [(part, part.training) for part in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def keeps_statistics(part: nn.Module) -> bool:
    """Whether a layer has running statistics, of which training makes others: as batch norm does."""
    has = hasattr(part, "momentum") and hasattr(part, "reset_running_stats")
    return has and isinstance(getattr(part, "running_mean", None), Tensor)


def to_train(net: nn.Module) -> None:
    """All of it in train mode, but frozen layers that keep statistics, which do not change then either.

    A layer without weights of its own is frozen if what it is a part of is.
    """
    net.train()
    for part, frozen in _frozen(net, False):
        if frozen and keeps_statistics(part):
            part.eval()


def _frozen(part: nn.Module, around: bool) -> Iterator[tuple[nn.Module, bool]]:
    weights = [p.requires_grad for p in part.parameters()]
    own = not any(weights) if weights else around
    yield part, own
    for child in part.children():
        yield from _frozen(child, own)
