"""Every verb ends with the command to type next, with the user's own paths, and it parses."""

import ast
import shlex
from pathlib import Path

import pytest

from halfstep.cli import commands
from halfstep.cli.console import next_command
from halfstep.cli.console.progress import terminal
from halfstep.cli.parse import parse
from tests.cli.help_pages import KINDS

FOLDER = Path(commands.__file__).parent
SAYS = {"say_next", "say_export", "say_halving", "say_after_samples"}
PARTS = {"__init__", "gate_options", "no_data"}
"""Modules of no verb."""


def says_next(path):
    """Whether a module prints a command to type next."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    labels = {arg.value for call in calls for arg in call.args if isinstance(arg, ast.Constant)}
    return bool(names & SAYS) or "next" in labels


@pytest.mark.parametrize(
    "path", [p for p in sorted(FOLDER.glob("*.py")) if p.stem not in PARTS], ids=lambda p: p.stem
)
def test_every_verb_says_what_is_next(path):
    if path.stem == "completion":
        return  # its output is a script
    assert says_next(path)


def said(capsys, function, *arguments, **options):
    """The words of the command that is printed; it parses."""
    function(terminal(), *arguments, **options)
    label, halfstep, *words = shlex.split(capsys.readouterr().out)
    assert (label, halfstep) == ("next", "halfstep")
    command = next(name for name in KINDS if words[: len(name.split())] == name.split())
    parse(KINDS[command], words[len(command.split()) :], prog=f"halfstep {command}")
    return words


def test_paths_are_the_user_s_own_and_quoted(capsys, tmp_path):
    run = Path("runs/my run")
    words = said(capsys, next_command.say_export, run, net="mine:net")
    assert words == ["export", "runs/my run", "--out", "runs/my run-export", "--net", "mine:net"]
    words = said(capsys, next_command.say_halving, run, "student")
    assert words[:4] == ["distill", "progressive", "--teacher", "runs/my run"]
    assert words[-1] == "student" and "--net" not in words
    assert next_command.net_words("uvit") == []
    assert next_command.beside(Path("runs/a"), "x") == "runs/a-x"


def test_after_samples(capsys, cli, moons):
    status, out, _ = cli("sample", moons, "--n", 2, "--steps", 2, "--npz", "--out", "drawn")
    assert status == 0
    *_, last = out.splitlines()
    assert last.startswith(f"next      halfstep distill progressive --teacher {moons} --data DATA")
    assert said(capsys, next_command.say_after_samples, None)[3] == "TEACHER"


def test_after_samples_of_students(capsys, cli, moons, tmp_path):
    from tests.cli.commands import halving

    status, out, _ = cli(*halving(moons, tmp_path / "s", "--tolerance", 0, "--stop", 4))
    assert status == 0
    assert out.splitlines()[-1] == f"next      halfstep evaluate {tmp_path}/s"
    words = said(capsys, next_command.say_after_samples, tmp_path / "s")
    assert words == ["evaluate", str(tmp_path / "s")]
