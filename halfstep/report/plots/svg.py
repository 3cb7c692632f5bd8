"""Plots as inline SVG, deterministic to the byte, in the page's colours and font."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any, TYPE_CHECKING

from markupsafe import escape, Markup

from halfstep.report.images.png import DDIM, SOLVER, STUDENT, TEACHER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# name of the page's variable: (on white, on black).  Series differ in marker and line, too.
COLOURS = {
    "student": (STUDENT, "#4cc39b"),
    "ddim": (DDIM, "#e08a55"),
    "solver": (SOLVER, "#a99be0"),
    "heun": ("#a8841a", "#d8b649"),
    "other": ("#4a86a8", "#7fb8d6"),
    "teacher": (TEACHER, "#d6d6d6"),
    "muted": ("#6b7370", "#9aa39f"),
    "rule": ("#e3e7e5", "#33393c"),
}
INK = {name: light for name, (light, _) in COLOURS.items()}
WIDE, NARROW = (10.0, 5.0), (4.9, 4.5)  # inches of 72 units
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "halfstep",
    "svg.fonttype": "none",
    "text.parse_math": False,  # names come from data
    "font.family": ["DejaVu Sans"],
    "font.size": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK["muted"],
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK["muted"],
    "axes.axisbelow": True,
    "xtick.color": INK["muted"],
    "ytick.color": INK["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.solid_capstyle": "round",
}


FONT = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Drawing:
    """A plot for the page: inline SVG for wide screens, then for narrow ones."""

    inline: Markup

    @property
    def file(self) -> str:
        """The wide plot as an SVG file."""
        wide, end, _ = str(self.inline).partition("</svg>")
        return standalone(wide + end)


def drawn_twice(
    name: str,
    draw: Callable[..., None],
    alt: str,
    *,
    heights: tuple[float, float] = (WIDE[1], NARROW[1]),
    panels: int = 1,
) -> Drawing:
    """Draw a plot for wide and for narrow screens; the page shows one of them.

    name     prefix of the ids inside, to make them unique in a page
    draw     called with the axes, one or an upper and a lower one
    alt      alternative text
    heights  of both, in inches of 72 units
    """
    from matplotlib.figure import Figure

    parts = []
    for kind, width, height in (("wide", WIDE[0], heights[0]), ("narrow", NARROW[0], heights[1])):
        with _house_style():
            figure = Figure(figsize=(width, height), layout="constrained", dpi=72)
            if panels == 1:
                draw(figure.subplots())
            else:
                draw(*figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1]))
            parts.append(_inline(figure, f"{name}-{kind}", kind, alt))
    return Drawing(Markup("").join(parts))


@contextmanager
def _house_style() -> Iterator[None]:
    """Set the style, and ignore glyphs missing from matplotlib's font: the browser draws the text."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _inline(figure: "Figure", name: str, kind: str, alt: str) -> Markup:
    """The figure as inline SVG with unique ids, the page's colours and font, and no fixed size."""
    file = StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    body = text[box.end() :].split("</defs>", 1)[1]  # the first holds a style for the whole page
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", body)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'( id="| href="#|url\(#)', rf"\1{name}-", body)
    body = re.sub(r" font-family:[^;\"]*;", "", body)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body)
    body = re.sub(r' (?:d|x|y|transform)="[^"]*"', _hundredths, body)
    while body != (body := re.sub(r"<g/>\s*|<g>\s*</g>\s*", "", body)):
        pass
    for colour, value in INK.items():
        body = body.replace(f": {value}", f": var(--{colour})")
    head = f'<svg class="{kind}" {box[0]} role="img" aria-label="{escape(alt)}">'
    return Markup(head + re.sub(r"\s*\n\s*", "\n", body))


def _hundredths(attribute: re.Match[str]) -> str:
    """An attribute with its coordinates to a hundredth of a point."""
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", attribute[0])


def standalone(inline: str) -> str:
    """The SVG file of an inline plot: with its namespaces, size, font and the light colours, on white."""
    box = re.search(r'viewBox="0 0 (\S+) (\S+)"', inline)
    alt = re.search(r'aria-label="([^"]*)"', inline)
    assert box is not None and alt is not None
    body = inline[inline.index(">") + 1 :].replace(' href="#', ' xlink:href="#')
    body = re.sub(r"var\(--(\w+)\)", lambda m: INK[m[1]], body)
    style = f"text {{ font-family: {FONT}; fill: {INK['muted']} }} * {{ stroke-linejoin: round }}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{box[0]} width="{box[1]}" height="{box[2]}" role="img">\n<title>{alt[1]}</title>\n'
        f'<style>{style}</style>\n<rect width="100%" height="100%" fill="#fff"/>{body}\n'
    )
