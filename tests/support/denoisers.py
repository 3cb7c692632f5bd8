"""Every schedule and parameterisation, and denoisers of a known, nonlinear network."""

from itertools import pairwise

import torch
from torch import nn

from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import Eps, V, Velocity, X0, X0AndEps
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear

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


class Drops(nn.Module):
    """A network that hears whether it would drop units, and whether it is differentiated."""

    def __init__(self):
        super().__init__()
        self.heard, self.gain = [], nn.Parameter(torch.ones(()))

    def forward(self, x, t, cond=None):
        self.heard.append((self.training, torch.is_grad_enabled()))
        return self.gain * x


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


class Listening(Wobbly):
    """A network that keeps the times and the conditions of its calls."""

    def __init__(self, outputs=1):
        super().__init__(outputs)
        self.times, self.conditions = [], []

    def forward(self, x, t, cond=None):
        self.times.append(t)
        self.conditions.append(cond)
        return super().forward(x, t)


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

    @property
    def guided(self):
        return self.denoiser.guided

    def __call__(self, x_t, t, cond=None):
        self.calls += 1
        return self.denoiser(x_t, t, cond)


def fine_flow(teacher, x, t_from, t_to, steps=300):
    """The flow by RK4 in log(sigma / alpha) =: l, where d(x / alpha) / dl = exp(l) eps.  Order 4."""
    ends = teacher.schedule.at(torch.tensor([t_from, t_to])).logsnr / -2
    grid = ends[0] + (ends[1] - ends[0]) * torch.arange(steps + 1) / steps

    def slope(y, place):
        t = teacher.schedule.time(-2 * place).expand(len(y))
        return place.exp() * teacher(y * teacher.level(t, y).alpha, t).eps

    y = x / teacher.schedule.at(torch.tensor(t_from)).alpha
    for a, b in pairwise(grid):
        h, middle = b - a, (a + b) / 2
        k1 = slope(y, a)
        k2 = slope(y + h / 2 * k1, middle)
        k3 = slope(y + h / 2 * k2, middle)
        k4 = slope(y + h * k3, b)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y * teacher.schedule.at(torch.tensor(t_to)).alpha


STOCHASTIC = [
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "SASolverScheduler",
]
