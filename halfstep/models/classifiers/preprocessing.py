"""The preprocessing of a classifier's images."""

from dataclasses import asdict, dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le
from torch import nn, Tensor

from halfstep.config import JsonObject
from halfstep.config.validate import Validated
from halfstep.errors import ConfigError
from halfstep.models.classifiers.efficientnet import resized
from halfstep.pixels import as_floats


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Validated):
    """Maps images in [-1, 1] to the inputs that a network was trained on; the default does nothing.

    resize  side in pixels, bicubic with antialias; 0 keeps the size
    gray3   repeat gray images in three channels
    mean    subtracted from pixels in [0, 1], one a channel (ImageNet's is .485 .456 .406)
    std     the divisor after that, one a channel
    """

    resize: Annotated[int, Ge(0), Le(2**14)] = 0
    gray3: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[Annotated[float, Gt(0)], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mean) != len(self.std):
            raise ConfigError(
                f"preprocessing with mean {self.mean} and std {self.std}: give as many of both, one number a "
                "channel (pixels in [0, 1])"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Preprocess images [B, C, H, W], floats in [-1, 1] or uint8."""
        images = as_floats(images)
        if self.gray3 and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if self.resize:
            images = resized(images, self.resize)
        if not self.mean:
            return images
        if images.shape[1] != len(self.mean):
            raise ConfigError(
                f"mean and std are of {len(self.mean)} channels and the images have {images.shape[1]}: "
                "give one number a channel"
            )
        mean, std = (images.new_tensor(v).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return ((images + 1) / 2 - mean) / std

    def to_json(self) -> JsonObject:
        """The fields that differ from their defaults."""
        defaults = asdict(Preprocessing())
        return {k: v for k, v in asdict(self).items() if v != defaults[k]}

    @classmethod
    def from_json(cls, fields: JsonObject) -> "Preprocessing":
        """Build it from `to_json`; `ConfigError` names an unknown field."""
        if unknown := sorted(set(fields) - set(asdict(cls()))):
            raise ConfigError(f"there is no preprocessing '{unknown[0]}': write {asdict(cls())}")
        return cls(**fields)


class Prepared(nn.Module):
    """A classifier with its preprocessing."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing):
        super().__init__()
        self.model, self.preprocessing = model, preprocessing

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(self.preprocessing(images))
        return logits
