"""The pages of the documentation and their blocks of code."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = [
    path
    for path in sorted((ROOT / "docs").rglob("*.ipynb"))
    if ".ipynb_checkpoints" not in path.parts
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def text_of(page):
    """The text of a page; of a notebook that of its cells of text."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def blocks(page, language):
    return [text for kind, text in BLOCK.findall(text_of(page)) if kind == language]


def named(page):
    return str(page.relative_to(ROOT))


def test_every_block_says_its_language():
    known = {"python", "toml", "console", "bash", "text", "json"}
    for page in PAGES:
        assert page.read_text().count("```") % 2 == 0, page
        opened = re.findall(r"^```(\w*)$", page.read_text(), re.MULTILINE)[::2]
        assert set(opened) <= known, (named(page), set(opened) - known)
