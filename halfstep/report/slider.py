"""RUN/slider.html: the same noise at every guidance scale and number of steps, moved by two sliders."""

from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from halfstep.errors import ConfigError
from halfstep.report import numbers
from halfstep.report.grids import LARGEST, png, reduced, SMALL
from halfstep.report.guided import Shown, shown, Table, table
from halfstep.report.page import check
from halfstep.report.svg import COLOURS
from halfstep.report.templates import template, write_page

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
Said = tuple[str, str]
"""A number and its interval, as they are set."""


def write_slider(
    folder: Path, evidence: Mapping[str, Any], pictures: Mapping[str, NDArray[Any]]
) -> Path | None:
    """Write RUN/slider.html, one self-contained page, and say where it is; None where nothing is guided.

    evidence  as in RUN/report.json, with `guided`
    pictures  as in RUN/report.npz: `guided` uint8 [scales, ways, seeds, H, W, C], the teacher's way first,
              with `guided_scales` and `guided_labels`

    The same evidence gives the same bytes.  Raises as `write_report` does, for a page of 8 MB or more too.
    """
    page = render(evidence, pictures)
    if page is None:
        return None
    instead = "give it fewer seeds, scales or students"
    path = folder / "slider.html"
    return write_page(path, page, limit=LIMIT, name="the page of sliders", instead=instead)


def render(evidence: Mapping[str, Any], pictures: Mapping[str, NDArray[Any]]) -> str | None:
    """The page as text; see `write_slider`."""
    check(evidence)
    found, known = shown(pictures), table(evidence)
    if found is None or known is None:
        return None
    sprites, across = _sprites(found.stack)
    data = _data(found, known, sprites)
    at, way = _start(found, known)
    near = data["near"][at]

    def one(k: int) -> dict[str, Any]:
        return {
            "label": data["ways"][k],
            "source": sprites[at][k],
            "made": data["made"][at][k],
            "numbers": data["numbers"][near][k],
        }

    script = template("slider.js.j2").render()
    digest = b64encode(sha256(script.encode()).digest()).decode("ascii")
    return template("slider.html.j2").render(
        folder=evidence["run"]["folder"],
        guided=known,
        data=data,
        columns=list(COLUMNS.items()),
        student=one(way),
        teacher=one(0),
        at=at,
        start=data["scales"][at],
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


def _data(found: Shown, known: Table, sprites: list[list[str]]) -> dict[str, Any]:
    """What the script shows, as text: pictures by scale and way, numbers by scale of the table and way."""
    measured = list(known.scales)
    return {
        "scales": [f"{scale:g}" for scale in found.scales],
        "measured": [f"{scale:g}" for scale in measured],
        "near": [measured.index(known.nearest(scale)) for scale in found.scales],
        "ways": [label.removeprefix(TEACHER) for label in found.labels],
        "columns": list(COLUMNS),
        "numbers": [
            [_numbers(known, scale, label) for label in found.labels] for scale in measured
        ],
        "made": [[_made(known, scale, label) for label in found.labels] for scale in found.scales],
        "sprites": sprites,
        "seeds": found.stack.shape[2],
    }


def _made(known: Table, scale: float, label: str) -> str:
    """The calls of that way at any scale: guidance costs the teacher twice as many, but not at scale 1."""
    like = [at for at in known.scales if (at == 1) == (scale == 1)]
    row = known.row(min(like, key=lambda at: abs(at - scale)), label) if like else None
    return numbers.calls(row["calls"]) if row else ""


def _numbers(known: Table, scale: float, label: str) -> list[Said]:
    """The columns of one row."""
    row = known.row(scale, label)
    if row is None:
        return [(numbers.DASH, "")] * len(COLUMNS)
    floor = row["who"] == "teacher"
    return [
        (f"{row['calls']:,}", ""),
        _said(row["distance"], known.places["distance"]),
        ("the floor", "") if floor else _said(row["times_floor"], 2),
        _said(row["rmse"], known.places["rmse"]),
    ]


def _said(measured: numbers.Measured | None, decimals: int) -> Said:
    if measured is None:
        return numbers.DASH, ""
    return numbers.figure(measured["value"], decimals), numbers.ends(measured, decimals)


def _start(found: Shown, known: Table) -> tuple[int, int]:
    """Where the sliders stand at first: a scale of the table, a student, both from the middle."""
    measured = [k for k, scale in enumerate(found.scales) if scale in known.scales]
    at = measured or list(range(len(found.scales)))
    return at[len(at) // 2], len(found.labels) // 2


def _scale_stops(found: Shown, known: Table) -> list[tuple[str, bool]]:
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
