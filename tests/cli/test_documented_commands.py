"""The commands in the documentation have only options that exist."""

import shlex

import pytest

from halfstep.cli import main
from tests.cli.commands import COMMANDS
from tests.support.docs import blocks, named, NOTEBOOKS, PAGES


def commands(page):
    for text in blocks(page, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "halfstep" in words:
                yield words[words.index("halfstep") + 1 :]


@pytest.mark.parametrize("page", [p for p in [*PAGES, *NOTEBOOKS] if list(commands(p))], ids=named)
def test_commands_have_only_options_that_exist(page, capsys):
    """Each command's verb is asked for its help, and every option it uses must be in it."""
    for words in commands(page):
        verb = words[: 2 if " ".join(words[:2]) in COMMANDS else 1]
        options = {w for w in words if w.startswith("--")} - {"--help", "--version"}
        if not options:
            continue
        try:
            assert main([*verb, "--help"]) == 0
        except SystemExit as stop:
            assert stop.code == 0, words
        output = capsys.readouterr().out
        for option in options:
            assert option in output, f"{named(page)}: halfstep {' '.join(words)}: no {option}"
