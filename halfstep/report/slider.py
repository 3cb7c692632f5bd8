"""RUN/slider.html: the same noise at every guidance scale and number of steps, moved by two sliders."""

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
"""Bytes that all pictures of the page may take as text."""
STOPS = 11
"""Up to so many scales are written under the slider; of more, those of the table."""
COLUMNS = {
    "calls": "network calls",
    "distance": "Fréchet distance to the guided teacher",
    "times": "times the floor",
    "rmse": "paired error (rms)",
}
TEACHER = "teacher, "
NumberText = tuple[str, str]
"""A number and its interval, as they are set."""


def write(report: Report, path: Path) -> Path | None:
    """Write the page of sliders, self-contained, and return its path; None where nothing is guided.

    The same report gives the same bytes.  Raises as `page.write` does, for a page of 8 MB or more too.
    """
    page = render(report)
    if page is None:
        return None
    instead = "give it fewer seeds, scales or students"
    return write_page(path, page, limit=LIMIT, name="the page of sliders", instead=instead)


def render(report: Report) -> str | None:
    """The page as text; None where nothing is guided."""
    refuse_not_finite(report)
    found, known = guided_pictures(report.pictures), guided_view(report.guided)
    if found is None or known is None:
        return None
    sprites, across = _sprites(found.stack)
    data = _data(found, known, sprites)
    at, way = _start(found, known)
    near = data.near[at]

    def one(k: int) -> dict[str, object]:
        return {
            "label": data.ways[k],
            "source": sprites[at][k],
            "made": data.made[at][k],
            "numbers": data.numbers[near][k],
        }

    script = template("slider.js.j2").render()
    digest = b64encode(sha256(script.encode()).digest()).decode("ascii")
    return template("slider.html.j2").render(
        folder=report.run.folder,
        guided=known,
        data=asdict(data),
        columns=list(COLUMNS.items()),
        student=one(way),
        teacher=one(0),
        at=at,
        start=data.scales[at],
        step_at=len(found.labels) - 1 - way,
        between=found.scales[at] not in known.scales,
        scale_stops=_scale_stops(found, known),
        step_stops=[(label.split()[0], True) for label in reversed(found.labels[1:])],
        pixelated=across <= SMALL,
        shown=across,
        size=found.stack.shape[4],
        colours=COLOURS,
        script=Markup(script),  # its hash is in the page's policy; nothing of it comes from data
        hash=f"sha256-{digest}",
    )


@dataclass(frozen=True, kw_only=True)
class SliderData:
    """The text that the script shows: pictures by scale and way, numbers by scale of the table and way."""

    scales: list[str]
    measured: list[str]
    near: list[int]
    ways: list[str]
    columns: list[str]
    numbers: list[list[list[NumberText]]]
    made: list[list[str]]
    sprites: list[list[str]]
    seeds: int


def _data(found: GuidedPictures, known: GuidedView, sprites: list[list[str]]) -> SliderData:
    measured = list(known.scales)
    return SliderData(
        scales=[f"{scale:g}" for scale in found.scales],
        measured=[f"{scale:g}" for scale in measured],
        near=[measured.index(known.nearest(scale)) for scale in found.scales],
        ways=[label.removeprefix(TEACHER) for label in found.labels],
        columns=list(COLUMNS),
        numbers=[[_numbers(known, scale, label) for label in found.labels] for scale in measured],
        made=[[_made(known, scale, label) for label in found.labels] for scale in found.scales],
        sprites=sprites,
        seeds=found.stack.shape[2],
    )


def _made(known: GuidedView, scale: float, label: str) -> str:
    """The calls of that way at any scale: guidance costs the teacher twice as many, but not at scale 1."""
    like = [at for at in known.scales if (at == 1) == (scale == 1)]
    row = known.row(min(like, key=lambda at: abs(at - scale)), label) if like else None
    return numbers.calls(row.calls) if row else ""


def _numbers(known: GuidedView, scale: float, label: str) -> list[NumberText]:
    """The columns of one row."""
    row = known.row(scale, label)
    if row is None:
        return [(numbers.DASH, "")] * len(COLUMNS)
    floor = row.role == "teacher"
    return [
        (f"{row.calls:,}", ""),
        _number(row.distance, known.places["distance"]),
        ("the floor", "") if floor else _number(row.floor_ratio, 2),
        _number(row.rmse, known.places["rmse"]),
    ]


def _number(measured: Interval | None, decimals: int) -> NumberText:
    if measured is None:
        return numbers.DASH, ""
    return numbers.figure(measured.value, decimals), numbers.ends(measured, decimals)


def _start(found: GuidedPictures, known: GuidedView) -> tuple[int, int]:
    """Where the sliders stand at first: a scale of the table, a student, both from the middle."""
    measured = [k for k, scale in enumerate(found.scales) if scale in known.scales]
    at = measured or list(range(len(found.scales)))
    return at[len(at) // 2], len(found.labels) // 2


def _scale_stops(found: GuidedPictures, known: GuidedView) -> list[tuple[str, bool]]:
    """What is written under the slider, and whether it was measured."""
    many = len(found.scales) > STOPS
    stops = [(f"{scale:g}", scale in known.scales) for scale in found.scales]
    return [(text if strong or not many else "", strong) for text, strong in stops]


def _sprites(stack: NDArray[np.uint8]) -> tuple[list[list[str]], int]:
    """One picture a scale and way, of all its seeds, as data: addresses; how many pixels across each seed.

    Reduced by 2, 4, ... until they fit.  Raises ConfigError for more than can fit.
    """
    by = max(1, 2 ** int(np.ceil(np.log2(stack.shape[4] / LARGEST))))
    while True:
        done = [[_sprite(seeds, by) for seeds in ways] for ways in stack]
        size, across = sum(len(one) for row in done for one in row), max(1, stack.shape[4] // by)
        if size <= BUDGET:
            return done, across
        if across < 16:
            raise ConfigError(
                f"the page of sliders was given more pictures than fit into it ({size:,} bytes, at most "
                f"{BUDGET:,}): give it fewer seeds, scales or students"
            )
        by *= 2


def _sprite(seeds: NDArray[np.uint8], by: int) -> str:
    """All seeds side by side in rows, with nothing between them."""
    tiles = [np.asarray(reduced(one, by)) for one in seeds]
    tiles = [tile if tile.ndim == 3 else tile[..., None] for tile in tiles]
    height, width, channels = tiles[0].shape
    columns, gap = _columns(len(tiles)), max(1, width // 16)
    rows = -(-len(tiles) // columns)
    sheet = np.zeros(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels + 1), np.uint8
    )
    for k, tile in enumerate(tiles):
        top, left = (k // columns) * (height + gap), (k % columns) * (width + gap)
        sheet[top : top + height, left : left + width, :-1] = tile
        sheet[top : top + height, left : left + width, -1] = 255
    return png(Image.fromarray(sheet))


def _columns(seeds: int) -> int:
    """As square as can be: the most pixels for each in the width of a phone."""
    return max(1, int(np.ceil(np.sqrt(seeds))))
