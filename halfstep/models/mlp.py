"""A small residual MLP for points, which learns two moons in seconds."""

from math import pi

import torch
from torch import nn, Tensor
from torch.nn import functional as F

from halfstep.batch import Cond
from halfstep.models.adapters import Adapter
from halfstep.models.end_time_embedding import EndTimeEmbedding
from halfstep.models.guidance_embedding import GuidanceEmbedding
from halfstep.models.head_bank import HeadBank, last_output
from halfstep.models.time_embedding import sinusoid

WAVES = (1.0, 2.0, 4.0)
"""Half periods per unit length: without them a small network smooths over fine structure."""


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)
        self.told = nn.Linear(width, width)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        hidden = F.silu(self.fc1(self.norm(h)) + self.told(condition))
        return h + self.fc2(hidden)  # type: ignore[no-any-return]


class ResidualMLP(nn.Module):
    """Maps (x [B, dim], t [B], label int64 [B], guidance scale [B], end time [B]) to [B, out_dim].

    Label, scale and end time are None for a network that takes none.

    t is in the range of a table of 1000 levels, as for images.  guidance_embed_dim is the number of features
    of the scale, 0 if it takes none; t_end_embed_dim that of the time where a step ends.  output_heads is the
    number of its last layers, whose weights in the output are `heads`; 0 is one layer without weights.
    """

    def __init__(
        self,
        dim: int = 2,
        width: int = 64,
        depth: int = 3,
        out_dim: int | None = None,
        num_classes: int | None = None,
        guidance_embed_dim: int = 0,
        output_heads: int = 0,
        t_end_embed_dim: int = 0,
    ):
        super().__init__()
        self.config = {
            "dim": dim,
            "width": width,
            "depth": depth,
            "out_dim": out_dim,
            "num_classes": num_classes,
            "guidance_embed_dim": guidance_embed_dim,
            "output_heads": output_heads,
            "t_end_embed_dim": t_end_embed_dim,
        }
        self.width, self.output_heads = width, output_heads
        self.enter = nn.Linear(dim * (1 + 2 * len(WAVES)), width)
        self.time = nn.Linear(width, width)
        self.label = None if num_classes is None else nn.Embedding(num_classes, width)
        self.blocks = nn.ModuleList(Residual(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave: nn.Module = nn.Linear(width, out_dim or dim)
        if output_heads:
            self.leave = HeadBank(self.leave, output_heads)
        self.guidance = GuidanceEmbedding(guidance_embed_dim, width) if guidance_embed_dim else None
        self.end = EndTimeEmbedding(t_end_embed_dim, width) if t_end_embed_dim else None

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        guidance_scale: Tensor | None = None,
        heads: Tensor | None = None,
        t_end: Tensor | None = None,
    ) -> Tensor:
        condition = self.time(sinusoid(t, self.width).to(x.dtype))
        if self.label is not None:
            condition = condition + self.label(label)
        if self.guidance is not None:
            condition = condition + self.guidance(guidance_scale)
        if self.end is not None:
            condition = condition + self.end(t_end)
        condition, h = F.silu(condition), self.enter(_waves(x))
        for block in self.blocks:
            h = block(h, condition)
        out: Tensor = last_output(self.leave, self.norm(h), heads)
        return out


def _waves(x: Tensor) -> Tensor:
    """x with its sines and cosines: [B, dim] to [B, dim (1 + 2 len(WAVES))]."""
    angles = [x * (pi * k) for k in WAVES]
    return torch.cat([x, *(a.sin() for a in angles), *(a.cos() for a in angles)], dim=-1)


class MLPNet(Adapter):
    """Adapter of `ResidualMLP`."""

    def __init__(self, model: nn.Module, num_classes: int | None = None):
        super().__init__(model, num_classes)
        parts = {
            "guidance_scale": model.guidance,
            "heads": model.output_heads or None,
            "t_end": model.end,
        }
        self.reads = "label", *(name for name, part in parts.items() if part is not None)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        label, scale, heads = self.label(cond), self.scale(cond, x), self.heads(cond)
        out: Tensor = self.model(x, t, label, scale, heads, self.end_time(cond))
        return out
