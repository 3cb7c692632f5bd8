"""Completion: the scripts are current, quick to print, and complete commands in the shell itself."""

import shutil
import subprocess
import sys

import pytest

from halfstep.cli import COMPLETION, main, SHELLS, VERBS
from halfstep.config.fields import options_of
from halfstep.config.preset_files import preset_names
from tests.cli.completion_scripts import script
from tests.cli.help_pages import KINDS

COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function=$(complete -p halfstep | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function halfstep "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}" 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(*words):
    """The words that bash offers for the last one."""
    path = COMPLETION / "halfstep.bash"
    done = subprocess.run(
        ["bash", "--norc", "-c", COMPLETE, "bash", path, "halfstep", *words],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


@pytest.mark.parametrize("shell", SHELLS)
def test_the_scripts_are_current_and_printed(shell, capsys):
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert printed == (COMPLETION / f"halfstep.{shell}").read_text(encoding="utf-8")
    assert printed == script(shell), "write the scripts anew: make pages"


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_reads_its_script(shell):
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    path = COMPLETION / f"halfstep.{shell}"
    reads = {
        "bash": ["--norc", "-c", f'eval "$(cat {path})"; complete -p halfstep'],
        "zsh": [
            "-fc",
            f'autoload -U compinit; compinit -uD; eval "$(cat {path})"; echo $_comps[halfstep]',
        ],
        "tcsh": ["-fc", f"source {path}; complete halfstep"],
    }
    done = subprocess.run([shell, *reads[shell]], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip()
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_bash_completes_verbs_and_kinds():
    assert completed("") == set(VERBS)
    assert completed("e") == {"encode", "evaluate", "export"}
    assert completed("distill", "") == set(VERBS["distill"][1])
    assert completed("train", "c") == {"classifier", "codec"}


@pytest.mark.parametrize("command", ["train denoiser", "distill plan", "runs", "evaluate"])
def test_bash_completes_every_option(command):
    flags = {option.flag for option in options_of(KINDS[command]).values()}
    assert flags | {"--config", "--help"} <= completed(*command.split(), "--")


def test_bash_completes_values():
    assert completed("train", "denoiser", "--predicts", "v") == {"v", "velocity"}
    assert completed("completion", "") == {"bash", "zsh", "tcsh"}
    presets = set(preset_names("halfstep train denoiser"))
    assert completed("train", "denoiser", "--preset", "") == presets


def test_bash_completes_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    assert completed("train", "denoiser", "--data", "pict") == {"pictures"}
    assert completed("report", "pict") == {"pictures"}


def test_a_shell_starts_as_fast_as_before():
    code = (
        "import sys\nfrom halfstep.cli import main\nassert main(['completion', 'bash']) == 0\n"
        "heavy = {'torch', 'numpy', 'rich', 'diffusers'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_another_shell_is_refused_with_a_suggestion(capsys):
    assert main(["completion", "bsh"]) == 2
    assert "perhaps you meant 'bash'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["train"], ["distill", "--help"]])
def test_the_lists_of_verbs_have_80_columns(words, capsys):
    assert main(words) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
