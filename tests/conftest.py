"""One thread for torch, float64 on request, and the networks and teachers that many tests share."""

import sys

import pytest
import torch
from hypothesis import settings
from torch import nn

from halfstep.denoiser import Denoiser, NetTime
from halfstep.prediction import Both, Eps, V, Velocity, X0
from halfstep.schedules import Cosine, Karras, Straight, Table, VPLinear
from tests.progress import Ledger

settings.register_profile("halfstep", derandomize=True, deadline=None, database=None)
settings.load_profile("halfstep")

# The table has more levels than any grid here has steps: times below its first level are refused.
SCHEDULES = [Cosine(), VPLinear(), Straight(), Karras(), Table("scaled_linear", levels=2048)]
READS = [X0(), Eps(), V(), Velocity(), Both()]


def named(value):
    """Parameters' names in pytest's output: the class."""
    return type(value).__name__


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
    from halfstep.cli import main, progress

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
        except SystemExit as left:  # tyro leaves so after help
            status = left.code or 0
        assert status or all(bar.steps == bar.total for bar in bars)
        bars.clear()
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Wobbly(nn.Module):
    """Any old nonlinear network, for x of any shape [B, C, ...]."""

    def __init__(self, outputs=1):
        super().__init__()
        self.outputs = outputs
        self.gain = nn.Parameter(torch.tensor(1.7, dtype=torch.float64))

    def forward(self, x, t, cond=None):
        t = t.reshape(-1, *[1] * (x.ndim - 1))
        out = torch.tanh(self.gain.to(x.dtype) * x + t) - 0.3 * x.roll(1, -1)
        return torch.cat([out, torch.sin(2 * x - t)], 1) if self.outputs == 2 else out


def wobbly_teacher(schedule, reads):
    return Denoiser(Wobbly(reads.outputs), schedule, reads, time=NetTime(scale=1.0))


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, denoiser):
        self.denoiser, self.calls = denoiser, 0

    @property
    def schedule(self):
        return self.denoiser.schedule

    @property
    def parameterisation(self):
        return self.denoiser.parameterisation

    def __call__(self, x_t, t, cond=None):
        self.calls += 1
        return self.denoiser(x_t, t, cond)
