"""The transformer block of a U-ViT, and its forms of attention.

None of them casts q, k and v to float32, unlike the official default.
"""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import nn, Tensor
from torch.nn import functional as F

from halfstep.errors import ConfigError, unknown

Mix = Callable[[Tensor, float | None], Tensor]
"""Maps qkv [B, N, 3, heads, d] and the factor on the logits (None: d^-0.5) to [B, N, heads, d]."""


def sdpa(qkv: Tensor, scale: float | None) -> Tensor:
    """PyTorch's fused kernels, without [N, N] weights in memory."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)


def explicit(qkv: Tensor, scale: float | None) -> Tensor:
    """Two matrix products around a softmax, with [B, heads, N, N] weights."""
    batch, tokens, _, heads, d = qkv.shape
    q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, batch * heads, tokens, d).unbind(0)
    # The product is scaled before it is rounded.  With beta 0 the first argument is not read.
    scale = d**-0.5 if scale is None else scale
    logits = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=scale)
    mixed = torch.bmm(logits.softmax(-1), v)
    out: Tensor = mixed.unflatten(0, (batch, heads)).transpose(1, 2)
    return out


def xformers(qkv: Tensor, scale: float | None) -> Tensor:
    """The memory-efficient kernels of the package xformers."""
    from xformers.ops import memory_efficient_attention  # type: ignore[import-not-found]

    mixed: Tensor = memory_efficient_attention(*qkv.unbind(2), scale=scale)
    return mixed


def auto(qkv: Tensor, scale: float | None) -> Tensor:
    """`explicit` for bfloat16 on a CPU, where the fused backward is slower; else `sdpa`.

    Speed of the whole network relative to `sdpa` on q, k and v in float32 (S/2, 4 images, one thread of a
    shared AVX512-BF16 CPU), by `python -m benchmarks.uvit --device cpu`:

                                         sdpa    explicit
        float32, forward                 0.99        0.97
        float32, training step           0.98        0.97
        bfloat16 autocast, forward       1.02        1.13
        bfloat16 autocast, training      1.01        1.17

    Attention alone, of 65 to 1025 tokens on that CPU: `explicit` takes 1.1 to 2.5 times as long as
    `sdpa` in float32 and up to 12 times in float16, and 0.2 to 0.8 of it in bfloat16.  It rounds its
    weights to bfloat16, which `sdpa` does not.
    """
    # Under autocast, qkv comes from a linear layer in autocast's dtype.
    slow = qkv.device.type == "cpu" and qkv.dtype is torch.bfloat16
    return explicit(qkv, scale) if slow else sdpa(qkv, scale)


FORMS: dict[str, Mix] = {"auto": auto, "sdpa": sdpa, "explicit": explicit, "xformers": xformers}


class Attention(nn.Module):
    """Self-attention: maps [B, N, width] to the same shape.

    qk_scale  factor on the attention logits (d^-0.5 where None)
    form      one of `FORMS`
    """

    def __init__(
        self, width: int, heads: int, *, qkv_bias: bool, qk_scale: float | None, form: str
    ):
        super().__init__()
        if form not in FORMS:
            raise unknown("attention", form, FORMS)
        if form == "xformers" and find_spec("xformers") is None:
            raise ConfigError(
                "attention='xformers' needs the package xformers, which is not installed: install it, or "
                "write attention='auto'"
            )
        self.heads, self.scale, self.mix = heads, qk_scale, FORMS[form]
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.qkv(x).unflatten(2, (3, self.heads, -1)), self.scale)
        out: Tensor = self.proj(mixed.flatten(2))
        return out


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm transformer block; with `skip` it first merges [x, skip] by a linear layer."""

    def __init__(self, width: int, hidden: int, attention: Attention, skip: bool = False):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = attention
        self.mlp = Mlp(width, hidden)
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None:
            assert skip is not None, "UViT.forward gives a skip to a block with a skip layer"
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out
