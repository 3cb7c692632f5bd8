"""A small image classifier, whose features a Fréchet distance uses."""

import torch
from torch import nn, Tensor
from torch.nn import functional as F

from halfstep.errors import ConfigError
from halfstep.pixels import as_floats

FEATURES = 32
GRID = 4


class Classifier(nn.Module):
    """Maps images [B, channels, H, W] in [-1, 1], sides 8 and more, to logits [B, classes].

    size  side of its images: stride-2 convolutions reduce them to a grid of 4 x 4, which is flattened

    It has no normalisation and no average over the image: both would make the features blind to contrast and
    blur, and a distance on them would rate a class's mean image as a good sample (see LOG.md).
    """

    def __init__(self, channels: int = 1, num_classes: int = 10, size: int = 8):
        super().__init__()
        if size < 8:
            raise ConfigError(
                f"images of side {size} are too small for this classifier: write 8 or more"
            )
        self.config = {"channels": channels, "num_classes": num_classes, "size": size}
        self.channels, wide, layers = channels, 32, [nn.Conv2d(channels, 32, 3, padding=1)]
        while size > GRID:
            layers.append(nn.Conv2d(wide, 64, 3, stride=2, padding=1))
            wide, size = 64, -(-size // 2)
        self.convs = nn.ModuleList(layers)
        self.hidden = nn.Linear(wide * GRID**2, FEATURES)
        self.head = nn.Linear(FEATURES, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """The inputs of the last linear layer, float [B, 32]."""
        x = as_floats(x)
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ConfigError(
                f"this classifier reads images [B, {self.channels}, H, W] and got {list(x.shape)}: "
                f"build one with channels={x.shape[1] if x.ndim == 4 else '...'}"
            )
        if min(x.shape[2:]) < 8:
            raise ConfigError(
                f"images of {x.shape[2]} x {x.shape[3]} are too small for this classifier: their "
                "sides must be 8 or more"
            )
        for conv in self.convs:
            x = F.relu(conv(x))
        return F.relu(self.hidden(F.adaptive_avg_pool2d(x, GRID).flatten(1)))

    @torch.no_grad()
    def unit_features(self, images: Tensor) -> "Classifier":
        """Scale its features to a mean variance of 1 over these images; the logits stay; returns itself.

        A distance on the features then has a scale that does not depend on how long it was trained.
        """
        scale = torch.cat([self.features(part) for part in images.split(512)]).var(0).mean().sqrt()
        self.hidden.weight.div_(scale)
        self.hidden.bias.div_(scale)
        self.head.weight.mul_(scale)
        return self
