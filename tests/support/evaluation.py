"""A tiny image model whose students differ in one weight, and a scorer of its samples."""

from dataclasses import replace

import torch
from torch import nn

from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.evaluation import Evaluation, Features, SampleScorer
from halfstep.models import build
from halfstep.pipeline import Pipeline

SHAPE = (3, 4, 6)
CONFIG = Evaluation(
    samples=40, full=16, shown=3, split_samples=24, cost_rounds=1, baselines=("ddim", "heun")
)
BRIEF = replace(CONFIG, cost_rounds=0, metrics=("frechet",))


class Leaky(nn.Module):
    """A nonlinear network for images, whose students differ in one weight."""

    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(float(gain)))
        self.mix = nn.Conv2d(3, 3, 1)

    def forward(self, x, t, cond=None):
        return torch.tanh(self.gain * x + t.reshape(-1, 1, 1, 1)) - 0.3 * self.mix(x)


def pipeline(gain=1.0, times=(), class_names=(), schedule=Cosine()):  # noqa: B008
    torch.manual_seed(3)
    net = build("tests.support.evaluation:Leaky", {"gain": gain})
    denoiser = Denoiser(net, schedule, V(), time=NetTime(scale=1.0)).freeze()
    return Pipeline(denoiser, SHAPE, times, class_names)


def few(images):
    return images.flatten(1)[:, :5].double()


FEATURES = Features(
    "five pixels", few, "as they are", digest="d" * 64, head=lambda x: torch.cat([x, -x], 1)
)


def students(*counts):
    return [pipeline(1 + 0.1 / k, (uniform(k),)) for k in counts]


def image_scorer(data, **options):
    return SampleScorer(FEATURES, data.values, n=CONFIG.samples, **options)


def rows_with(measured, role):
    """The rows of a role, in their order."""
    return [row for row in measured[0]["rows"] if row["role"] == role]
