"""Euler-Maruyama on the reverse-time SDE: its coefficients, its step, the marginals, both ends."""

from itertools import pairwise

import pytest
import torch

from halfstep.diffusion.analytic import gaussian_teacher, mixture_teacher
from halfstep.diffusion.samplers import (
    calls,
    euler_maruyama,
    ModelOutput,
    sample,
    SAMPLER_PRESETS,
    start,
    TimePoint,
)
from halfstep.diffusion.samplers.sde import _drift_and_diffusion
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import uniform, uniform_landing
from halfstep.errors import ConfigError
from tests.support.denoisers import Counted, named, seeded

pytestmark = pytest.mark.usefixtures("float64")
SMOOTH = [Cosine(), VPLinear(), RectifiedFlow(), Karras()]
every_schedule = pytest.mark.parametrize("schedule", SMOOTH, ids=named)


def fresh(like, step):
    return torch.randn(like.shape, generator=seeded(step), dtype=like.dtype)


def silent(like, step):
    return torch.zeros_like(like)


@pytest.mark.parametrize("t", [1e-3, 0.3, 1.0])
def test_vp_linear_is_its_beta(t):
    """Song et al. 2021, eq. 11: dx = -beta / 2 x dt + sqrt(beta) dw."""
    for schedule in (VPLinear(), VPLinear(0.3, 7.0)):
        beta = schedule.beta_min + t * (schedule.beta_max - schedule.beta_min)
        f, g2 = _drift_and_diffusion(schedule, t)
        assert f.item() == pytest.approx(-beta / 2, rel=1e-12)
        assert g2.item() == pytest.approx(beta, rel=1e-12)
        assert f.dtype == g2.dtype == torch.float64


def test_other_schedules_in_closed_form():
    t = 0.3
    f, g2 = _drift_and_diffusion(RectifiedFlow(), t)
    assert (f.item(), g2.item()) == pytest.approx((-1 / (1 - t), 2 * t / (1 - t)), rel=1e-12)
    exploding = Karras(sigma_min=0.01, sigma_max=50.0, rho=5.0)
    low, high = 0.01**0.2, 50**0.2
    f, g2 = _drift_and_diffusion(exploding, t)
    expected = 10 * (low + t * (high - low)) ** 9 * (high - low)
    assert f.item() == 0 and g2.item() == pytest.approx(expected, rel=1e-12)


@every_schedule
def test_one_step_by_hand(schedule):
    """x_s = x - (f x - g^2 score) (t - s) + g sqrt(t - s) z, with finite differences for f and g."""
    teacher, x = mixture_teacher(schedule), torch.randn(5, 2, generator=seeded())
    t, s, tiny = 0.8, 0.74, 1e-6
    around = schedule.at(torch.tensor([t - tiny, t, t + tiny]))
    f = (around.alpha[2] / around.alpha[0]).log() / (2 * tiny)
    sigma = around.sigma[1]
    g2 = (around.sigma[2] ** 2 - around.sigma[0] ** 2) / (2 * tiny) - 2 * f * sigma**2
    x_t = start(schedule, x, t)
    score = -teacher(x_t, torch.full((5,), t)).eps / sigma
    mean = x_t + (f * x_t - g2 * score) * (s - t)
    noise = (g2 * (t - s)).sqrt() * fresh(x, 1)
    actual = sample(teacher, x, (t, s), euler_maruyama(schedule, fresh))
    torch.testing.assert_close(actual, mean + noise, rtol=1e-7, atol=1e-7)
    still = sample(teacher, x, (t, s), euler_maruyama(schedule, silent))
    torch.testing.assert_close(still, mean, rtol=1e-7, atol=1e-7)


