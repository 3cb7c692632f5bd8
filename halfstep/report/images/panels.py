"""PNG files with labels: the same seeds in every row, points in the plane; drawn by Pillow alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from halfstep import files
from halfstep.pictures import tile
from halfstep.report.images.png import STUDENT, TEACHER

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

TEXT, GAP = 18, 14
"""Height of the labels and space around them, in pixels."""
CELL = 48
"""Side that small images are enlarged to, in pixels."""
EDGE, PANEL, FINE = 1.4, 340, 3
"""Largest coordinate that a panel of points shows, its side in pixels, drawn this much larger."""


def same_seeds(
    path: Path,
    teacher: tuple[str, Tensor],
    rows: Sequence[tuple[str, Tensor, Tensor]],
    *,
    heads: tuple[str, str] = ("distilled", "the teacher, not distilled"),
) -> None:
    """Draw one row per number of steps, with the same seeds in every column.

    teacher  (label, images at full steps), shown above both halves
    rows     (label, the student's images, left, the undistilled teacher's at as many calls, right)
    """
    every = [(teacher[0], teacher[1], teacher[1]), *rows]
    strips = [(_strip(left), _strip(right)) for _, left, right in every]
    width, height = strips[0][0].size
    margin = 2 * GAP + max(round(_font().getlength(label)) for label, _, _ in every)
    lefts, top = (margin, margin + width + 2 * GAP), TEXT + 2 * GAP
    page, draw = _page(lefts[1] + width + GAP, top + len(every) * (height + GAP))
    for left, head in zip(lefts, heads, strict=True):
        draw.text((left + width / 2, top / 2), head, fill=TEACHER, font=_font(), anchor="mm")
    for k, ((label, _, _), pair) in enumerate(zip(every, strips, strict=True)):
        y = top + k * (height + GAP)
        draw.text((margin - GAP, y + height / 2), label, fill=TEACHER, font=_font(), anchor="rm")
        for left, strip in zip(lefts, pair, strict=True):
            page.paste(strip, (left, y))
    _save(page, path)


def scatter(path: Path, clouds: Sequence[tuple[str, Tensor]]) -> None:
    """Draw sets of 2-D samples [N, 2] in one panel each, on the same axes, -1.4 to 1.4."""
    top = TEXT + GAP
    page, draw = _page(len(clouds) * (PANEL + GAP) + GAP, top + PANEL + GAP)
    for k, (name, points) in enumerate(clouds):
        left = GAP + k * (PANEL + GAP)
        draw.text((left + PANEL / 2, top / 2), name, fill=TEACHER, font=_font(), anchor="mm")
        page.paste(_points(points), (left, top))
        draw.rectangle((left, top, left + PANEL, top + PANEL), outline="#cccccc")
    _save(page, path)


def _points(points: Tensor) -> "Image":
    """The points as half-transparent dots, y upwards; those beyond the edges are left out."""
    from PIL import Image

    side = PANEL * FINE
    x, y = (points.double() * torch.tensor([1.0, -1.0])).T / (2 * EDGE) * side + side / 2
    covered = np.ones((side, side))
    reach = range(-FINE, FINE + 1)
    for row, column in ((i, j) for i in reach for j in reach if i * i + j * j <= FINE * FINE):
        at_x, at_y = (x + column).floor().long().numpy(), (y + row).floor().long().numpy()
        inside = (at_x >= 0) & (at_x < side) & (at_y >= 0) & (at_y < side)
        np.multiply.at(covered, (at_y[inside], at_x[inside]), 0.5)
    colour = np.array([int(STUDENT[k : k + 2], 16) for k in (1, 3, 5)])
    pixels = 255 * covered[..., None] + colour * (1 - covered[..., None])
    image = Image.fromarray(pixels.round().astype(np.uint8))
    return image.resize((PANEL, PANEL), Image.Resampling.BOX)


def _strip(images: Tensor) -> "Image":
    """Images in one row, small ones enlarged by a whole number."""
    from PIL import Image

    sheet = tile(images, columns=len(images))
    scale = max(1, CELL // images.shape[-2])
    pixels = sheet.repeat(scale, 0).repeat(scale, 1)
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def _page(width: int, height: int) -> tuple["Image", "ImageDraw"]:
    from PIL import Image, ImageDraw

    page = Image.new("RGB", (width, height), "white")
    return page, ImageDraw.Draw(page)


def _font() -> "FreeTypeFont | ImageFont":
    from PIL.ImageFont import load_default

    return load_default(TEXT)


def _save(page: "Image", path: Path) -> None:
    with files.replacing(path, durable=False) as (part,):
        page.save(part, format="PNG")
