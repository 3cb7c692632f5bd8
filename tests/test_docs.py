"""README and docs say what is so: every block runs, every link leads somewhere."""

import re
import tomllib

import pytest

import halfstep
from halfstep import QualityGate
from halfstep.evaluation import Evaluation
from tests.support.docs import blocks, named, NOTEBOOKS, PAGES, ROOT, text_of

README = ROOT / "README.md"
RUNS = [p for p in PAGES if blocks(p, "python")]


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] * (p == README)) for p in RUNS], ids=named
)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    run_blocks(page, blocks(page, "python"), tmp_path, monkeypatch)


def test_the_readmes_python_runs_with_fewer_updates_and_samples(tmp_path, monkeypatch):
    """The same lines in seconds; with their own numbers, a minute or two, they run among the slow proofs."""
    text = blocks(README, "python")
    fewer = [re.sub(r"(updates=\(?)(\d+)", lambda m: f"{m[1]}{int(m[2]) // 40}", t) for t in text]
    assert fewer != text
    monkeypatch.setitem(Evaluation.__init__.__kwdefaults__, "samples", 200)
    monkeypatch.setitem(QualityGate.__init__.__kwdefaults__, "samples", 200)
    run_blocks(README, fewer, tmp_path, monkeypatch)


def run_blocks(page, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {"__name__": "__main__"}
    for text in texts:
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


PUBLISHED = (
    "https://github.com/halfstep/halfstep/blob/main/",
    "https://raw.githubusercontent.com/halfstep/halfstep/main/",
)
"""What the README's links begin with, which also lead somewhere from a package index."""


def test_links_lead_somewhere():
    for page in [*PAGES, *NOTEBOOKS]:
        for target in re.findall(r"\]\(([^)#:]+)\)", text_of(page)):
            assert (page.parent / target).exists(), (named(page), target)


def test_links_of_the_readme_are_whole():
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert len(targets) > 30
    for target in targets:
        base = next(base for base in PUBLISHED if target.startswith(base))
        assert (ROOT / target.removeprefix(base)).exists(), target


def test_the_readme_is_short_and_says_first_what_a_stranger_needs():
    text = (ROOT / "README.md").read_text()
    lines = text.splitlines()
    assert len(lines) <= 120 and len(text.split()) <= 900
    screen = "\n".join(lines[:25])
    for wanted in ("![", "pip install", "make demo", "make test", "distill progressive", "Python"):
        assert wanted in screen, wanted


def test_the_changelog_is_of_this_version():
    """What came since the last release stands above it, as unreleased, with the number it will have."""
    text = (ROOT / "CHANGELOG.md").read_text()
    first, *released = re.findall(r"^## (.+)", text, re.MULTILINE)
    if first == "Unreleased":
        [becomes] = re.findall(r"^This becomes (\d+\.\d+\.\d+)\.", text, re.MULTILINE)
        assert becomes == halfstep.__version__
    else:
        assert first.partition(" ")[0] == halfstep.__version__
        released.insert(0, first)
    dates = [re.fullmatch(r"\d+\.\d+\.\d+ \((\d{4}-\d\d-\d\d)\)", head) for head in released]
    assert all(dates), released
    assert [date[1] for date in dates] == sorted((date[1] for date in dates), reverse=True)
