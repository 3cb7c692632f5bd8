"""The pages of the documentation and their blocks of code."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def named(page):
    return str(page.relative_to(ROOT))


def test_every_block_says_its_language():
    known = {"python", "toml", "console", "bash", "text", "json"}
    for page in PAGES:
        assert page.read_text().count("```") % 2 == 0, page
        opened = re.findall(r"^```(\w*)$", page.read_text(), re.MULTILINE)[::2]
        assert set(opened) <= known, (named(page), set(opened) - known)
