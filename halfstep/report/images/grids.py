"""Pictures of a page as PNG data: URLs, within a budget of bytes."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from halfstep.errors import ConfigError

BUDGET, DIFFERENCES = 3_200_000, 1_000_000
"""Largest sizes of all samples and of all difference images of a page, as text."""
LARGEST = 256
"""Largest width of a picture; wider ones are reduced."""
SMALL = 64
"""Largest width of a picture that is shown with square pixels."""
SCALES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Differences that a difference image may show as white; pixels lie from -1 to 1."""

T = TypeVar("T", bound=np.generic)
_Stack = tuple[NDArray[T], Sequence[str]]
"""Pictures [rows, columns, H, W, C] and the labels of their rows."""


@dataclass(frozen=True)
class Strip:
    """A row of pictures: a row of the grid, or a pair.  `sources` are data: URLs."""

    label: str
    sources: Sequence[str]


@dataclass(frozen=True)
class Sheet:
    """Strips of equal length.

    shown, size  width of a picture in pixels, on the page and in the data
    heads        the class of each column; empty for data without labels
    scale        the difference, pixels from -1 to 1, that its difference images show as white
    """

    strips: Sequence[Strip]
    shown: int
    size: int
    heads: Sequence[str] = ()
    scale: float | None = None

    @property
    def columns(self) -> int:
        return len(self.strips[0].sources)

    @property
    def pixelated(self) -> bool:
        return self.shown <= SMALL


@dataclass(frozen=True)
class Sheets:
    """All pictures of a page; None for those that a report does not have.

    grid         one row for each setup, the same seeds in every column
    differences  each row of `grid` but the first, minus the first
    worst        pairs of the same seed, each followed by its difference image
    """

    grid: Sheet | None = None
    differences: Sheet | None = None
    worst: Sheet | None = None


def sheets(pictures: Mapping[str, NDArray[np.generic]]) -> Sheets:
    """The sheets of a report.npz, samples within `BUDGET` and difference images within `DIFFERENCES`.

    pictures  `grid` uint8 [R, K, H, W, C] and `worst` uint8 [M, 2, H, W, C], C 1 or 3, with
              `grid_labels` [R] and `worst_labels` [M], and with `grid_classes` [K] where there are labels

    Larger pictures are reduced by 2, 4, ... until they fit.  `ConfigError` for other shapes, and if they
    cannot fit.
    """
    stacks = {
        name: _checked(name, pictures)
        for name in ("grid", "worst")
        if name in pictures and pictures[name].size
    }
    shown = _fitting(stacks, BUDGET, smallest=16)
    grid, worst = shown.get("grid"), shown.get("worst")
    if grid:
        grid = replace(grid, heads=_heads(grid.columns, pictures))
    minus = {name: _minus(name, *parts) for name, parts in stacks.items()}
    minus = {name: parts for name, parts in minus.items() if parts[0].size}
    scales = {name: difference_scale(stack) for name, (stack, _) in minus.items()}
    inked = {name: (ink(stack, scales[name]), labels) for name, (stack, labels) in minus.items()}
    differences = {
        name: replace(sheet, scale=scales[name])
        for name, sheet in _fitting(inked, DIFFERENCES, smallest=4).items()
    }
    if worst:
        worst = _beside(worst, differences["worst"])
    return Sheets(grid, differences.get("grid"), worst)


def _heads(columns: int, pictures: Mapping[str, NDArray[np.generic]]) -> Sequence[str]:
    """The class of each column of the grid, if the samples have labels."""
    names = [str(name) for name in pictures.get("grid_classes", ())]
    if names and len(names) != columns:
        raise ConfigError(
            f"'grid_classes' has {len(names)} names for {columns} columns of 'grid': write one for each"
        )
    return names


def _fitting(
    stacks: Mapping[str, _Stack[np.uint8]], budget: int, *, smallest: int
) -> dict[str, Sheet]:
    """Sheets of these pictures, reduced until they fit into `budget`."""
    by = 1
    while True:
        result = {name: _sheet(*parts, by) for name, parts in stacks.items()}
        if all(sheet.shown <= LARGEST for sheet in result.values()) and _bytes(result) <= budget:
            return result
        if any(sheet.shown < smallest for sheet in result.values()):
            raise ConfigError(
                f"the report was given more pictures than fit into its page ({_bytes(result):,} bytes, at "
                f"most {budget:,}): give it fewer rows or columns"
            )
        by *= 2


def _minus(name: str, stack: NDArray[np.uint8], labels: Sequence[str]) -> _Stack[np.float32]:
    """Differences, pixels from -1 to 1: of the rows of a grid to its first, and of the pairs of `worst`."""
    pixels = stack.astype(np.float32) / 127.5
    if name == "worst":
        return pixels[:, 1:2] - pixels[:, 0:1], labels
    return pixels[1:] - pixels[:1], labels[1:]


def difference_scale(differences: NDArray[np.float32]) -> float:
    """The smallest of `SCALES` that at most one difference in a hundred exceeds."""
    sizes = np.abs(differences)
    return next((scale for scale in SCALES if np.mean(sizes > scale) <= 0.01), SCALES[-1])


def ink(differences: NDArray[np.float32], scale: float) -> NDArray[np.uint8]:
    """Difference images: grey for none, white for `scale` or more, black for -`scale` or less."""
    levels = np.rint(127.5 * (1 + differences / scale))
    return np.asarray(levels.clip(0, 255), np.uint8)


def _beside(pairs: Sheet, differences: Sheet) -> Sheet:
    """Pairs with the difference image of each as a third picture."""
    strips = [
        Strip(pair.label, [*pair.sources, *minus.sources])
        for pair, minus in zip(pairs.strips, differences.strips, strict=True)
    ]
    return replace(pairs, strips=strips, scale=differences.scale)


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
