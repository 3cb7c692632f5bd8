"""Fidelity: errors of known size, their split, and the pairs behind them."""

import math
from dataclasses import replace

import pytest
import torch

from halfstep.batch import Cond
from halfstep.diffusion.analytic import gaussian_flow, gaussian_teacher, mixture_teacher
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import V, X0
from halfstep.diffusion.samplers import sample
from halfstep.diffusion.schedules import Cosine, RectifiedFlow
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics.fidelity import (
    fidelity,
    grid_cost,
    learning_error,
    paired_rmse,
    worst_pairs,
)
from halfstep.pipeline import Pipeline
from halfstep.rng import sample_noise
from tests.support.denoisers import seeded, Wobbly

SHAPE = (3, 4, 6)


def images(n, seed=0):
    return torch.rand(n, *SHAPE, generator=seeded(seed), dtype=torch.float64) * 2 - 1


class Off(torch.nn.Module):
    """A denoiser's network, off by a constant."""

    def __init__(self, net, by):
        super().__init__()
        self.net, self.by = net, torch.nn.Parameter(torch.tensor(by, dtype=torch.float64))

    def forward(self, x, t, cond=None):
        return self.net(x, t, cond) + self.by.to(x.dtype)


def wobbly(schedule=None, reads=None):
    return Denoiser(Wobbly(), schedule or Cosine(), reads or V(), time=NetTime(scale=1.0))


# Pairs.


def test_a_constant_error_is_found_exactly_with_no_doubt_about_it():
    teacher, features = images(50), torch.randn(50, 7, generator=seeded(1)).double()
    result = fidelity(teacher, teacher + 0.02, features, features * 1.25)
    assert result.rmse.value == pytest.approx(0.02, rel=1e-9)
    assert result.rmse.low == pytest.approx(result.rmse.high, rel=1e-9)
    assert result.psnr.value == pytest.approx(40.0, abs=1e-9)  # 20 log10(2 / .02)
    assert result.feature_rmse.value == pytest.approx(0.25, rel=1e-9)
    assert result.feature_rmse.high - result.feature_rmse.low < 1e-9


def test_identical_pairs_have_no_error_and_the_psnr_that_float32_can_tell():
    teacher, features = images(9), torch.randn(9, 5, generator=seeded(1))
    result = fidelity(teacher, teacher, features, features)
    assert (result.rmse.value, result.rmse.low, result.rmse.high) == (0, 0, 0)
    assert (
        result.psnr.value == result.psnr.low == result.psnr.high == pytest.approx(150.515, abs=1e-3)
    )
    assert result.feature_rmse.value == 0


def test_psnr_is_of_the_pooled_error_and_its_interval_that_of_the_rmse():
    teacher, features = images(40), torch.ones(40, 2)
    gain = torch.linspace(0, 0.3, 40).double()[:, None, None, None]
    result = fidelity(teacher, teacher + gain, features, features)
    assert result.rmse.value == pytest.approx(float(gain.square().mean().sqrt()), rel=1e-9)
    assert 0 < result.rmse.low < result.rmse.value < result.rmse.high
    assert result.psnr.low < result.psnr.value < result.psnr.high
    for psnr, rmse in (
        (result.psnr.low, result.rmse.high),
        (result.psnr.value, result.rmse.value),
        (result.psnr.high, result.rmse.low),
    ):
        assert psnr == pytest.approx(20 * math.log10(2 / rmse), abs=1e-9)


def test_the_interval_covers_the_true_error():
    """Each pair's error has its own size, exponential with mean .1: the root mean square is .1 sqrt 2."""
    covered = 0
    for seed in range(200):
        size = -0.1 * torch.rand(300, 1, generator=seeded(seed), dtype=torch.float64).log()
        result = paired_rmse(torch.zeros(300, 2), size.expand(300, 2), seed=seed)
        covered += result.low <= 0.1 * math.sqrt(2) <= result.high
    assert 0.88 <= covered / 200 <= 0.99


