"""Samples as pictures: uint8 pixels, sheets of images, points in a plane, and PNG files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from halfstep import files
from halfstep.errors import ConfigError, DataError
from halfstep.pixels import as_bytes, as_floats

Picture = NDArray[np.uint8]
"""Pixels [H, W, 1 or 3]."""
PLANE, SIDE = 1.4, 256
"""Half the side of the part of a plane that is shown, and the side of its picture in pixels."""


def to_uint8(images: Tensor) -> Picture:
    """Convert images [N, C, H, W], C 1 or 3, float in [-1, 1] or uint8, to uint8 [N, H, W, C]."""
    images = as_floats(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ConfigError(
            f"pictures need images [N, 1 or 3, H, W], got {list(images.shape)}: write --npz for other data"
        )
    if not bool(images.isfinite().all()):
        raise DataError("some pixels are nan or infinite: the sampler of these images has diverged")
    return np.asarray(as_bytes(images).permute(0, 2, 3, 1).contiguous().numpy())


def tile(images: Tensor, *, columns: int, gap: int = 1) -> Picture:
    """Arrange images in rows on white, uint8 [H, W, C]."""
    if columns < 1 or not len(images):
        raise ConfigError(
            f"a sheet needs an image and a column, got {len(images)} and {columns}: write columns=1"
        )
    pixels = to_uint8(images)
    n, height, width, channels = pixels.shape
    rows = -(-n // columns)
    sheet = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8
    )
    for k, picture in enumerate(pixels):
        top, left = (k // columns) * (height + gap), (k % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def enlarged(picture: Picture, scale: int) -> Picture:
    """The picture with each pixel `scale` times as wide and high."""
    return picture.repeat(scale, 0).repeat(scale, 1)


def points_picture(points: Tensor) -> Picture:
    """Points [N, 2] as dots of three pixels a side on white; those beyond `PLANE` are not shown."""
    if not bool(points.isfinite().all()):
        raise DataError("some points are nan or infinite: the sampler has diverged")
    picture = np.full((SIDE, SIDE, 1), 255, np.uint8)
    places = ((points.double() / PLANE + 1) / 2 * SIDE).floor().long()
    for x, y in places[((places >= 1) & (places < SIDE - 1)).all(1)].tolist():
        picture[SIDE - 2 - y : SIDE + 1 - y, x - 1 : x + 2] = 0
    return picture


def save_picture(picture: Picture, path: Path) -> None:
    """Write a picture as a PNG file; all or nothing."""
    from PIL import Image

    image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
    with files.replacing(path, durable=False) as (part,):
        image.save(part, format="PNG")