def test_the_last_step_is_the_mean():
    """Official: to t = 0 no noise, and neither the predicted x0."""
    teacher, x = gaussian_teacher(VPLinear()), torch.randn(5, 3, generator=seeded())
    steps = []

    def noise(like, step):
        steps.append(step)
        return fresh(like, step)

    actual = sample(teacher, x, (0.1, 0.0), euler_maruyama(VPLinear(), noise))
    level = VPLinear().at(torch.tensor(0.1))
    pred = teacher(x, torch.full((5,), 0.1))
    beta = 0.1 + 0.1 * 19.9
    expected = x + 0.1 * beta * (x / 2 - pred.eps / level.sigma)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(actual, pred.x0, atol=1e-3) and steps == []
    sample(teacher, x, uniform_landing(9), euler_maruyama(VPLinear(), noise))
    assert steps == list(range(1, 9))


def test_the_marginal_converges():
    """Gaussian data: sampling is affine in its noise, so its mean and variance need no samples.

    The response to one unit of noise at each place in turn is exact, and the variance their squares' sum.
    """
    teacher = gaussian_teacher(VPLinear(), 0.3, 0.5)

    def moments(n):
        def unit(like, step):  # sample k feels the noise of step k alone; the last one none
            return torch.eye(n + 1)[:, step : step + 1]

        noise = torch.eye(n + 1)[:, :1]
        x = sample(teacher, noise, uniform_landing(n), euler_maruyama(VPLinear(), unit)).flatten()
        mean = x[-1]
        return mean.item(), (x[:-1] - mean).square().sum().item()

    off = [(abs(m - 0.3), abs(v - 0.25)) for m, v in map(moments, (100, 200, 400))]
    for (mean, var), (better_mean, better_var) in pairwise(off):
        assert 1.7 < mean / better_mean < 2.3, off
        assert 1.7 < var / better_var < 2.3, off
    assert off[-1][0] < 2e-2 and off[-1][1] < 2e-2


def test_samples_are_the_data():
    n = 4000
    noise = torch.randn(n, 1, generator=seeded(77))
    teacher = gaussian_teacher(VPLinear(), 0.3, 0.5)
    x = sample(teacher, noise, uniform_landing(400), euler_maruyama(VPLinear(), fresh))
    assert abs(x.mean() - 0.3) < 4 * 0.5 / n**0.5 + 0.01
    assert abs(x.std() / 0.5 - 1) < 4 / (2 * n) ** 0.5 + 0.015


def test_the_grid():
    """Official: linspace(1, 1e-3, n), then 0."""
    for n in (2, 5, 1000):
        times = uniform_landing(n)
        expected = [*torch.linspace(1, 1e-3, n).tolist(), 0.0]
        assert times == pytest.approx(expected, abs=1e-14)
        assert (times[0], times[-2], times[-1]) == (1.0, 1e-3, 0.0)
    assert uniform_landing(1) == (1.0, 0.0)
    assert uniform_landing(1, start=0.8) == (0.8, 0.0)
    assert uniform_landing(3, start=0.9, end=0.1) == pytest.approx((0.9, 0.5, 0.1, 0.0), abs=1e-15)
    for n in (0, -2):
        with pytest.raises(ConfigError, match=f"got {n}: write steps=1"):
            uniform_landing(n)


@every_schedule
@pytest.mark.parametrize("steps", [24, 33])
@pytest.mark.parametrize("shape", [(0, 2), (1, 1), (5, 1, 1, 1)])
def test_calls_and_shapes(schedule, steps, shape):
    preset = SAMPLER_PRESETS["euler-maruyama"]
    teacher = Counted(gaussian_teacher(schedule))
    if shape[-1] == 2:
        teacher = Counted(mixture_teacher(schedule))
    noise = torch.randn(shape, generator=seeded(), dtype=torch.float32)
    assert len(preset.grid(steps, schedule)) == steps + 1
    times = uniform_landing(steps, start=0.9)
    x = sample(teacher, noise, times, preset.step(steps, schedule, fresh))
    assert x.shape == noise.shape and x.dtype == torch.float32 and bool(x.isfinite().all())
    assert teacher.calls == steps == calls("euler-maruyama", steps)


