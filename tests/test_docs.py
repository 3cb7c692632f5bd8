"""README and docs say what is so: every block runs, every link leads somewhere."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

import halfstep
from halfstep.cli import main

ROOT = Path(__file__).parents[1]
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


def commands(page):
    for text in blocks(page, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "halfstep" in words:
                yield words[words.index("halfstep") + 1 :]


@pytest.mark.parametrize("page", [p for p in PAGES if list(commands(p))], ids=named)
def test_commands_have_only_options_that_exist(page, capsys):
    """Each command's verb is asked for its help, and every option it uses must be in it."""
    for words in commands(page):
        verb = words[: 2 if words and words[0] in ("train", "distill") else 1]
        options = {w for w in words if w.startswith("--")} - {"--help", "--version"}
        if not options:
            continue
        try:
            assert main([*verb, "--help"]) == 0
        except SystemExit as stop:
            assert stop.code == 0, words
        told = capsys.readouterr().out
        for option in options:
            assert option in told, f"{named(page)}: halfstep {' '.join(words)}: no {option}"


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
