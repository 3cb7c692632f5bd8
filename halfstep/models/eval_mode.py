"""Train and eval mode of a network's parts."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn, Tensor


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put a network in eval mode; afterwards restore the mode of every part, also after an error."""
    modes = [(part, part.training) for part in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def keeps_statistics(part: nn.Module) -> bool:
    """Whether a layer has running statistics that training updates, as batch norm has."""
    has = hasattr(part, "momentum") and hasattr(part, "reset_running_stats")
    return has and isinstance(getattr(part, "running_mean", None), Tensor)


def to_train(net: nn.Module) -> None:
    """Put a network in train mode, except frozen layers with running statistics, which then stay too.

    A layer without weights is frozen if the module around it is.
    """
    net.train()
    for part, frozen in _frozen(net, False):
        if frozen and keeps_statistics(part):
            part.eval()


def _frozen(part: nn.Module, around: bool) -> Iterator[tuple[nn.Module, bool]]:
    weights = [p.requires_grad for p in part.parameters()]
    frozen = not any(weights) if weights else around
    yield part, frozen
    for child in part.children():
        yield from _frozen(child, frozen)
