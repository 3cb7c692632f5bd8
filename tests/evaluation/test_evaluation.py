"""Evaluation: distances against closed forms and a second implementation, features, rows."""

import logging
import math
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

import halfstep
from halfstep import evaluation, storage
from halfstep.data import load
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.samplers import calls
from halfstep.diffusion.schedules import Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import CheckpointError, ConfigError, DataError
from halfstep.evaluation import (
    classifier_features,
    digits_features,
    Features,
    frechet_distance,
    SampleScorer,
    sampling_floor,
)
from halfstep.evaluation.features.registry import load_classifier, save_classifier
from halfstep.models import build, Classifier
from halfstep.pipeline import Pipeline
from halfstep.quiet import quietly
from tests.support.denoisers import seeded
from tests.support.progress import Ledger


def white(n, size, seed=0):
    """n points whose sample mean is 0 and whose sample covariance is 1, exactly."""
    x = torch.randn(n, size, generator=seeded(seed), dtype=torch.float64)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (n - 1))).T


def second(a, b):
    """The same distance by scipy's matrix square root, as Heusel et al. 2017 print it."""
    a, b = a.double().numpy(), b.double().numpy()
    cov_a, cov_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root.real)


# The Fréchet distance.


def test_identical_sets_are_at_no_distance():
    x = torch.randn(41, 6, generator=seeded(1))
    assert abs(frechet_distance(x, x)) < 1e-9


def test_a_shift_costs_its_square():
    x, shift = white(37, 5), torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5], dtype=torch.float64)
    assert frechet_distance(x, x + shift) == pytest.approx(14.25, abs=1e-9)


def test_two_gaussians_with_diagonal_covariances():
    """|m1 - m2|^2 + sum (s1 - s2)^2."""
    s1, s2 = torch.tensor([1.0, 2.0, 0.1, 5.0]), torch.tensor([3.0, 2.0, 0.4, 4.5])
    a, b = white(43, 4, 1) * s1 + 1, white(31, 4, 2) * s2 - 0.5
    expected = 4 * 1.5**2 + float((s1.double() - s2.double()).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-6)


def test_two_gaussians_that_are_turned_against_each_other():
    """In the plane, tr (C1 C2)^(1/2) = sqrt(tr C1 C2 + 2 sqrt(det C1 C2))."""
    c1 = torch.tensor([[4.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    c2 = torch.tensor([[1.0, -0.7], [-0.7, 3.0]], dtype=torch.float64)
    a = white(29, 2, 1) @ torch.linalg.cholesky(c1).T
    b = white(53, 2, 2) @ torch.linalg.cholesky(c2).T
    product = c1 @ c2
    root = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product))))
    expected = float(c1.trace() + c2.trace()) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("n, m, size", [(200, 301, 7), (64, 40, 33), (500, 500, 64), (2, 3, 1)])
def test_a_second_implementation_agrees(n, m, size):
    a = torch.randn(n, size, generator=seeded(3))
    b = 0.5 * torch.randn(m, size, generator=seeded(4)).cumsum(1) + 0.2
    assert frechet_distance(a, b) == pytest.approx(second(a, b), rel=1e-6, abs=1e-6)


def test_it_is_symmetric_and_computed_in_float64():
    a = torch.randn(90, 8, generator=seeded(5)) + 1000  # float32 would cancel
    b = torch.randn(70, 8, generator=seeded(6)) + 1000
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-8)
    assert frechet_distance(a, b) == pytest.approx(second(a, b), abs=1e-5)


@pytest.mark.parametrize(
    "a, b",
    [
        (torch.zeros(5, 3), torch.zeros(5, 4)),
        (torch.zeros(1, 3), torch.zeros(5, 3)),
        (torch.zeros(5, 3), torch.zeros(0, 3)),
        (torch.zeros(5, 3, 1), torch.zeros(5, 3, 1)),
    ],
)
def test_sets_that_have_no_distance_are_refused(a, b):
    with pytest.raises(DataError, match="two sets"):
        frechet_distance(a, b)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_no_numbers_are_refused(bad):
    x = torch.randn(9, 3, generator=seeded())
    y = x.clone()
    y[4, 1] = bad
    with pytest.raises(DataError, match="nan or infinite"):
        frechet_distance(x, y)


