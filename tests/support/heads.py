"""The exact student of parallel decoding, and teachers to distil."""

from functools import cache

import torch

from halfstep.diffusion.denoiser import level_of
from halfstep.diffusion.prediction import Prediction


def fine_x0(teacher, x, t, to, *, midpoint=False, cond=None):
    """The x0 of one fine step of a teacher, written by hand as few-step-methods has it."""
    first = teacher(x, t, cond)
    if not midpoint:
        return first.x0
    schedule = teacher.schedule
    start = level_of(schedule, t, x)
    m = torch.full_like(t, halfway(schedule, float(t[0]), float(to[0])))
    middle = level_of(schedule, m, x)
    second = teacher(middle.mix(first.x0, first.eps), m, cond)
    u = second.eps - second.x0
    return (x - start.sigma * u) / (start.alpha + start.sigma)


@cache
def halfway(schedule, t, to):
    """The time at which tau is halfway between those of t and `to`, by bisection."""

    def tau_at(t):
        return tau(schedule.at(torch.tensor(t, dtype=torch.float64)))

    wanted, low, high = (tau_at(t) + (0 if to == 0 else tau_at(to))) / 2, to, t
    for _ in range(60):
        mean = (low + high) / 2
        low, high = (low, mean) if tau_at(mean) > wanted else (mean, high)
    return high


def tau(level):
    return level.sigma / (level.alpha + level.sigma)


class ExactHeads:
    """The student whose head k, seen from x_n, is the x0 of step k of its teacher's fine walk from x_n."""

    def __init__(self, teacher, times, *, midpoint=False):
        self.teacher, self.times, self.schedule = teacher, times, teacher.schedule
        self.midpoint, self.calls = midpoint, 0
        self.training = False

    def modules(self):
        return []

    def eval(self):
        return self

    def heads(self, x, n):
        """The heads of one sample, [N, ...]; those before n are 0."""
        found, schedule = [torch.zeros_like(x)] * n, self.schedule
        for k in range(n, len(self.times) - 1):
            t, to = (torch.full((1,), self.times[j], dtype=torch.float64) for j in (k, k + 1))
            x0 = fine_x0(self.teacher, x, t, to, midpoint=self.midpoint)
            found.append(x0)
            if to[0] > 0:
                level, end = (level_of(schedule, s, x) for s in (t, to))
                x = end.alpha * x0 + end.sigma * (x - level.alpha * x0) / level.sigma
        return torch.cat(found)

    def __call__(self, x, t, cond=None):
        self.calls += len(x)
        weights = cond.heads if cond.heads.ndim == 3 else cond.heads[:, None]
        rows = []
        for row in range(len(x)):
            n = self.times.index(t[row].item())
            heads = self.heads(x[row : row + 1], n)
            rows.append(torch.tensordot(weights[row].to(x.dtype), heads, 1))
        x0 = torch.stack(rows, 1).flatten(0, 1)  # [M, B, ...]
        copies = weights.shape[1]
        x_t = x.repeat(copies, *[1] * (x.ndim - 1))
        return Prediction.from_x0(x0, x_t, level_of(self.schedule, t.repeat(copies), x_t))
