"""llms.txt: what halfstep is in ten lines for a language model, and a link to the source of every page."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

CAPTION = re.compile(r":caption: (.+)\n((?:\n|[\w/-]+\n)*):::")


def text_of(docs: Path) -> str:
    """docs/llms.txt, and the pages by the headings of the navigation, each with its first line."""
    head = (docs / "llms.txt").read_text(encoding="utf-8")
    index = (docs / "index.md").read_text(encoding="utf-8")
    lines = [head.rstrip("\n")]
    for caption, pages in CAPTION.findall(index):
        lines += ["", f"## {caption}", ""]
        for page in pages.split():
            source = source_of(docs, page)
            title, first = opening(source)
            link = f"{page}.html" if source.suffix == ".rst" else f"_sources/{page}{source.suffix}"
            lines.append(f"- [{title}]({link}): {first}")
    return "\n".join(lines) + "\n"


def source_of(docs: Path, page: str) -> Path:
    """The file of a page."""
    return next(path for path in docs.glob(f"{page}.*") if path.suffix in (".md", ".rst", ".ipynb"))


def opening(source: Path) -> tuple[str, str]:
    """The title of a page, and the first sentence of its text."""
    paragraphs = [" ".join(block.split()) for block in prose(source)]
    title = paragraphs[0].lstrip("# ").split(" ===")[0]
    plain = (p for p in paragraphs[1:] if re.match(r"[\w`*]", p) and not p.startswith("```"))
    first = re.sub(r"\[([^\]]+)\]\([^)]+\)|:doc:`([^`]+)`", r"\1\2", next(plain, title))
    return title, re.split(r"(?<!\bal)\.\s", first)[0].rstrip(".:").replace("``", "`")


def prose(source: Path) -> Iterator[str]:
    """The paragraphs of a page; a page that includes another has those of the other."""
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    if match := re.match(r":::\{include\} (\S+)", text):
        text = (source.parent / match[1]).read_text(encoding="utf-8")
    yield from re.split(r"\n\s*\n", text)


def write(app, error):
    if error is None and app.builder.format == "html":
        (Path(app.outdir) / "llms.txt").write_text(text_of(Path(app.srcdir)), encoding="utf-8")


def setup(app):
    app.connect("build-finished", write)
    return {"parallel_read_safe": True}