def test_a_step_is_a_function_of_its_history():
    teacher, times = mixture_teacher(VPLinear()), uniform_landing(10)
    x = noise = torch.randn(5, 2, generator=seeded())
    for k, (t, s) in enumerate(pairwise(times)):
        level, to = (
            TimePoint(j, v, VPLinear().at(torch.tensor(v))) for j, v in ((k, t), (k + 1, s))
        )
        visit = ModelOutput(level, teacher(x, torch.full((5,), t)))
        x = euler_maruyama(VPLinear(), fresh)(x, [visit], to, None)
    expected = sample(teacher, noise, times, euler_maruyama(VPLinear(), fresh))
    assert torch.equal(x, expected)
    with torch.inference_mode():
        again = sample(teacher, noise, times, euler_maruyama(VPLinear(), fresh))
    assert torch.equal(again, expected)


def test_a_start_without_signal_is_refused():
    step = euler_maruyama(RectifiedFlow(), fresh)
    with pytest.raises(ConfigError, match="t = 1, where alpha = 0"):
        sample(mixture_teacher(RectifiedFlow()), torch.ones(2, 2), uniform(4), step)


def spreads_shown(schedule, times, std=0.5):
    """Of x wherever the network is asked, over those of the marginals."""
    teacher, spreads = gaussian_teacher(schedule, 0.0, std), []

    class Watched:
        def __call__(self, x, t, cond=None):
            level = schedule.at(t[0])
            spreads.append((x.std() / (level.alpha**2 * std**2 + level.sigma**2).sqrt()).item())
            return teacher(x, t, cond)

    Watched.schedule = schedule
    noise = torch.randn(2000, 1, generator=seeded(5))
    x = sample(Watched(), noise, times, euler_maruyama(schedule, fresh))
    return [*spreads[1:], (x.std() / std).item()]


def test_the_last_step_draws_no_noise_that_could_be_too_much():
    """With its noise x would end at three times the spread."""
    assert 1.2 < spreads_shown(VPLinear(), (0.3, 0.0))[-1] < 1.5


@pytest.mark.parametrize(
    "schedule, times",
    [
        (Cosine(), uniform_landing(10)),
        (Cosine(), uniform_landing(1000)),
        (Cosine(-30.0, 30.0), uniform_landing(1000)),
        (Cosine(), uniform_landing(50, start=0.999)),
        (RectifiedFlow(), uniform_landing(100, start=0.999)),
        (VPLinear(), uniform(1)),
        (VPLinear(), uniform_landing(2)),
        (VPLinear(), uniform_landing(4)),
        (VPLinear(0.1, 200.0), uniform_landing(40)),
        (Karras(), uniform_landing(1)),
        (Karras(), uniform_landing(10)),
        (VPLinear(), (0.5, 0.0)),
    ],
)
def test_a_step_too_long_for_its_drift_is_refused(schedule, times):
    """The network would be shown x of more than twice the spread that it should have."""
    with pytest.raises(ConfigError, match="spread out"):
        spreads_shown(schedule, times)


@pytest.mark.parametrize(
    "schedule, times",
    [
        (VPLinear(), uniform_landing(10)),
        (VPLinear(), uniform_landing(200)),
        (Cosine(), uniform_landing(100, start=0.98)),
        (RectifiedFlow(), uniform_landing(1000, start=0.999)),
        (RectifiedFlow(), uniform_landing(20, start=0.9)),
        (Karras(), uniform_landing(20)),
        (Karras(), uniform_landing(100)),
    ],
)
def test_what_is_not_refused_shows_the_network_what_it_knows(schedule, times):
    assert max(spreads_shown(schedule, times)) < 2


def test_a_table_is_refused():
    with pytest.raises(ConfigError, match="table of betas"):
        euler_maruyama(BetaTable(), fresh)
