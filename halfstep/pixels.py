"""Read pixels: 8-bit images become floats in [-1, 1], and floats on another scale are refused.

All images from a user are read here: data, `Pipeline.sample` and `encode`, codecs, classifiers, feature
networks.
"""

import torch
from torch import Tensor

from halfstep.errors import DataError

OVER = 0.25
"""How far images may leave [-1, 1]: resizing and decoders overshoot a little, another scale by far."""
FAR = 9.0
"""The same for points, which no model clips."""


def scaled(pixels: Tensor) -> Tensor:
    """Scale uint8 from 0 to 255 to float32 from -1 to 1."""
    return pixels.float().div_(127.5).sub_(1)


def as_bytes(images: Tensor) -> Tensor:
    """Round images from -1 to 1 to uint8 from 0 to 255; values beyond are clamped."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def as_floats(images: Tensor) -> Tensor:
    """Convert uint8 images [N, 1 or 3, H, W] to floats in [-1, 1]; floats pass; `DataError` for others.

    Values are not checked, so that it costs nothing in a network's forward.
    """
    refuse_no_tensor("images", images)
    if images.dtype == torch.uint8:
        refuse_other_bytes(images)
        return scaled(images)
    if not images.is_floating_point():
        raise DataError(
            f"images are uint8 or floats in [-1, 1], got {images.dtype}: convert them, for example by "
            "x.to(torch.uint8) for pixels of 0 to 255"
        )
    return images


def refuse_no_tensor(name: str, value: object) -> None:
    """`DataError` for a list or an array in place of a tensor."""
    if not isinstance(value, Tensor):
        raise DataError(
            f"{name} must be a torch tensor, got a {type(value).__name__}: give torch.as_tensor({name})"
        )


def refuse_other_bytes(values: Tensor) -> None:
    """`DataError` for uint8 values that are not images with channels first."""
    if values.ndim != 4 or values.shape[1] not in (1, 3):
        raise DataError(
            f"uint8 values are images [N, 1 or 3, H, W], got shape {list(values.shape)}: transpose them, "
            "or give float32 in [-1, 1]"
        )


def in_range(images: Tensor) -> Tensor:
    """`as_floats`, with every value finite and near [-1, 1]; `DataError` otherwise."""
    floats = as_floats(images)
    low, high = ends(floats)
    over = OVER if images.ndim == 4 else FAR
    if low < -1 - over or high > 1 + over:
        raise _other_scale(low, high)
    refuse_halves(floats, low, high)
    return floats


def feature_inputs(images: Tensor) -> Tensor:
    """The input of a feature network: `as_floats`, images in float32; `DataError` for others.

    Samples of a model may leave [-1, 1] by any amount, but to both sides: values without negatives and
    with some above 1 are on another scale.
    """
    floats = as_floats(images)
    if floats.ndim == 4:
        low, high = ends(floats)
        if low >= 0 and high > 1 + OVER:
            raise _other_scale(low, high)
        refuse_halves(floats, low, high)
        return floats.float()
    return floats


def ends(values: Tensor) -> tuple[float, float]:
    """The smallest and the largest value; `DataError` for nan or infinity."""
    if values.numel() == 0:
        return 0.0, 0.0
    low, high = (float(end) for end in torch.aminmax(values.detach()))
    if not (abs(low) < torch.inf and abs(high) < torch.inf):  # aminmax passes nan on
        raise DataError("some values are nan or infinite: give others")
    return low, high


def _other_scale(low: float, high: float) -> DataError:
    return DataError(
        f"float values lie in [-1, 1], got {low:g} to {high:g}: scale them, for example x / 127.5 - 1 "
        "for pixels of 0 to 255, or clamp a model's samples to [-1, 1]"
    )


def refuse_halves(images: Tensor, low: float, high: float) -> None:
    """Refuse images in [0, 1]: pixels divided by 255 reach both ends exactly, images in [-1, 1] never do."""
    if images.ndim == 4 and (low, high) == (0, 1):
        raise DataError(
            "float images reach from 0 to 1, expected -1 to 1: give 2 * x - 1, or uint8"
        )
