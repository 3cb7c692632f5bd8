"""The page of troubleshooting has every class of error, with what to do."""

import inspect
import re

from halfstep import errors
from tests.support.docs import ROOT

PAGE = (ROOT / "docs" / "how-to" / "troubleshooting.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "reference" / "errors.rst").read_text(encoding="utf-8")
CLASSES = [
    name
    for name, thing in vars(errors).items()
    if inspect.isclass(thing) and issubclass(thing, Exception)
]


def test_every_class_of_error_has_a_row_a_section_and_a_place_in_the_reference():
    assert len(CLASSES) >= 6
    for name in CLASSES:
        assert f"| [`{name}`](#{name.lower()}) |" in PAGE
        assert f"\n## {name}\n\n" in PAGE
        assert f"{name}\n" in REFERENCE


def test_messages_on_the_page_are_those_of_the_source():
    """Each cell of messages, in pieces between its dots, is text of one file of the package."""
    start = PAGE.index("| the message, with ... for values |")
    cells = re.findall(r"^\| (.+?) \|", PAGE[start:].split("\n\n")[0], re.MULTILINE)[1:]
    joined = re.compile(r'"\s*\n\s*f?"')  # a message over several lines
    files = [joined.sub("", path.read_text()) for path in (ROOT / "halfstep").rglob("*.py")]
    assert len(cells) >= 8
    for cell in cells:
        pieces = [piece.strip() for piece in cell.split("...") if len(piece.strip()) > 3]
        assert any(all(piece in text for piece in pieces) for text in files), cell
