"""Pictures of a page as PNG data: URLs, within a budget of bytes."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from halfstep.errors import ConfigError

BUDGET = 3_200_000
"""Largest size of all pictures of a page, as text."""
LARGEST = 256
"""Largest width of a picture; wider ones are reduced."""
SMALL = 64
"""Largest width of a picture that is shown with square pixels."""


@dataclass(frozen=True)
class Strip:
    """A row of pictures: a row of the grid, or a pair.  `sources` are data: URLs."""

    label: str
    sources: Sequence[str]


@dataclass(frozen=True)
class Sheet:
    """Strips of equal length.

    shown, size  width of a picture in pixels, on the page and in the data
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
    """The sheets `grid` and `worst` of a report.npz, if present, together within `BUDGET`.

    pictures  `grid` uint8 [R, K, H, W, C] and `worst` uint8 [M, 2, H, W, C], C 1 or 3, with
              `grid_labels` [R] and `worst_labels` [M]

    Larger pictures are reduced by 2, 4, ... until they fit.  `ConfigError` for other shapes, and if they
    cannot fit.
    """
    stacks = {
        name: _checked(name, pictures)
        for name in ("grid", "worst")
        if name in pictures and pictures[name].size
    }
    by = 1
    while True:
        result = {name: _sheet(*parts, by) for name, parts in stacks.items()}
        if all(sheet.shown <= LARGEST for sheet in result.values()) and _bytes(result) <= BUDGET:
            return result
        if any(sheet.shown < 16 for sheet in result.values()):
            raise ConfigError(
                f"the report was given more pictures than fit into its page ({_bytes(result):,} bytes, at "
                f"most {BUDGET:,}): give it fewer rows or columns"
            )
        by *= 2


def _checked(
    name: str, pictures: Mapping[str, NDArray[np.generic]]
) -> tuple[NDArray[np.uint8], list[str]]:
    stack, labels = pictures[name], [str(x) for x in pictures.get(f"{name}_labels", np.array([]))]
    if stack.ndim != 5 or stack.dtype != np.uint8 or stack.shape[-1] not in (1, 3):
        raise ConfigError(
            f"'{name}' must be uint8 [rows, columns, H, W, 1 or 3], got {stack.dtype} "
            f"{list(stack.shape)}: convert it with halfstep.pictures.to_uint8"
        )
    if len(labels) != len(stack):
        raise ConfigError(
            f"'{name}' has {len(stack)} rows and {len(labels)} labels: write one in '{name}_labels' for "
            "each row"
        )
    return stack.astype(np.uint8, copy=False), labels


def _sheet(stack: NDArray[np.uint8], labels: Sequence[str], by: int) -> Sheet:
    strips = [
        Strip(label, [png(reduced(picture, by)) for picture in row])
        for label, row in zip(labels, stack, strict=True)
    ]
    width = stack.shape[3]
    return Sheet(strips, max(1, width // by), width)


def reduced(picture: NDArray[np.uint8], by: int) -> Image.Image:
    """A picture [H, W, 1 or 3], reduced by averaging squares of pixels."""
    image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
    if by == 1:
        return image
    size = max(1, image.width // by), max(1, image.height // by)
    return image.resize(size, Image.Resampling.BOX)


def png(image: Image.Image) -> str:
    """A lossless data: URL of the picture."""
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + b64encode(file.getvalue()).decode("ascii")


def _bytes(sheets: Mapping[str, Sheet]) -> int:
    return sum(
        len(source)
        for sheet in sheets.values()
        for strip in sheet.strips
        for source in strip.sources
    )
