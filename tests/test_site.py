"""The site: a picture or a number at the top of every page, an llms.txt of all pages, a glossary in order."""

import re
import sys

import pytest

from tests.support.docs import named, ROOT

DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "extensions"))
from llms import opening, prose, text_of  # noqa: E402

sys.path.pop(0)
PAGES = sorted(
    path
    for path in DOCS.rglob("*")
    if path.suffix in (".md", ".rst", ".ipynb") and ".ipynb_checkpoints" not in path.parts
)
OF_THE_PROJECT = [page for page in PAGES if page.parent.name == "project"]
"""They include a file of the top folder as it is."""
UNITS = (
    "arguments bytes calls classes columns configurations errors floors GB GiB images interface lines losses",
    "minutes ms mutants parameters pixels points processes samples schedules schedulers seconds shells",
    "steps terms times updates walks weights",
)
NAMES = "|".join(f"{unit}|{unit[:-1]}" for line in UNITS for unit in line.split())
NUMBER = re.compile(rf"(?<![\w.,-])\d[\d,.]*(?: %|[ -](?:[\w-]+ ){{0,2}}(?:{NAMES})\b)")
TOP = 12


def top(page):
    """The first lines below the title of a page, without code."""
    text = re.sub(r"^```.*?^```$", "", "\n\n".join(prose(page)), flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if line.strip()]
    return re.sub(r"``?[^`]*``?", "", "\n".join(lines[1 : 1 + TOP]))


@pytest.mark.parametrize("page", [page for page in PAGES if page not in OF_THE_PROJECT], ids=named)
def test_every_page_has_a_picture_or_a_number_at_its_top(page):
    assert "![" in top(page) or NUMBER.search(top(page)), top(page)


def test_a_number_has_a_unit():
    assert NUMBER.search("in 4 steps") and NUMBER.search("a 95 % interval")
    assert NUMBER.search("2,259 shared seconds") and NUMBER.search("one of 1.5 times")
    assert not NUMBER.search("Meng et al. 2023") and not NUMBER.search("in [0, 1] and t = 1")
    assert not NUMBER.search("section 4.1") and not NUMBER.search("x0 steps")


def test_llms_txt_links_to_every_page_and_each_link_leads_somewhere():
    links = re.findall(r"^- \[(.+?)\]\((.+?)\): (.+)$", text_of(DOCS), re.MULTILINE)
    sources = set()
    for title, link, line in links:
        path = DOCS / link.removeprefix("_sources/")
        path = path.with_suffix(".rst") if path.suffix == ".html" else path
        assert path in PAGES, link
        assert title and len(line.split()) >= 2, link
        sources.add(path)
    assert sources == set(PAGES) - {DOCS / "index.md"}


def test_llms_txt_names_only_what_the_package_has():
    import halfstep

    head = (DOCS / "llms.txt").read_text(encoding="utf-8")
    [names] = re.findall(r"from halfstep import ([\w, ]+)`", head)
    assert all(hasattr(halfstep, name) for name in names.split(", "))
    assert opening(DOCS / "index.md")[0] == "halfstep"


def test_the_glossary_is_in_order_and_counts_its_terms():
    text = (DOCS / "explain" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^(\S.*)\n: ", text, re.MULTILINE)
    assert terms == sorted(terms, key=str.lower)
    assert f": {len(terms)} terms" in text
    for term in ("NFE", "step", "guidance scale", "SNR", "v", "DDIM", "floor", "ratio", "gate"):
        assert any(term in entry.split(", ") for entry in terms), term
