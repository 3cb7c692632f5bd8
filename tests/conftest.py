"""One thread for torch, float64 on request, and commands that are typed."""

import sys

import pytest
import torch
from hypothesis import settings

from tests.support.progress import Ledger

settings.register_profile("halfstep", derandomize=True, deadline=None, database=None)
settings.load_profile("halfstep")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Oversubscribed OpenMP threads spin and cost up to 30x on a small or shared machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def float64():
    """float64 by default in this module, whatever happens: `usefixtures("float64")`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Types a command in an empty folder: (exit status, what it printed, its errors).

    Of one that ends well every bar has expected all its steps before the first, and done them.
    """
    from halfstep.cli import main
    from halfstep.cli.console import progress

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
