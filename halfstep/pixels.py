"""The door for pixels: 8-bit images become floats in [-1, 1], and what is on another scale is refused.

Whatever takes images from a user reads them here: data, `Pipeline.sample` and `encode`, codecs,
classifiers, feature networks.
"""

import torch
from torch import Tensor

from halfstep.errors import DataError

OVER = 0.25
"""How far images may leave [-1, 1]: resizing and decoders go a little beyond, another scale far."""
FAR = 9.0
"""The same of points: what a model of points drew is cut nowhere."""


def scaled(pixels: Tensor) -> Tensor:
    """uint8 from 0 to 255 as float32 from -1 to 1."""
    return pixels.float().div_(127.5).sub_(1)


def as_floats(images: Tensor) -> Tensor:
    """Floats as they are, uint8 images [N, 1 or 3, H, W] as floats in [-1, 1]; `DataError` for others.

    Looks at no values, so that it costs nothing where a network is called.
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
    """`DataError` for a list or an array where values are a tensor."""
    if not isinstance(value, Tensor):
        raise DataError(
            f"{name} must be a torch tensor, got a {type(value).__name__}: give torch.as_tensor({name})"
        )


def refuse_other_bytes(values: Tensor) -> None:
    """`DataError` for uint8 values that are not images, channels first."""
    if values.ndim != 4 or values.shape[1] not in (1, 3):
        raise DataError(
            f"uint8 values are images [N, 1 or 3, H, W], got shape {list(values.shape)}: transpose them, "
            "or give float32 in [-1, 1]"
        )


def in_range(images: Tensor) -> Tensor:
    """`as_floats`, each value finite and not far from [-1, 1]; `DataError` for others."""
    floats = as_floats(images)
    low, high = ends(floats)
    over = OVER if images.ndim == 4 else FAR
    if low < -1 - over or high > 1 + over:
        raise _other_scale(low, high)
    refuse_halves(floats, low, high)
    return floats


def feature_inputs(images: Tensor) -> Tensor:
    """`as_floats` of what a feature network looks at, images in float32; `DataError` for others.

    What a model drew may leave [-1, 1] however far, but then to both sides: values of which none is
    negative and some are above 1 are on another scale.
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
    """The least value and the greatest; `DataError` where there is nan or infinity."""
    if values.numel() == 0:
        return 0.0, 0.0
    low, high = (float(end) for end in torch.aminmax(values.detach()))
    if not (abs(low) < torch.inf and abs(high) < torch.inf):  # aminmax passes nan on
        raise DataError("some values are nan or infinite: give others")
    return low, high


def _other_scale(low: float, high: float) -> DataError:
    return DataError(
        f"float values lie in [-1, 1], got {low:g} to {high:g}: scale them, for example x / 127.5 - 1 "
        "for pixels of 0 to 255, or clamp(-1, 1) what a model drew"
    )


def refuse_halves(images: Tensor, low: float, high: float) -> None:
    """Pixels divided by 255 reach both ends exactly; images in [-1, 1] do not do that by chance."""
    if images.ndim == 4 and (low, high) == (0, 1):
        raise DataError(
            "float images reach from 0 to 1, expected -1 to 1: give 2 * x - 1, or uint8"
        )