@pytest.mark.parametrize(
    "code",
    [
        "from halfstep.evaluation import frechet_distance as f\n"
        "import torch; assert f(torch.eye(4), torch.eye(4)) < 1e-9",
        "from halfstep.models import build; build('unet', {'sample_size': 8, 'in_channels': 1})",
        "from halfstep.diffusion.samplers import supported_schedulers; assert supported_schedulers()",
    ],
    ids=["distances", "networks", "schedulers"],
)
def test_libraries_behind_it_are_imported_in_silence_and_without_torchvision(code):
    """torchvision beside a CPU build of torch breaks it: nothing may pull it in.  torchao has a say."""
    code = "import sys; sys.modules['torchvision'] = None\n" + code  # importing it would raise
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0 and not result.stderr, result.stderr


def test_only_imports_are_quiet(caplog):
    """What is said after them, and what the caller has turned off, stays as it was."""
    with quietly():
        logging.getLogger("a").warning("not shown")
        logging.getLogger("a").error("an error")
        warnings.warn("nor this", stacklevel=1)
    logging.getLogger("a").warning("shown")
    assert caplog.messages == ["an error", "shown"]
    with pytest.warns(UserWarning, match="again"):
        warnings.warn("again", stacklevel=1)
    logging.disable(logging.ERROR)
    try:
        with quietly():
            assert logging.root.manager.disable == logging.ERROR
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(logging.NOTSET)


# The sampling floor.


@pytest.mark.parametrize("real, n", [(1800, 600), (600, 2000)])
def test_the_floor_is_what_perfect_samples_score(real, n):
    """A Gaussian's own samples, drawn afresh, against the estimate from the real ones alone."""
    draws = count(10)
    truth = []
    for _ in range(12):
        rows = torch.randn(real + n, 8, generator=seeded(next(draws)), dtype=torch.float64)
        truth.append(frechet_distance(rows[:real], rows[real:]))
    floor = sampling_floor(torch.randn(real, 8, generator=seeded(1), dtype=torch.float64), n)
    assert floor == pytest.approx(sum(truth) / len(truth), rel=0.2)


def test_the_floor_falls_with_more_samples_and_repeats_itself():
    real = torch.randn(400, 5, generator=seeded(2))
    assert sampling_floor(real, 4000) < sampling_floor(real, 400) < sampling_floor(real, 40)
    assert sampling_floor(real, 100) == sampling_floor(real, 100)
    assert sampling_floor(real, 100, seed=1) != sampling_floor(real, 100)


@pytest.mark.parametrize("rows, n", [(3, 10), (10, 0)])
def test_a_floor_needs_rows(rows, n):
    with pytest.raises(DataError, match="a floor needs"):
        sampling_floor(torch.zeros(rows, 2), n)


# Features.


def test_a_classifier_comes_back(tmp_path):
    torch.manual_seed(0)
    made = Classifier(channels=3, num_classes=7)
    save_classifier(made, tmp_path / "c")
    back, images = load_classifier(tmp_path / "c"), torch.randn(5, 3, 8, 10, generator=seeded())
    assert torch.equal(made.eval()(images), back.eval()(images))
    features = classifier_features(tmp_path / "c")
    assert features.name == "classifier c"
    assert torch.equal(features(images), made.features(images).double())


def test_a_folder_without_a_classifier_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no classifier"):
        load_classifier(tmp_path)


def test_a_damaged_or_other_classifier_is_refused(tmp_path):
    save_classifier(Classifier(channels=1, num_classes=3), tmp_path)
    tensors, about = storage.load(tmp_path / "classifier")
    del tensors["head.bias"]
    storage.save(tmp_path / "classifier", tensors, about)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors \(head\.bias\)"):
        load_classifier(tmp_path)


@pytest.fixture(scope="module")
def digits():
    data = load("digits")
    return data.batch(torch.arange(len(data)))


def test_the_shipped_classifier_knows_its_digits(digits):
    shipped = load_classifier(Path(halfstep.__file__).parent / "assets" / "digits-classifier")
    with torch.no_grad():
        guess = shipped.eval()(digits.x0).argmax(1)
    assert (guess == digits.cond.label).double().mean() > 0.97


def test_features_are_the_same_every_time_and_in_any_batch(digits):
    features, images = digits_features(), digits.x0[:70]
    whole = features(images)
    assert whole.shape == (70, 32) and whole.dtype == torch.float64
    assert torch.equal(whole, digits_features()(images))
    for batch in (1, 9, 70):
        torch.testing.assert_close(features(images, batch=batch), whole, rtol=0, atol=1e-5)


def test_the_digits_tell_noise_from_digits(digits):
    features = digits_features()
    half, rest = features(digits.x0[:900]), features(digits.x0[900:])
    noise = features(torch.rand(900, 1, 8, 8, generator=seeded()) * 2 - 1)
    assert frechet_distance(half, noise) > 20 * frechet_distance(half, rest)


# Rows.


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
