"""Pictures for the page: PNG files inside it, small enough together to be mailed."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from halfstep.errors import ConfigError

BUDGET = 3_200_000
"""Bytes that all pictures of a page may take as text."""
LARGEST = 256
"""Pixels across that a picture is reduced to, at the most."""
SMALL = 64
"""Up to so many pixels across, a picture is drawn with its pixels as squares."""


@dataclass(frozen=True)
class Strip:
    """Pictures that belong together: a row of the grid, or a pair.  `sources` are data: addresses."""

    label: str
    sources: Sequence[str]


@dataclass(frozen=True)
class Sheet:
    """Strips of equal length.

    shown, size  pixels across, on the page and as drawn by the model
    """

    strips: Sequence[Strip]
    shown: int
    size: int

    @property
    def columns(self) -> int:
        return len(self.strips[0].sources)

    @property
    def pixelated(self) -> bool:
        return self.shown <= SMALL


def sheets(pictures: Mapping[str, NDArray[np.generic]]) -> dict[str, Sheet]:
    """The sheets `grid` and `worst` of a report.npz, those that it has, together within `BUDGET`.

    pictures  `grid` uint8 [R, K, H, W, C] and `worst` uint8 [M, 2, H, W, C], C 1 or 3, with
              `grid_labels` [R] and `worst_labels` [M]

    Larger pictures are reduced by 2, 4, ... until they fit.  Raises ConfigError for other shapes, and for
    more pictures than can fit.
    """
    found = {
        name: _checked(name, pictures)
        for name in ("grid", "worst")
        if name in pictures and pictures[name].size
    }
    by = 1
    while True:
        done = {name: _sheet(*parts, by) for name, parts in found.items()}
        if all(sheet.shown <= LARGEST for sheet in done.values()) and _bytes(done) <= BUDGET:
            return done
        if any(sheet.shown < 16 for sheet in done.values()):
            raise ConfigError(
                f"the report was given more pictures than fit into its page ({_bytes(done):,} bytes, at "
                f"most {BUDGET:,}): give it fewer rows or columns"
            )
        by *= 2


def _checked(
    name: str, pictures: Mapping[str, NDArray[np.generic]]
) -> tuple[NDArray[np.uint8], list[str]]:
    stack, labels = pictures[name], [str(x) for x in pictures.get(f"{name}_labels", np.array([]))]
    if stack.ndim != 5 or stack.dtype != np.uint8 or stack.shape[-1] not in (1, 3):
        raise ConfigError(
            f"'{name}' is drawn from uint8 [rows, columns, H, W, 1 or 3], got {stack.dtype} "
            f"{list(stack.shape)}: convert it with report.pictures.to_uint8"
        )
    if len(labels) != len(stack):
        raise ConfigError(
            f"'{name}' has {len(stack)} rows and {len(labels)} labels: write one in '{name}_labels' for "
            "each row"
        )
    return stack.astype(np.uint8, copy=False), labels


def _sheet(stack: NDArray[np.uint8], labels: Sequence[str], by: int) -> Sheet:
    strips = [
        Strip(label, [png(reduced(one, by)) for one in row])
        for label, row in zip(labels, stack, strict=True)
    ]
    width = stack.shape[3]
    return Sheet(strips, max(1, width // by), width)


def reduced(picture: NDArray[np.uint8], by: int) -> Image.Image:
    """A picture [H, W, 1 or 3], made smaller by means of squares."""
    image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
    if by == 1:
        return image
    size = max(1, image.width // by), max(1, image.height // by)
    return image.resize(size, Image.Resampling.BOX)


def png(image: Image.Image) -> str:
    """A data: address of the picture, without loss."""
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + b64encode(file.getvalue()).decode("ascii")


def _bytes(done: Mapping[str, Sheet]) -> int:
    return sum(
        len(one) for sheet in done.values() for strip in sheet.strips for one in strip.sources
    )
