"""PNG files: images, sheets of images, curves of quality against network calls."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halfstep import files
from halfstep.errors import ConfigError, DataError
from halfstep.extras import needed
from halfstep.pixels import as_floats

STUDENT, DDIM, SOLVER, TEACHER = "#0b6e4f", "#b3541e", "#7768ae", "#333333"


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Convert images [N, C, H, W], C 1 or 3, float in [-1, 1] or uint8, to uint8 [N, H, W, C]."""
    images = as_floats(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ConfigError(
            f"pictures need images [N, 1 or 3, H, W], got {list(images.shape)}: write --npz for other data"
        )
    if not bool(images.isfinite().all()):
        raise DataError("some pixels are nan or infinite: the sampler of these images has diverged")
    scaled = ((images + 1) * 127.5).round().clamp(0, 255)
    return np.asarray(scaled.permute(0, 2, 3, 1).byte().numpy())


def save_images(images: Tensor, folder: Path, *, first: int = 0) -> list[Path]:
    """Write one PNG per image, named by its number."""
    files.make_folder(folder)
    paths = [folder / f"{first + k:06d}.png" for k in range(len(images))]
    for path, pixels in zip(paths, to_uint8(images), strict=True):
        _save(pixels, path)
    return paths


def tile(images: Tensor, *, columns: int, gap: int = 1) -> NDArray[np.uint8]:
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


def save_grid(images: Tensor, path: Path, *, columns: int | None = None, scale: int = 4) -> None:
    """Write a sheet of images, each pixel enlarged `scale` times."""
    sheet = tile(images, columns=columns or max(1, round(len(images) ** 0.5)))
    _save(sheet.repeat(scale, 0).repeat(scale, 1), path)


def save_over(
    above: Tensor, below: Tensor, path: Path, *, columns: int | None = None, scale: int = 4
) -> None:
    """Write a sheet of pairs, images of `above` over those of `below`; 16 columns at most by default."""
    if above.shape != below.shape:
        raise ConfigError(
            f"pairs need images of one shape, got {list(above.shape)} over {list(below.shape)}"
        )
    columns = min(columns or 16, len(above))
    blank = above.new_ones(-len(above) % columns, *above.shape[1:])
    rows = [torch.cat([x, blank]).split(columns) for x in (above, below)]
    pairs = torch.cat([x for pair in zip(*rows, strict=True) for x in pair])
    save_grid(pairs, path, columns=columns, scale=scale)


def quality_curve(
    path: Path,
    curves: Sequence[tuple[str, Sequence[int], Sequence[float], str]],
    *,
    full: tuple[str, float],
    floor: float,
    ylabel: str = "Fréchet distance",
) -> None:
    """Draw distance against network calls, both axes logarithmic.

    curves  (name, calls, distances, colour)
    full    (name, distance) of the teacher at full steps, a line
    floor   the sampling floor, a line

    `ConfigError` where matplotlib is not installed.
    """
    with needed("figures", "to draw curves", library="matplotlib"):
        from matplotlib.figure import Figure  # here, as images are saved without it

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    for name, calls, values, colour in curves:
        axis.plot(calls, values, "o-", label=name, color=colour, linewidth=2, markersize=5)
    axis.axhline(full[1], color=TEACHER, linestyle="--", linewidth=1, label=full[0])
    axis.axhline(floor, color="#999999", linestyle=":", linewidth=1, label="sampling floor")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    ticks = sorted({c for _, calls, _, _ in curves for c in calls})
    axis.set_xticks(ticks, [str(c) for c in ticks])
    axis.set_xlabel("network calls a sample")
    axis.set_ylabel(ylabel)
    axis.grid(True, which="both", color="#eeeeee")
    axis.legend(frameon=False, fontsize=9)
    with files.replacing(path, durable=False) as (part,):
        figure.savefig(part, format="png", dpi=130)


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    with files.replacing(path, durable=False) as (part,):
        image.save(part, format="PNG")
