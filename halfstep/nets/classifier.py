"""A small image classifier, and the features that a Fréchet distance is taken on."""

import torch
from torch import nn, Tensor
from torch.nn import functional as F

from halfstep.errors import ConfigError

FEATURES = 64


class Residual(nn.Module):
    """Pre-norm residual block; halves the side with stride 2."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, out)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        same = channels == out and stride == 1
        self.short = nn.Identity() if same else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = self.short(x) + self.conv2(F.silu(self.norm2(h)))
        return out


class Classifier(nn.Module):
    """Maps images [B, channels, H, W] in [-1, 1], sides from 8 to 64, to logits [B, classes].

    Group normalisation only: what it says of an image does not depend on the images beside it.
    """

    def __init__(self, channels: int = 1, classes: int = 10):
        super().__init__()
        self.config = {"channels": channels, "classes": classes}
        self.channels = channels
        self.stem = nn.Conv2d(channels, 32, 3, padding=1)
        self.blocks = nn.Sequential(
            Residual(32, 32, 1), Residual(32, FEATURES, 2), Residual(FEATURES, FEATURES, 2)
        )
        self.norm = nn.GroupNorm(8, FEATURES)
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self._pooled(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """What the last linear layer reads, float32 [B, 64]."""
        return self._pooled(x).to(torch.float32)

    def _pooled(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ConfigError(
                f"this classifier reads images [B, {self.channels}, H, W] and got {list(x.shape)}: "
                f"build one with channels={x.shape[1] if x.ndim == 4 else '...'}"
            )
        if min(x.shape[2:]) < 8:
            raise ConfigError(
                f"images of {x.shape[2]} x {x.shape[3]} are too small for this classifier: their "
                "sides must be 8 to 64"
            )
        return F.silu(self.norm(self.blocks(self.stem(x)))).mean((2, 3))
