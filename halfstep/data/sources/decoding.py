"""Decode one image: a file or its bytes, in any format that Pillow reads, or an .npy array of bytes.

An image is turned as its EXIF says, put on white where transparent, brought to 8 bits (16-bit gray
is scaled, not clipped), made gray or RGB, cropped to its central square and resized, up or down, by
Lanczos with antialiasing.  Of an animation the first frame counts.  Colour profiles are ignored.
"""

import io
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib.format import MAGIC_PREFIX
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from halfstep.data.sources.arrays import read_array
from halfstep.errors import DataError

Pixels = NDArray[np.uint8]

GRAY = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})


def read(file: Path | IO[bytes], size: int | None, channels: int) -> Pixels | str:
    """The pixels of an image, [C, side, side], or the reason why it cannot be read.

    file  a path, or the content in memory, which may also be an .npy array of uint8
    """
    try:
        with opened(file) as picture:
            picture.load()
            image = _opaque(ImageOps.exif_transpose(picture), picture.format)
        image = _square(image.convert("L" if channels == 1 else "RGB"), size)
    except UnidentifiedImageError:
        return "not an image"
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise many types on damaged files
        return str(error).partition("\n")[0] or type(error).__name__
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else np.moveaxis(pixels, -1, 0)


def is_gray(file: Path | IO[bytes]) -> bool:
    """Whether an image is gray; reads its header.  Raises what Pillow raises for a damaged one."""
    with opened(file) as picture:
        return picture.mode in GRAY


def opened(file: Path | IO[bytes]) -> Image.Image:
    """The image, not decoded yet."""
    if not isinstance(file, Path):
        is_array = file.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX
        file.seek(0)
        if is_array:
            return _from_array(file)
    return Image.open(file)


def _from_array(file: IO[bytes]) -> Image.Image:
    """The image of an .npy array: uint8 [H, W], [H, W, C] or [C, H, W] with 1 or 3 channels."""
    x = read_array(file, file.seek(0, io.SEEK_END))
    if x.dtype == np.uint8 and x.ndim == 3 and x.shape[-1] not in (1, 3):
        x = np.moveaxis(x, 0, -1)
    if x.dtype != np.uint8 or x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[-1] not in (1, 3)):
        raise DataError(
            f"an array of {x.dtype} {list(x.shape)}, and images are uint8 [H, W] or [H, W, 1 or 3]"
        )
    if x.size == 0:
        raise DataError(f"an array of shape {list(x.shape)}, without pixels")
    return Image.fromarray(np.ascontiguousarray(x[..., 0] if x.shape[2:] == (1,) else x))


def _opaque(image: Image.Image, kind: str | None) -> Image.Image:
    """The image in 8 bits a channel, transparent parts on white."""
    clear = "transparency" in image.info
    if image.mode.startswith("I"):
        if clear or (image.mode == "I" and kind not in ("PNG", "PPM")):
            raise DataError("gray of 32 bits or 16 with transparency; save it with 8 bits")
        wide = np.asarray(image).astype(np.float64)  # `convert` would clip at 255
        return Image.fromarray(np.rint(wide / 257).astype(np.uint8))
    if image.mode == "F":
        raise DataError("pixels are floats of unknown range; save it with 8 bits")
    if clear or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _square(image: Image.Image, size: int | None) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    if width != height:
        image = image.crop((left, top, left + side, top + side))
    if size is None or size == side:
        return image
    return image.resize((size, size), Image.Resampling.LANCZOS)
