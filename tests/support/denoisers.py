"""Every schedule and parameterisation, and denoisers of a known, nonlinear network."""

import torch
from torch import nn

from halfstep.denoiser import Denoiser, NetTime
from halfstep.prediction import Eps, V, Velocity, X0, X0AndEps
from halfstep.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear

# The table has more levels than any grid here has steps: times below its first level are refused.
SCHEDULES = [
    Cosine(),
    VPLinear(),
    RectifiedFlow(),
    Karras(),
    BetaTable("scaled_linear", levels=2048),
]
READS = [X0(), Eps(), V(), Velocity(), X0AndEps()]


def named(value):
    """Parameters' names in pytest's output: the class."""
    return type(value).__name__


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
