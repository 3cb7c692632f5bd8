"""RUN/slider.html: samples of the same noise, with sliders for the guidance scale and the steps."""

from base64 import b64encode
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.report_data import Report
from halfstep.report.guided_table import guided_pictures, guided_view, GuidedPictures, GuidedView
from halfstep.report.images.grids import LARGEST, png, reduced, SMALL
from halfstep.report.page import refuse_not_finite
from halfstep.report.plots.svg import COLOURS
from halfstep.report.templates import template, write_page
from halfstep.report.words import numbers

LIMIT = 8_000_000
BUDGET = LIMIT - 400_000
"""Largest size of all pictures of the page, as text."""
STOPS = 11
"""Most labels under the slider; with more scales, only those of the table are labelled."""
COLUMNS = {
    "calls": "network calls",
    "distance": "Fréchet distance to the guided teacher",
    "times": "times the floor",
    "rmse": "paired error (rms)",
}
TEACHER = "teacher, "
NumberText = tuple[str, str]
"""A number and its interval as text."""


def write(report: Report, path: Path) -> Path | None:
    """Write the self-contained page of sliders and return its path; None for a run without guided students.

    Deterministic to the byte.  Raises as `page.write`, and for a page of 8 MB or more.
    """
    page = render(report)
    if page is None:
        return None
    instead = "give it fewer seeds, scales or students"
    return write_page(path, page, limit=LIMIT, name="the page of sliders", instead=instead)


def render(report: Report) -> str | None:
    """The page as text; None for a run without guided students."""
    refuse_not_finite(report)
    pictures, view = guided_pictures(report.pictures), guided_view(report.guided)
    if pictures is None or view is None:
        return None
    sprites, across = _sprites(pictures.stack)
    data = _data(pictures, view, sprites)
    at, way = _start(pictures, view)
    near = data.near[at]

    def panel(k: int) -> Panel:
        return Panel(data.ways[k], sprites[at][k], data.made[at][k], data.numbers[near][k])

    script = template("slider.js.j2").render()
    digest = b64encode(sha256(script.encode()).digest()).decode("ascii")
    return template("slider.html.j2").render(
        folder=report.run.folder,
        guided=view,
        data=asdict(data),
        columns=list(COLUMNS.items()),
        student=panel(way),
        teacher=panel(0),
        at=at,
        start=data.scales[at],
        step_at=len(pictures.labels) - 1 - way,
        between=pictures.scales[at] not in view.scales,
        scale_stops=_scale_stops(pictures, view),
        step_stops=[(label.split()[0], True) for label in reversed(pictures.labels[1:])],
        pixelated=across <= SMALL,
        shown=across,
        size=pictures.stack.shape[4],
        colours=COLOURS,
        script=Markup(script),  # constant text, whose hash is in the page's policy
        hash=f"sha256-{digest}",
    )


@dataclass(frozen=True)
class Panel:
    """One of the two pictures that the page shows first, with its numbers."""

    label: str
    source: str
    made: str
    numbers: list[NumberText]


@dataclass(frozen=True, kw_only=True)
class SliderData:
    """The data of the script: pictures by scale and setup, numbers by scale of the table and setup."""

    scales: list[str]
    measured: list[str]
    near: list[int]
    ways: list[str]
    columns: list[str]
    numbers: list[list[list[NumberText]]]
    made: list[list[str]]
    sprites: list[list[str]]
    seeds: int


def _data(pictures: GuidedPictures, view: GuidedView, sprites: list[list[str]]) -> SliderData:
    measured = list(view.scales)
    return SliderData(
        scales=[f"{scale:g}" for scale in pictures.scales],
        measured=[f"{scale:g}" for scale in measured],
        near=[measured.index(view.nearest(scale)) for scale in pictures.scales],
        ways=[label.removeprefix(TEACHER) for label in pictures.labels],
        columns=list(COLUMNS),
        numbers=[[_numbers(view, scale, label) for label in pictures.labels] for scale in measured],
        made=[
            [_made(view, scale, label) for label in pictures.labels] for scale in pictures.scales
        ],
        sprites=sprites,
        seeds=pictures.stack.shape[2],
    )


