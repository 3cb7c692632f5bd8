"""What a classifier wants done to images before it sees them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from torch import nn, Tensor

from halfstep.config import JsonObject
from halfstep.config.validate import Validated
from halfstep.errors import ConfigError
from halfstep.models.classifiers.efficientnet import resized
from halfstep.pixels import as_floats


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Validated):
    """From halfstep's images, [-1, 1], to those that a network was trained on; the default does nothing.

    resize  pixels a side, bicubic with antialias; 0 leaves the size
    gray3   gray images are repeated in three channels
    mean    of the pixels in [0, 1], one a channel (ImageNet's is .485 .456 .406): taken off
    std     of them, divided by
    """

    resize: Annotated[int, Ge(0), Le(2**14)] = 0
    gray3: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[Annotated[float, Gt(0)], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mean) != len(self.std):
            raise ConfigError(
                f"preprocessing with mean {self.mean} and std {self.std} cannot be: the two are as many, one "
                "number a channel (pixels in [0, 1])"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """float [B, C, H, W] in [-1, 1], or uint8, to what the network reads."""
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
        """What differs from doing nothing."""
        nothing = asdict(Preprocessing())
        return {k: v for k, v in asdict(self).items() if v != nothing[k]}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> "Preprocessing":
        """`ConfigError` names what there is not."""
        if strange := sorted(set(said) - set(asdict(cls()))):
            raise ConfigError(f"there is no preprocessing '{strange[0]}': write {asdict(cls())}")
        return cls(**said)


class Prepared(nn.Module):
    """A classifier, held as `model`, behind its own preprocessing."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing):
        super().__init__()
        self.model, self.preprocessing = model, preprocessing

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(self.preprocessing(images))
        return logits
