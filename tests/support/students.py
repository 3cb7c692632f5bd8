"""Students in closed form, and the few lines that train one."""

import torch
from torch import nn

from halfstep.batch import Batch
from halfstep.diffusion.denoiser import Denoiser, level_of, NetTime
from halfstep.diffusion.prediction import Prediction, V, X0
from halfstep.diffusion.samplers import sample
from halfstep.diffusion.schedules import (
    Cosine,
)
from halfstep.methods import two_step_target
from halfstep.methods.diffusion.two_step_target import steps_target
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.rng import Draw
from tests.support.denoisers import seeded


class Constants(nn.Module):
    """x0 is one number at the first time and another at the second."""

    def __init__(self, first, second):
        super().__init__()
        self.answers = [first, second]

    def forward(self, x, t, cond=None):
        return torch.full_like(x, self.answers.pop(0))


class ExactStudent:
    """The student that equals its teacher's two-step target on a grid.

    offsets  grid steps from the student's time to the ends of its teacher's; where the first of these is
             the end of the grid, it is the teacher
    """

    def __init__(self, teacher, times, offsets=(1, 2), clip=None, solver="ddim"):
        self.teacher, self.times, self.schedule = teacher, times, teacher.schedule
        self.offsets, self.clip, self.solver = offsets, clip, solver

    def __call__(self, x, t, cond=None):
        k = self.times.index(t[0].item())
        if k + self.offsets[0] == len(self.times) - 1:
            return self.teacher(x, t, cond)
        places = (torch.full_like(t, self.times[k + j]) for j in self.offsets)
        return steps_target(self.teacher, x, (t, *places), cond, clip=self.clip, solver=self.solver)


class ExactRows(ExactStudent):
    """An exact student of samples with different times."""

    def __call__(self, x, t, cond=None):
        rows = [super(ExactRows, self).__call__(x[k : k + 1], t[k : k + 1]) for k in range(len(x))]
        return Prediction(*(torch.cat([getattr(r, of) for r in rows]) for of in ("x0", "eps")))


class Affine(nn.Module):
    """x0 = a x + b, one (a, b) for each time of a grid."""

    def __init__(self, times, a, b):
        super().__init__()
        self.register_buffer("times", torch.tensor(times, dtype=torch.float64))
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x, t, cond=None):
        k = (t[:, None] - self.times).abs().argmin(1)
        shape = -1, *[1] * (x.ndim - 1)
        return self.a[k].reshape(shape) * x + self.b[k].reshape(shape)


def halved(teacher, times, target):
    """The student whose prediction at every time is `target` of a teacher that is affine in x."""
    points = torch.tensor(times, dtype=torch.float64)
    t, mid, end = points[0:-1:2], points[1::2], points[2::2]
    b, total = (target(teacher, torch.full((len(t), 1), v), t, mid, end) for v in (0.0, 1.0))
    net = Affine(times[::2][:-1], (total - b).flatten(), b.flatten())
    return Denoiser(net, teacher.schedule, X0(), time=NetTime(scale=1.0)).freeze()


def right(teacher, x, t, mid, end):
    return two_step_target(teacher, x, t, mid, end).x0


def mid_point(teacher, x, t, mid, end):
    """A known mistake: the target is the teacher's x0 at the mid point."""
    first = teacher(x, t)
    return teacher(level_of(teacher.schedule, mid, x).mix(first.x0, first.eps), mid).x0


def without_last_step_rule(teacher, x, t, mid, end):
    """The target without the last-step rule, with sigma(0) = 4.5e-5 at the end."""
    level_t, middle, level_s = (level_of(teacher.schedule, s, x) for s in (t, mid, end))
    first = teacher(x, t)
    x_mid = middle.mix(first.x0, first.eps)
    second = teacher(x_mid, mid)
    r = level_s.sigma / level_t.sigma
    return (level_s.mix(second.x0, second.eps) - r * x) / (level_s.alpha - r * level_t.alpha)


def halve_to_the_end(teacher, times, noise, target):
    """{steps: what the student of so many steps samples}, all the way to one step."""
    samples, student = {}, teacher
    while len(times) > 2:
        student, times = halved(student, times, target), times[::2]
        samples[len(times) - 1] = sample(student, noise, times)
    return samples


def draw_of(seed, batch):
    return Draw.all(seeded(seed), batch)


def zero_student(times, schedule):
    zeros = torch.zeros(len(times) - 1)
    net = Affine(times[:-1], zeros, zeros.clone())
    return Denoiser(net, schedule, X0(), time=NetTime(scale=1.0))


def train(student, objective, draw_data, updates, rate):
    """Train with Adam and a learning rate that falls to 0."""
    optimiser, rng = torch.optim.Adam(student.parameters()), seeded()
    for k in range(updates):
        optimiser.param_groups[0]["lr"] = rate * (1 - k / updates)
        x0 = draw_data(rng)
        optimiser.zero_grad()
        objective(student, Batch(x0), Draw.all(rng, len(x0))).mean().backward()
        optimiser.step()
    return student.freeze()


def gaussian_data(rng):
    return 0.3 + 0.5 * torch.randn(256, 2, generator=rng)


def level_at(schedule, t):
    return schedule.at(torch.tensor(t, dtype=torch.float64))


def random_pipeline(reads=None, **more):
    """A pipeline of a small network with random weights."""
    torch.manual_seed(3)
    config = {"dim": 2, "width": 16, "depth": 1}
    if more.get("class_names"):
        config["num_classes"] = len(more["class_names"]) + (more.get("null") is not None)
    net = build("mlp", config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Pipeline(Denoiser(net.float(), Cosine(), reads or V()).freeze(), (2,), **more)
