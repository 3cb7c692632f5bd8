"""Readers and terminals that leave: a training saves and stops."""

import errno
import os
import subprocess
import sys

import pytest

from halfstep.cli import main
from halfstep.cli.console.progress import Terminal
from tests.cli.commands import POINTS


class Deaf:
    """A stream that nobody reads after so many lines."""

    encoding, fileno = "utf-8", None

    def __init__(self, code, after):
        self.code, self.left, self.text = code, after, ""

    def write(self, text):
        self.left -= text.count("\n")
        if self.left < 0:
            raise OSError(self.code, os.strerror(self.code))
        self.text += text
        return len(text)

    def flush(self):
        if self.left < 0:
            raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("code, status", [(errno.EPIPE, 141), (errno.EIO, 141), (errno.ENOSPC, 2)])
def test_training_that_nobody_reads_saves_and_stops(code, status, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    typed = [*POINTS, "--updates", "40", "--save-every", "40", "--out", "run"]
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Deaf(code, 4))
        assert main(typed) == status
    [saved] = (tmp_path / "run" / "checkpoints").glob("*.json")
    assert int(saved.stem.partition("-")[2]) < 40
    assert "stopped at update" in capsys.readouterr().err
    assert main(typed) == 0


def test_a_bar_in_a_thread_does_not_end_the_process():
    """It is silent then, and the next update hears of it."""
    from threading import Thread

    from halfstep.cli.console.progress import _Out, Bars

    console = Terminal(file=_Out(Deaf(errno.EIO, 0)))
    thread = Thread(target=console.print, args=("text",))
    thread.start()
    thread.join()
    assert isinstance(console.closed, BrokenPipeError)
    console.print("nothing comes of it")
    with pytest.raises(BrokenPipeError):
        Bars(console).step(1, 0.1)


def test_a_reader_who_has_read_enough(tmp_path):
    """As `halfstep train ... | head -n 1` does it."""
    typed = [*POINTS, "--updates", "4000", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "halfstep", *typed]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as training:
        for _ in range(4):
            training.stdout.readline()
        training.stdout.close()
        assert training.wait(60) == 141
        errors = training.stderr.read().decode()
    assert errors.startswith("halfstep: stopped at update") and errors.count("\n") == 1
    assert list((tmp_path / "run" / "checkpoints").glob("*.json"))
