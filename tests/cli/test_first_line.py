"""At a terminal the first line appears before torch is imported; elsewhere stderr stays empty."""

import os
import subprocess
import sys
import time

import pytest

pty = pytest.importorskip("pty")
SOON = 2.0
"""Seconds on an idle machine; a busy one gets five times as many."""


def first_line(words, folder):
    """The first line on a terminal, and the seconds until it appears."""
    master, terminal = pty.openpty()
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "halfstep", *words],
        stdout=terminal, stderr=terminal, stdin=subprocess.DEVNULL, cwd=folder,
    )  # fmt: skip
    os.close(terminal)
    try:
        text = os.read(master, 1000)
        took = time.monotonic() - began
    finally:
        process.kill()
        process.wait()
        os.close(master)
    return text.decode().splitlines()[0], took


@pytest.mark.parametrize(
    "words",
    [
        "train denoiser --data digits --out run",
        "distill guided --out x",
        "sample x --out y",
        "runs .",
    ],
)
def test_the_first_line_appears_at_once(words, tmp_path):
    line, took = min(
        (first_line(words.split(), tmp_path) for _ in range(3)), key=lambda pair: pair[1]
    )
    command = " ".join(words.split()[: 2 if words.startswith(("train", "distill")) else 1])
    assert line == f"halfstep {command}: importing torch"
    assert took < 5 * SOON


def test_it_comes_before_anything_heavy():
    """Nothing that is imported before it takes long."""
    code = (
        "import sys\nfrom halfstep import cli\n"
        "def stop(name):\n    heavy = {'torch', 'numpy', 'rich', 'pydantic'} & set(sys.modules)\n"
        "    raise SystemExit(repr(heavy) if heavy else 0)\n"
        "cli._say_what_begins = stop\ncli.main(['train', 'denoiser', '--data', 'digits', '--out', 'x'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_where_stderr_is_no_terminal_it_is_silent(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "halfstep", "runs", "."],
        capture_output=True, text=True, timeout=240, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "holds no runs" in done.stderr