def test_an_interval_narrows_as_one_over_the_root_of_n():
    noise = torch.randn(6400, 3, generator=seeded(2), dtype=torch.float64)
    few, many = (paired_rmse(torch.zeros(n, 3), noise[:n]) for n in (100, 6400))
    assert 5 < (few.high - few.low) / (many.high - many.low) < 12  # 8 expected


def test_the_worst_pairs_come_worst_first_and_equal_ones_in_order():
    teacher = torch.zeros(6, 1, 2, 3)
    student = torch.tensor([0.1, -0.5, 0.0, 0.5, 0.2, 0.3])[:, None, None, None].expand(6, 1, 2, 3)
    assert worst_pairs(teacher, student, 4) == [1, 3, 5, 4]
    assert worst_pairs(teacher, student, 99) == [1, 3, 5, 4, 0, 2]


def test_what_is_no_pair_is_refused():
    with pytest.raises(ConfigError, match="same n and seed"):
        paired_rmse(images(5), images(4))
    with pytest.raises(ConfigError, match="N at least 2"):
        paired_rmse(images(1), images(1))
    with pytest.raises(ConfigError, match="of these images"):
        fidelity(images(5), images(5), torch.ones(4, 2), torch.ones(4, 2))
    with pytest.raises(DataError, match="nan or infinite"):
        paired_rmse(images(5), images(5).log())
    with pytest.raises(ConfigError, match="at least 1"):
        worst_pairs(images(5), images(5), 0)


# What the grid costs.


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_the_cost_of_a_grid_is_that_of_two_walks_from_the_same_noise(steps):
    denoiser, times = Denoiser(Off(Wobbly(), 0.0), Cosine(), V()), uniform(2 * steps)
    result = grid_cost(Pipeline(denoiser, SHAPE), times, n=11, seed=5, batch=4)
    noise = sample_noise(5, range(11), SHAPE)
    fine, coarse = sample(denoiser, noise, times), sample(denoiser, noise, times[::2])
    assert result.value == pytest.approx(float((fine - coarse).square().mean().sqrt()), rel=1e-5)
    assert result.low < result.value < result.high


def test_the_cost_of_a_grid_falls_with_the_steps_as_the_order_of_ddim_says():
    """Order 1: half the step, half the error, so that of N against 2N halves as N doubles."""
    teacher = Pipeline(Denoiser(Off(gaussian_teacher(Cosine()).net, 0.0), Cosine(), V()), SHAPE)
    teacher.denoiser.time = NetTime(scale=1.0)
    result = [grid_cost(teacher, uniform(2 * n), n=20).value for n in (16, 32, 64)]
    assert result[0] / result[1] == pytest.approx(2, rel=0.15)
    assert result[1] / result[2] == pytest.approx(2, rel=0.1)


def test_a_grid_that_cannot_be_halved_is_refused():
    with pytest.raises(ConfigError, match="grid of 3 steps"):
        grid_cost(Pipeline(wobbly(), SHAPE), uniform(3))
    with pytest.raises(ConfigError, match="grid of 5 steps"):
        learning_error(wobbly(), wobbly(), uniform(5), images(6))


# What the student failed to learn.


class Exact(torch.nn.Module):
    """The network of a student that has learned a Gaussian teacher's two steps to the last bit."""

    def __init__(self, teacher, times):
        super().__init__()
        self.teacher, self.times = teacher, torch.tensor(times, dtype=torch.float64)
        self.off = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, t, cond=None):
        at = (self.times[None] - t[:, None].double()).abs().argmin(1)
        landed = torch.stack(
            [
                sample(self.teacher, row[None], tuple(self.times[k : k + 3].tolist()))[0]
                for row, k in zip(x, at.tolist(), strict=True)
            ]
        )
        level, end_level = (self._level(self.times[at + skip]) for skip in (0, 2))
        # landed = alpha_e x0 + sigma_e (x - alpha x0) / sigma
        shrink = end_level[1] / level[1]
        return (landed - shrink * x) / (end_level[0] - shrink * level[0]) + self.off

    def _level(self, t):
        level = self.teacher.schedule.at(t[:, None, None, None])
        end = (t == 0)[:, None, None, None]
        return level.alpha.masked_fill(end, 1), level.sigma.masked_fill(end, 0)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_student_that_lands_where_two_steps_land_has_nothing_left_to_learn(steps):
    teacher, times = gaussian_teacher(Cosine()), uniform(2 * steps)
    student = Denoiser(Exact(teacher, times), Cosine(), X0(), time=NetTime(scale=1.0))
    assert learning_error(student, teacher, times, images(13), batch=5).value < 6e-8


