"""Samples of candidates from the same noise, and their scores."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from halfstep import evaluation
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.samplers import calls
from halfstep.diffusion.schedules import Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.evaluation import (
    Features,
    frechet_distance,
    SampleScorer,
)
from halfstep.models import build
from halfstep.pipeline import Pipeline
from tests.support.denoisers import seeded
from tests.support.progress import Ledger


class Tallied(nn.Module):
    """Counts the samples that pass."""

    def __init__(self, net):
        super().__init__()
        self.net, self.samples, self.recipe = net, 0, net.recipe

    def forward(self, x, t, cond=None):
        self.samples += len(x)
        return self.net(x, t, cond)


@pytest.fixture
def teacher():
    torch.manual_seed(1)
    net = Tallied(build("mlp", {"dim": 3, "width": 8, "depth": 1}))
    return Pipeline(Denoiser(net, Cosine(), V()).freeze(), (3,))


@pytest.fixture
def scorer():
    real = 0.5 * torch.randn(80, 3, generator=seeded(8))
    return SampleScorer(Features("themselves", lambda x: x), real, n=40)


def test_the_teacher_is_at_no_distance_from_itself(scorer, teacher):
    row = scorer.teacher(teacher, 16)
    assert (row.sampler, row.steps, row.calls) == ("ddim", 16, 16)
    assert row.rmse_to_teacher == row.feature_rmse_to_teacher == 0
    assert row.frechet_distance == pytest.approx(
        frechet_distance(scorer.real.double(), teacher.sample(40, steps=16).double()), abs=1e-9
    )
    assert row.seconds_per_sample > 0


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m", "heun", "ancestral"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_calls_of_a_row_are_those_that_are_made(scorer, teacher, sampler, steps):
    scorer.teacher(teacher, 4)
    teacher.denoiser.net.samples = 0
    row = scorer.row(teacher, sampler, steps)
    assert teacher.denoiser.net.samples == 40 * row.calls
    assert row.calls == (2 * steps - 1 if sampler == "heun" else steps) == calls(sampler, steps)


def test_every_row_is_of_the_same_noise(scorer, teacher):
    scorer.teacher(teacher, 4)
    row, student = scorer.row(teacher, "ddim", 1), replace(teacher, times=(uniform(1),))
    again = scorer.row(student, "ddim", 1)
    assert again.frechet_distance == row.frechet_distance
    assert again.rmse_to_teacher == row.rmse_to_teacher > 0


def test_the_error_is_the_root_mean_square_over_pixels(scorer, teacher):
    scorer.teacher(teacher, 8)
    row = scorer.row(teacher, "ddim", 2)
    one, two = teacher.sample(40, steps=2), teacher.sample(40, steps=8)
    expected = float((one - two).double().square().mean().sqrt())
    assert row.rmse_to_teacher == pytest.approx(expected, rel=1e-12)
    relative = expected / float(two.double().square().mean().sqrt())
    assert row.feature_rmse_to_teacher == pytest.approx(relative, rel=1e-6)


def test_a_row_without_a_teacher_is_refused(scorer, teacher):
    with pytest.raises(ConfigError, match="call teacher"):
        scorer.row(teacher, "ddim", 2)


def test_progress_is_told_as_often_as_announced(teacher):
    real = torch.randn(20, 3, generator=seeded())
    scorer, of_teacher, of_row = (
        SampleScorer(Features("x", lambda x: x), real, n=300),
        Ledger(),
        Ledger(),
    )
    scorer.teacher(teacher, 4, progress=of_teacher)
    scorer.row(teacher, "heun", 3, progress=of_row)
    assert (of_teacher.steps, of_row.steps) == (2 * 4, 2 * 3)  # 300 samples are two batches
    more, some = Ledger(), scorer.sample(teacher, "ddim", 4, n=10)
    scorer.extend(some, teacher, "ddim", 4, progress=more)
    scorer.extend(some, teacher, "ddim", 4, n=5, progress=more)
    assert more.steps == 2 * 4  # of the 290 that are missing, and of none


def test_public_names():
    for name in evaluation.__all__:
        assert getattr(evaluation, name).__doc__, name