def _made(view: GuidedView, scale: float, label: str) -> str:
    """The network calls of a setup at any scale; guidance doubles the teacher's, except at scale 1."""
    like = [at for at in view.scales if (at == 1) == (scale == 1)]
    row = view.row(min(like, key=lambda at: abs(at - scale)), label) if like else None
    return numbers.calls(row.calls) if row else ""


def _numbers(view: GuidedView, scale: float, label: str) -> list[NumberText]:
    """The numbers of one setup at a scale of the table."""
    row = view.row(scale, label)
    if row is None:
        return [(numbers.DASH, "")] * len(COLUMNS)
    floor = row.role == "teacher"
    return [
        (f"{row.calls:,}", ""),
        _number(row.distance, view.places["distance"]),
        ("the floor", "") if floor else _number(row.floor_ratio, 2),
        _number(row.rmse, view.places["rmse"]),
    ]


def _number(measured: Interval | None, decimals: int) -> NumberText:
    if measured is None:
        return numbers.DASH, ""
    return numbers.figure(measured.value, decimals), numbers.ends(measured, decimals)


def _start(pictures: GuidedPictures, view: GuidedView) -> tuple[int, int]:
    """The initial positions of the sliders: the middle scale of the table, and the middle student."""
    measured = [k for k, scale in enumerate(pictures.scales) if scale in view.scales]
    at = measured or list(range(len(pictures.scales)))
    return at[len(at) // 2], len(pictures.labels) // 2


def _scale_stops(pictures: GuidedPictures, view: GuidedView) -> list[tuple[str, bool]]:
    """The labels under the slider, and whether each scale was measured."""
    many = len(pictures.scales) > STOPS
    stops = [(f"{scale:g}", scale in view.scales) for scale in pictures.scales]
    return [(text if strong or not many else "", strong) for text, strong in stops]


def _sprites(stack: NDArray[np.uint8]) -> tuple[list[list[str]], int]:
    """One picture of all seeds for each scale and setup, as data: URLs, and the width of a seed in pixels.

    Reduced by 2, 4, ... until they fit.  `ConfigError` if they cannot fit.
    """
    by = max(1, 2 ** int(np.ceil(np.log2(stack.shape[4] / LARGEST))))
    while True:
        sprites = [[_sprite(seeds, by) for seeds in ways] for ways in stack]
        size, across = (
            sum(len(sprite) for row in sprites for sprite in row),
            max(1, stack.shape[4] // by),
        )
        if size <= BUDGET:
            return sprites, across
        if across < 16:
            raise ConfigError(
                f"the pictures of the page of sliders take {size:,} bytes of at most {BUDGET:,}: give it "
                "fewer seeds, scales or students"
            )
        by *= 2


def _sprite(seeds: NDArray[np.uint8], by: int) -> str:
    """The pictures of all seeds in one sheet, as a data: URL."""
    tiles = [np.asarray(reduced(picture, by)) for picture in seeds]
    tiles = [tile if tile.ndim == 3 else tile[..., None] for tile in tiles]
    height, width, channels = tiles[0].shape
    columns, gap = _columns(len(tiles)), max(1, width // 16)
    rows = -(-len(tiles) // columns)
    sheet = np.zeros(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels + 1), np.uint8
    )
    for k, tile in enumerate(tiles):
        y, x = (k // columns) * (height + gap), (k % columns) * (width + gap)
        sheet[y : y + height, x : x + width, :-1] = tile
        sheet[y : y + height, x : x + width, -1] = 255
    return png(Image.fromarray(sheet))


def _columns(seeds: int) -> int:
    """The number of columns of a nearly square sheet."""
    return max(1, int(np.ceil(np.sqrt(seeds))))