def test_an_error_of_known_size_is_found_where_the_step_lands():
    """x0 is off by d: the landing by (alpha_e - sigma_e alpha / sigma) d, at both times of the grid."""
    teacher, times = gaussian_teacher(Cosine()), uniform(4)
    student = Denoiser(Exact(teacher, times), Cosine(), X0(), time=NetTime(scale=1.0))
    with torch.no_grad():
        student.net.off.fill_(0.03)
    here, end = (Cosine().at(torch.tensor(t, dtype=torch.float64)) for t in (1.0, 0.5))
    factor = end.alpha - end.sigma * here.alpha / here.sigma
    expected = 0.03 * math.sqrt((float(factor) ** 2 + 1) / 2)  # the last lands on x0 itself
    result = learning_error(student, teacher, times, images(14), batch=3)
    assert result.value == pytest.approx(expected, rel=1e-6)
    assert result.low < result.value < result.high


def test_a_student_untrained_fails_by_the_difference_of_one_step_and_two():
    teacher, times = gaussian_teacher(Cosine()), uniform(2)
    student = Denoiser(Off(teacher.net, 0.0), Cosine(), V(), time=NetTime(scale=1.0))
    x0 = images(12)
    noise = sample_noise(7, range(12), SHAPE).double()
    level = Cosine().at(torch.tensor(1.0, dtype=torch.float64))
    x_t = level.mix(x0, noise)
    expected = sample(teacher, x_t, times) - sample(teacher, x_t, times[::2])
    result = learning_error(student, teacher, times, x0, seed=7)
    assert result.value == pytest.approx(float(expected.square().mean().sqrt()), rel=1e-9)
    truth = gaussian_flow(Cosine(), x_t, 1.0, 0.0)  # and two steps are nearer to the flow than one
    assert (sample(teacher, x_t, times) - truth).norm() < (
        sample(teacher, x_t, times[::2]) - truth
    ).norm()


def test_learning_is_the_same_in_any_batches_and_told_the_labels():
    teacher = mixture_teacher(RectifiedFlow())
    student = Denoiser(Off(teacher.net, 0.1), RectifiedFlow(), V(), time=NetTime(scale=1.0))
    x0 = torch.rand(10, 2, generator=seeded(4), dtype=torch.float64)
    label = torch.arange(10) % 3
    once, often = (
        learning_error(student, teacher, uniform(4), x0, cond=Cond(label), batch=b).value
        for b in (10, 3)
    )
    assert once == pytest.approx(often, rel=1e-12)
    unlabelled = learning_error(student, teacher, uniform(4), x0).value
    assert abs(unlabelled / once - 1) > 1e-4


def test_every_time_of_the_student_is_visited():
    teacher, times = gaussian_teacher(Cosine()), uniform(8)
    student = Denoiser(Off(teacher.net, 0.0), Cosine(), V(), time=NetTime(scale=1.0))
    visited = []
    student.net.register_forward_pre_hook(lambda _, args: visited.extend(args[1].tolist()))
    learning_error(student, teacher, times, images(11), batch=4)
    assert {t: visited.count(t) in (2, 3) for t in visited} == {
        1.0: True,
        0.75: True,
        0.5: True,
        0.25: True,
    }
    with pytest.raises(ConfigError, match="give at least 4"):
        learning_error(student, teacher, times, images(3))


def test_a_pipeline_with_a_grid_of_its_own_is_not_changed_by_the_question():
    pipeline = replace(Pipeline(wobbly(), SHAPE), times=(uniform(1),))
    grid_cost(pipeline, uniform(2), n=3)
    assert pipeline.times == (uniform(1),)
