"""A bank of heads: the last linear map of a network, once for each step of a fine grid.

Shaul et al., "Parallel Decoding Distillation", 2026.  A convex combination of heads is one linear map, of the
combined weights, so that a network runs once whatever combination it puts out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn, Tensor
from torch.nn import functional as F

from halfstep.config.validate import is_valid
from halfstep.errors import ConfigError

OPTION = "output_heads"
"""The option of a network's config: its number of heads, or 0 for one plain last layer."""
MOST = 1024
NO_HEADS = (
    "this network has a bank of heads and got no weights for them: give cond=Cond(heads=...), or sample with "
    "sampler='parallel-decoding'"
)


class HeadBank(nn.Module):
    """N copies of a linear layer or convolution, called with the weights of a convex combination of them.

    Called with the layer's input h, [B, ...], and heads, float [B, N], it puts out the combination of each
    sample, [B, ...]; with heads [B, M, N] the M combinations of each, [M B, ...], the first of all samples
    first.

    Args:
        layer: the layer that is copied.
        heads: N.

    Raises:
        ConfigError: a number of heads beyond 1 to 1024, another layer, or weights of another number.
    """

    def __init__(self, layer: nn.Module, heads: int):
        super().__init__()
        check_heads(heads)
        if not _is_plain(layer):
            raise ConfigError(
                f"a bank of heads is of a linear layer or a convolution without groups, got {layer}: give "
                "the layer that puts out the prediction"
            )
        layer = cast(nn.Linear | nn.Conv2d, layer)
        self.heads, self.convolution = heads, dict[str, Any]()
        if isinstance(layer, nn.Conv2d):
            self.convolution = {k: getattr(layer, k) for k in ("stride", "padding", "dilation")}
        self.weight = nn.Parameter(_copies(layer.weight, heads))
        self.bias = None if layer.bias is None else nn.Parameter(_copies(layer.bias, heads))

    def forward(self, h: Tensor, heads: Tensor | None) -> Tensor:
        if heads is None:
            raise ConfigError(NO_HEADS)
        if torch.compiler.is_exporting() and self.convolution:
            return self._all_convolved(h, heads)
        if heads.ndim not in (2, 3) or heads.shape[-1] != self.heads:
            raise ConfigError(
                f"this network has {self.heads} heads and got weights of shape {list(heads.shape)}: give "
                f"cond.heads of shape [B, {self.heads}], or [B, M, {self.heads}]"
            )
        weights = heads if heads.ndim == 3 else heads[:, None]
        with torch.autocast(
            h.device.type, enabled=False
        ):  # one sum, and not one of the network's products
            weights = weights.to(self.weight.dtype)
            weight = (weights @ self.weight.flatten(1)).unflatten(2, self.weight.shape[1:])
            bias = None if self.bias is None else weights @ self.bias
        if self.convolution:
            return self._convolved(h, weight, bias)
        return _mapped(h, weight, bias)

    def _convolved(self, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Each sample's combinations as the channels of a group of one convolution."""
        rows, combinations = weight.shape[:2]
        out: Tensor = F.conv2d(
            h.flatten(0, 1)[None],
            weight.flatten(0, 2),
            None if bias is None else bias.flatten(),
            groups=rows,
            **self.convolution,
        )
        parts: Tensor = out[0].unflatten(0, (rows, combinations, -1))
        return parts.transpose(0, 1).flatten(0, 1)

    def _all_convolved(self, h: Tensor, heads: Tensor) -> Tensor:
        """The combinations of all heads' outputs, for heads [B, N]: a trace has no groups for any batch."""
        bias = None if self.bias is None else self.bias.flatten()
        out: Tensor = F.conv2d(h, self.weight.flatten(0, 1), bias, **self.convolution)
        parts = out.unflatten(1, (self.heads, -1))
        combined: Tensor = (parts * heads.to(parts.dtype)[:, :, None, None, None]).sum(1)
        return combined

    def extra_repr(self) -> str:
        return f"heads={self.heads}, shape={list(self.weight.shape[1:])}"


def _mapped(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Linear maps [B, M, out, in] of each sample's features h [B, ..., in], to [M B, ..., out]."""
    tokens = h.flatten(1, -2) if h.ndim > 2 else h[:, None]
    out: Tensor = tokens @ weight.flatten(1, 2).transpose(1, 2)
    if bias is not None:
        out = out + bias.flatten(1)[:, None]
    parts = out.unflatten(2, weight.shape[1:3]).movedim(2, 0).flatten(0, 1)
    back: Tensor = parts.reshape(-1, *h.shape[1:-1], weight.shape[2])
    return back


def last_output(layer: nn.Module, h: Tensor, heads: Tensor | None) -> Tensor:
    """The output of a network's last layer, or of a bank of heads with these weights."""
    out: Tensor = layer(h, heads) if isinstance(layer, HeadBank) else layer(h)
    return out


def widen(model: nn.Module, path: str, heads: int) -> None:
    """Put a bank in place of the last layer of a network, which is at `path`; one that is there stays.

    `ConfigError` for a network whose last layer is not known.
    """
    if not path:
        raise ConfigError(
            f"the last layer of a {type(model).__name__} cannot become a bank of heads, as its forward reads "
            "one output a sample: choose another network, or name the layer as last_layer in inputs"
        )
    layer = model.get_submodule(path)
    if not isinstance(layer, HeadBank):
        model.set_submodule(path, HeadBank(layer, heads))


@contextmanager
def weighing(bank: nn.Module | None, heads: Tensor | None) -> Iterator[None]:
    """Give these weights to the bank during the block, in a forward that calls it with its input alone."""
    if bank is None:
        yield
        return
    hook = bank.register_forward_pre_hook(lambda bank, inputs: (*inputs, heads))
    try:
        yield
    finally:
        hook.remove()


def check_heads(heads: int) -> None:
    """`ConfigError` for an invalid number of heads."""
    if not is_valid(heads, int) or not 1 <= heads <= MOST:
        raise ConfigError(
            f"{OPTION} is the number of steps of a fine grid, from 1 to {MOST}, got {heads}: write for "
            "example 32"
        )


def heads_of(net: nn.Module) -> int:
    """The number of heads of a network's bank, whose weights it reads as `Cond.heads`; 0 without one."""
    return next((part.heads for part in net.modules() if isinstance(part, HeadBank)), 0)


def _copies(value: Tensor, heads: int) -> Tensor:
    return value.detach().expand(heads, *value.shape).clone()


def _is_plain(layer: nn.Module) -> bool:
    if type(layer) is nn.Linear:
        return True
    return type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"
