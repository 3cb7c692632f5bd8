"""README and docs say what is so: every block runs, every link leads somewhere."""

import re
import tomllib

import pytest

import halfstep
from tests.support.docs import blocks, named, PAGES, ROOT


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=named)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {"__name__": "__main__"}
    for text in blocks(page, "python"):
        exec(compile(text, named(page), "exec"), names)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "toml")], ids=named)
def test_toml_blocks_parse(page):
    for text in blocks(page, "toml"):
        tomllib.loads(text)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        for target in re.findall(
            r"`make ([a-z-]+)`|^make ([a-z-]+)", page.read_text(), re.MULTILINE
        ):
            assert "".join(target) in targets, (named(page), target)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (named(page), target)


def test_the_changelog_is_of_this_version():
    """What came since stands above it, as unreleased."""
    heads = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert next(head for head in heads if head != "Unreleased") == halfstep.__version__
    assert "Unreleased" not in heads[1:]
