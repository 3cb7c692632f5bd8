"""The sinusoidal embedding of times."""

from math import log

import torch
from torch import Tensor
from torch.nn import functional as F


def sinusoid(t: Tensor, width: int) -> Tensor:
    """cos(t f_i), then sin(t f_i), with f_i = 10000^(-i / (width // 2)); float32 [B, width].

    Computed in float32 for any dtype of t: at t = 1000 bfloat16 would be off by more than 1.
    An odd width gets one zero column.
    """
    half = width // 2
    i = torch.arange(half, dtype=torch.float32, device=t.device)
    angle = t.float()[:, None] * torch.exp(-log(10000) * i / half)
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=1), (0, width % 2))
