"""The pages of help: current, of 80 columns, quick, in plain words, with an example that parses."""

import re
import shlex
import subprocess
import sys

import pytest

from halfstep.cli import main, PAGES
from halfstep.cli.names import OTHER_NAMES, refuse_unknown
from halfstep.cli.parse import parse
from halfstep.config.fields import all_options, options_of
from halfstep.errors import ConfigError
from tests.cli.commands import COMMANDS as EVERY
from tests.cli.help_pages import documented, examples_of, first_options, KINDS, page

COMMANDS = sorted(KINDS)
HEAVY = "{'torch', 'numpy', 'pydantic', 'rich', 'diffusers', 'matplotlib'}"


def shown(command):
    return (PAGES / f"{command.replace(' ', '-')}.txt").read_text(encoding="utf-8")


def test_every_command_has_a_page_and_no_other_has():
    assert set(EVERY) == set(KINDS)
    assert {path.stem for path in PAGES.iterdir()} == {name.replace(" ", "-") for name in KINDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_is_current_and_of_80_columns(command):
    text = shown(command)
    assert text == page(command), "write the pages anew: make pages"
    assert max(map(len, text.splitlines())) <= 80
    assert len(re.findall(r"^Examples$", text, re.MULTILINE)) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_names_every_option_once(command):
    text = shown(command)
    for option in all_options(KINDS[command]):
        name = option.name.upper() if option.positional else option.flag
        assert len(re.findall(rf"^  {name}\b(?!-)", text, re.MULTILINE)) == 1, name
    few = first_options(command)
    assert {name.replace("-", "_") for name in few} <= options_of(KINDS[command]).keys()
    assert len(few) == 5 or len(options_of(KINDS[command])) < 30


OLD_WORDS = re.compile(
    r"\b(?:whoever|whatever|of which|there is none|asked|judged?s?|(?<!-)walks?|one's own|fitting)\b"
    r"|--(?:rate|batch|micro-batch|clip|known)\b(?!-)"
)


@pytest.mark.parametrize("command", COMMANDS)
def test_sentences_are_short_and_in_the_field_s_words(command):
    assert not OLD_WORDS.findall(shown(command))
    for option in all_options(KINDS[command]):
        for sentence in re.split(r"(?<=[.!?]) +", documented(option)):
            assert len(sentence.split()) <= 25, sentence


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_parse(command):
    for example in examples_of(command):
        words = shlex.split(example)
        verb = command.split()
        assert words[: 1 + len(verb)] == ["halfstep", *verb]
        parse(KINDS[command], words[1 + len(verb) :], prog=f"halfstep {command}")


@pytest.mark.parametrize("words", [["distill", "plan", "--help"], ["sample", "runs/x", "-h"]])
def test_a_page_comes_without_anything_heavy(words):
    code = (
        f"import sys\nfrom halfstep.cli import main\nassert main({words}) == 0\n"
        f"heavy = {HEAVY} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: halfstep ")


def test_a_mistyped_option_is_refused_without_anything_heavy():
    code = (
        "import sys\nfrom halfstep.cli import main\nassert main(['distill', 'plan', '--lr', '1']) == 2\n"
        f"heavy = {HEAVY} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "no option --lr" in done.stderr, done.stderr


@pytest.mark.parametrize("theirs", sorted(OTHER_NAMES))
def test_another_tool_s_name_leads_to_ours(theirs):
    """Wherever a command has ours and not theirs."""
    led = 0
    for command, kind in KINDS.items():
        names = [option.flag[2:] for option in options_of(kind).values()]
        ours = next((name for name in OTHER_NAMES[theirs] if name in names), None)
        if ours is None or theirs in names:
            continue
        with pytest.raises(ConfigError, match=f"no option --{theirs}: here it is --{ours};"):
            refuse_unknown(names, [f"--{theirs}=1"], command)
        led += 1
    assert led, "no command has an option for it"


def test_the_verbs_of_the_command_line_are_where_it_says(capsys):
    for command in KINDS:
        assert main([*command.split(), "--nonsense"]) == 2
        assert "no option --nonsense" in capsys.readouterr().err
