"""PNG files: images, sheets of images, curves of quality against network calls."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from halfstep import files
from halfstep.errors import ConfigError
from halfstep.extras import needed
from halfstep.pictures import enlarged, save_picture, tile, to_uint8

STUDENT, DDIM, SOLVER, TEACHER = "#0b6e4f", "#b3541e", "#7768ae", "#333333"


def save_images(images: Tensor, folder: Path, *, first: int = 0) -> list[Path]:
    """Write one PNG per image, named by its number."""
    files.make_folder(folder)
    paths = [folder / f"{first + k:06d}.png" for k in range(len(images))]
    for path, pixels in zip(paths, to_uint8(images), strict=True):
        save_picture(pixels, path)
    return paths


def save_grid(images: Tensor, path: Path, *, columns: int | None = None, scale: int = 4) -> None:
    """Write a sheet of images, each pixel enlarged `scale` times."""
    sheet = tile(images, columns=columns or max(1, round(len(images) ** 0.5)))
    save_picture(enlarged(sheet, scale), path)


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
