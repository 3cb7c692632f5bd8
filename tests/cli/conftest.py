"""The command line as a fixture, and folders that tests of several commands share."""

import sys

import pytest

from halfstep.cli import main
from halfstep.cli.console import progress
from tests.cli.commands import TINY, type_command
from tests.support.progress import Ledger


@pytest.fixture(scope="module")
def feature_cache(tmp_path_factory):
    """A cache of features for this module, and one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        patch.setenv("HALFSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """A run of a tiny teacher of two moons."""
    out = tmp_path_factory.mktemp("moons") / "teacher"
    assert type_command(["train", "denoiser", *TINY, "--out", out, "--updates", 60]) == 0
    return out


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Types a command in an empty folder: (exit status, what it printed, its errors).

    Of one that ends well every bar has expected all its steps before the first, and done them.
    """
    bars, line = [], progress._Line

    def bar(*args):
        bars.append(Ledger(line(*args)))
        return bars[-1]

    monkeypatch.setattr(progress, "_Line", bar)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setattr(sys, "path", sys.path[:])

    def run(*words):
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as left:
            status = left.code or 0
        assert status or all(bar.steps == bar.total for bar in bars)
        bars.clear()
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run
