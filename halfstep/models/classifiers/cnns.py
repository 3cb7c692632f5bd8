"""Small image classifiers: those of the report on knowledge distillation, and a residual CNN.

All map images [B, channels, H, W] in [-1, 1], or uint8, to logits [B, classes].  `features(x)` are the inputs
of their last linear layer `head`, and `config` their arguments.
"""

from collections.abc import Sequence

from torch import nn, Tensor
from torch.nn import functional as F

from halfstep.errors import ConfigError
from halfstep.models.memory_format import channels_last
from halfstep.pixels import as_floats

POOL = 4


class ImageClassifier(nn.Module):
    """A network whose last linear layer is `head`."""

    head: nn.Linear

    def __init__(self, channels: int, num_classes: int, **config: int | float):
        super().__init__()
        if channels < 1 or num_classes < 2:
            raise ConfigError(
                f"a classifier with channels={channels} and num_classes={num_classes} tells nothing apart: "
                "write at least 1 and 2"
            )
        self.config = {"channels": channels, "num_classes": num_classes, **config}
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """The inputs of the last linear layer."""
        raise NotImplementedError

    def _read(self, x: Tensor) -> Tensor:
        """The images as floats; `ConfigError` for other channels."""
        x = as_floats(x)
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ConfigError(
                f"this classifier reads images [B, {self.channels}, H, W] and got {list(x.shape)}: build "
                f"one with channels={x.shape[1] if x.ndim == 4 else '...'}"
            )
        return x


class Pooled(ImageClassifier):
    """3 x 3 convolutions with 4 x 4 max pooling between them, global average pooling, a layer of 512.

    With widths 64, 128 it is the shallow student of the report 'Distilling Knowledge in Neural Networks',
    with 256 added the deeper: 144,261 and 504,965 parameters for 3 channels and 5 classes, with He
    initialisation (arXiv 1502.01852).  On images smaller than a pool the pool shrinks to them.
    """

    def __init__(
        self, channels: int = 3, num_classes: int = 5, *, widths: Sequence[int] = (64, 128)
    ):
        super().__init__(channels, num_classes)
        layers, wide = list[nn.Module](), channels
        for width in widths:
            layers.append(nn.Conv2d(wide, width, 3, padding=1))
            nn.init.kaiming_normal_(layers[-1].weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(layers[-1].bias)  # type: ignore[arg-type]
            wide = width
        self.convs = nn.ModuleList(layers)
        self.hidden, self.head = nn.Linear(wide, 512), nn.Linear(512, num_classes)
        channels_last(self)

    def features(self, x: Tensor) -> Tensor:
        """The inputs of the last linear layer, float [B, 512]."""
        x = self._read(x)
        for k, conv in enumerate(self.convs):
            x = conv(x)
            if (
                k < len(self.convs) - 1
            ):  # before the ReLU: the same result at a sixteenth of the work
                x = F.max_pool2d(x, (min(POOL, x.shape[2]), min(POOL, x.shape[3])))
            x = F.relu(x)
        # The mean over the image; the gradient of x.mean((2, 3)) is slow to read.
        return F.relu(self.hidden(F.avg_pool2d(x, x.shape[2:]).flatten(1)))


class ToyTeacher(ImageClassifier):
    """The report's toy teacher: 80,202 parameters on gray 28 x 28 and 10 classes.

    5 x 5 convolutions of width 16 and 32, each with 2 x 2 max pooling, dropout .2, a layer of 128.
    """

    def __init__(self, channels: int = 1, num_classes: int = 10, *, size: int = 28):
        super().__init__(channels, num_classes, size=size)
        side = ((size - 4) // 2 - 4) // 2
        if side < 1:
            raise ConfigError(
                f"images of side {size} are too small for the toy's teacher: write 16 or more, or choose "
                "cnn"
            )
        self.first, self.second = nn.Conv2d(channels, 16, 5), nn.Conv2d(16, 32, 5)
        self.drop = nn.Dropout(0.2)
        self.hidden, self.head = nn.Linear(32 * side * side, 128), nn.Linear(128, num_classes)
        channels_last(self)

    def features(self, x: Tensor) -> Tensor:
        """The inputs of the last linear layer, float [B, 128]."""
        x = self._read(x)
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.max_pool2d(F.relu(self.second(x)), 2)
        return F.relu(self.hidden(self.drop(x).flatten(1)))


class ToyStudent(ImageClassifier):
    """The report's toy student: one layer of 48; 38,170 parameters on gray 28 x 28 and 10 classes."""

    def __init__(
        self,
        channels: int = 1,
        num_classes: int = 10,
        *,
        size: int | Sequence[int] = 28,
        width: int = 48,
    ):
        super().__init__(channels, num_classes, width=width)
        height, wide = (size, size) if isinstance(size, int) else size
        self.config["size"] = size  # type: ignore[assignment]
        self.hidden = nn.Linear(channels * height * wide, width)
        self.head = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """The inputs of the last linear layer, float [B, width]."""
        x = self._read(x)
        return F.relu(self.hidden(x.flatten(1)))


class ResidualCNN(ImageClassifier):
    """A small residual network with batch normalisation (He et al. 2016, arXiv 1603.05027), sides >= 8.

    width  of the first of its three stages; each halves the image and doubles the width
    depth  blocks a stage
    """

    def __init__(
        self, channels: int = 1, num_classes: int = 10, *, width: int = 32, depth: int = 1
    ):
        super().__init__(channels, num_classes, width=width, depth=depth)
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        blocks, wide = list[nn.Module](), width
        for stage in range(3):
            for k in range(depth):
                out = width * 2**stage
                blocks.append(_Residual(wide, out, 2 if stage and not k else 1))
                wide = out
        self.blocks, self.norm = nn.Sequential(*blocks), nn.BatchNorm2d(wide)
        self.head = nn.Linear(wide, num_classes)
        channels_last(self)

    def features(self, x: Tensor) -> Tensor:
        """The inputs of the last linear layer, float [B, 4 * width]."""
        x = self._read(x)
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        return x.mean((2, 3))


class _Residual(nn.Module):
    def __init__(self, wide: int, out: int, stride: int):
        super().__init__()
        self.bn0, self.bn1 = nn.BatchNorm2d(wide), nn.BatchNorm2d(out)
        self.conv0 = nn.Conv2d(wide, out, 3, stride, padding=1, bias=False)
        self.conv1 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.short = nn.Conv2d(wide, out, 1, stride, bias=False) if wide != out else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn0(x))
        short = x if self.short is None else self.short(y)
        out: Tensor = short + self.conv1(F.relu(self.bn1(self.conv0(y))))
        return out
