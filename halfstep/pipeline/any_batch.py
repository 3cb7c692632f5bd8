"""Trace diffusers' U-Nets for batches of any size."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn, Tensor
from torch.overrides import TorchFunctionMode

_SHAPE: Any = vars(torch._C.TensorBase)["shape"].__get__


class _Large:
    """A size that is larger than any number."""

    def __ge__(self, other: object) -> bool:
        return True

    __gt__ = __ge__

    def __mul__(self, factor: object) -> "_Large":
        return self


class _LargeBatch(TorchFunctionMode):
    """Tensors report a large batch, and so a large number of elements."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func == Tensor.numel:
            return _Large()
        value = func(*args, **(kwargs or {}))
        return (_Large(), *value[1:]) if func == _SHAPE else value


@contextmanager
def any_batch(net: nn.Module) -> Iterator[None]:
    """During the block diffusers' upsampling runs its code for large batches, which is right for every batch.

    `Upsample2D` and the residual blocks that hold one call `contiguous` from 64 samples on, and from 2^31
    elements on (kernels of GPUs fail there), so that a trace would hold below these sizes only.
    `contiguous` changes no value.
    """
    modules = [m for m in net.modules() if _upsamples(m)]
    before = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = _large(module.forward)
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward


def _upsamples(module: nn.Module) -> bool:
    return type(module).__module__.startswith("diffusers.") and (
        type(module).__name__ == "Upsample2D" or getattr(module, "upsample", None) is not None
    )


def _large(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def large(*args: Any, **options: Any) -> Tensor:
        with _LargeBatch():
            return forward(*args, **options)

    return large
