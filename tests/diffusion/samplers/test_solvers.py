"""Samplers: the official numbers, measured orders, exact counts, both ends, one step, one sample."""

from functools import partial

import pytest
import torch
from torch import nn

from halfstep.batch import Cond
from halfstep.diffusion.analytic import gaussian_flow, gaussian_teacher, Mixture, mixture_teacher
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import Eps, Prediction, V, X0
from halfstep.diffusion.samplers import (
    ancestral,
    calls,
    ddim,
    dpmpp_2m,
    heun,
    ModelOutput,
    noise_of,
    noised,
    sample,
    sample_with_scheduler,
    start,
    STEPS,
    TimePoint,
)
from halfstep.diffusion.schedules import (
    arriving,
    BetaTable,
    Cosine,
    Karras,
    RectifiedFlow,
    VPLinear,
)
from halfstep.diffusion.time_grids import karras, uniform
from halfstep.errors import ConfigError
from halfstep.rng import sample_noise
from tests.support.denoisers import Counted, fine_flow, named, SCHEDULES, seeded, wobbly_teacher
from tests.support.progress import Ledger

pytestmark = pytest.mark.usefixtures("float64")
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
every_step = pytest.mark.parametrize("name", [*STEPS, "ancestral"])


def fresh(seed=0):
    """Unit noise that depends on the step."""
    return lambda like, step: torch.randn(
        like.shape, generator=seeded(1000 * seed + step), dtype=like.dtype
    )


def step_called(name):
    return ancestral(fresh(), variance=0.3) if name == "ancestral" else STEPS[name]


def point(schedule, t, step=0):
    return TimePoint(step, t, arriving(schedule, torch.tensor(t, dtype=torch.float64)))


class ToyStudent(nn.Module):
    """The x0 student of distillation-checks.md: 0.85 tanh(0.7 z) + 0.02 sin(log-SNR)."""

    def forward(self, x, logsnr, cond=None):
        return 0.85 * (0.7 * x).tanh() + 0.02 * logsnr.sin()[:, None]


@pytest.mark.parametrize(
    "steps, expected",
    [
        (1, [0.594703511, -0.250228223, 0.011478953, -0.793561219]),
        (4, [0.559802838, -0.214904039, 0.041735240, -0.659175877]),
        (16, [0.331134625, -0.160497379, 0.003112096, -0.464848131]),
    ],
)
def test_ddim_of_the_official_code(steps, expected):
    """distillation-checks.md 35: clipped, type x0."""
    student = Denoiser(ToyStudent(), Cosine(), X0(), time=NetTime(of="logsnr", scale=1.0))
    noise = torch.tensor([[1.3], [-0.4], [0.05], [-2.2]])
    actual = sample(student, noise, uniform(steps), clip=1.0)
    torch.testing.assert_close(actual.flatten(), torch.tensor(expected), rtol=0, atol=6e-10)


def test_clipped_step():
    """distillation-checks.md 14: from t = 0.75 to 0.5, clipped and not."""
    z, level_t, to = torch.tensor(0.5), point(Cosine(), 0.75), point(Cosine(), 0.5, 1)
    free = Prediction.from_x0(torch.tensor(1.4), z, level_t.level)
    one = ddim(z, [ModelOutput(level_t, free)], to, None)
    other = ddim(z, [ModelOutput(level_t, free.clipped(z, level_t.level))], to, None)
    assert one.item() == pytest.approx(0.962559690, abs=6e-10)
    assert other.item() == pytest.approx(0.796881788, abs=6e-10)


@pytest.mark.parametrize(
    "variance, expected", [(0.0, 0.414202546), (1.0, 0.707074678), (0.5, 0.541176618)]
)
def test_ancestral_step(variance, expected):
    """distillation-checks.md 36: t = 0.75 to 0.5, x0 = 0.3, z = 0.5."""
    z, level_t, to = torch.tensor(0.5), point(Cosine(), 0.75), point(Cosine(), 0.5, 7)
    visit = ModelOutput(level_t, Prediction.from_x0(torch.tensor(0.3), z, level_t.level))
    steps = []

    def noise(value, like, step):
        steps.append(step)
        return torch.full_like(like, value)

    mean, above = (
        ancestral(partial(noise, value), variance=variance)(z, [visit], to, None)
        for value in (0.0, 1.0)
    )
    assert mean.item() == pytest.approx(0.334255593, abs=6e-10)
    assert ((above - mean) ** 2).item() == pytest.approx(expected, abs=1e-9)
    assert steps == [7, 7]


@pytest.mark.parametrize("variance", [-0.1, 1.1, float("nan")])
def test_ancestral_refuses(variance):
    with pytest.raises(ConfigError, match="variance"):
        ancestral(fresh(), variance=variance)


@pytest.mark.parametrize(
    "steps, expected",
    [
        (1, 1.134998e-05),
        (2, 0.200002270),
        (4, 0.333438418),
        (8, 0.411373354),
        (16, 0.453926567),
        (1024, 0.499247552),
    ],
)
def test_ddim_on_gaussian_data(steps, expected):
    """distillation-checks.md 37: std 0.5, exact denoiser, z = 1."""
    actual = sample(gaussian_teacher(Cosine(), 0.0, 0.5), torch.ones(1, 1), uniform(steps))
    assert actual.item() == pytest.approx(expected, abs=6e-10)


@pytest.mark.slow
def test_ddim_on_gaussian_data_in_8192_steps():
    actual = sample(gaussian_teacher(Cosine(), 0.0, 0.5), torch.ones(1, 1), uniform(8192))
    assert actual.item() == pytest.approx(0.499905881, abs=6e-10)


# --- orders of convergence ----------------------------------------------------------------------------


SMOOTH = [Cosine(), VPLinear(), RectifiedFlow(), Karras()]  # a table's levels have corners


@pytest.mark.parametrize("schedule", SMOOTH, ids=named)
def test_the_reference_is_exact(schedule):
    """RK4 against the closed flow of one Gaussian: the reference of the next test is not at fault."""
    x = schedule.at(torch.tensor(0.9)).sigma * torch.randn(8, 2, generator=seeded())
    actual = fine_flow(gaussian_teacher(schedule), x, 0.9, 0.1)
    torch.testing.assert_close(actual, gaussian_flow(schedule, x, 0.9, 0.1), rtol=0, atol=1e-7)


@pytest.mark.parametrize("schedule", SMOOTH, ids=named)
def test_orders_on_the_mixture(schedule):
    """Halving the step divides the error by 2^order, for t in [0.1, 0.9] and 256 to 512 steps."""
    teacher, noise = mixture_teacher(schedule), torch.randn(64, 2, generator=seeded())
    expected = fine_flow(teacher, start(schedule, noise, 0.9), 0.9, 0.1)

    def error(step, n):
        times = tuple(0.1 + 0.8 * t for t in uniform(n))
        return (sample(teacher, noise, times, step) - expected).square().mean().sqrt()

    for step, order in ((ddim, 1), (heun, 2), (dpmpp_2m, 2)):
        measured = torch.log2(error(step, 256) / error(step, 512)).item()
        assert abs(measured - order) < 0.1, f"{step.__name__}: {measured:.3f}"


@pytest.mark.parametrize("schedule", SMOOTH, ids=named)
@pytest.mark.parametrize("name", STEPS)
def test_uneven_grids_converge_to_the_exact_flow(schedule, name):
    """The unequal steps of Karras' grid, against the exact flow: DPM-Solver++ reads its history."""
    teacher, noise = gaussian_teacher(schedule), torch.randn(16, 2, generator=seeded())
    exact = gaussian_flow(schedule, start(schedule, noise, 0.9), 0.9, 0.1)

    def error(n):
        times = karras(n, schedule, start=0.9, end=0.1)[:-1]
        return (sample(teacher, noise, times, STEPS[name]) - exact).abs().mean()

    order = 1 if name == "ddim" else 2
    assert abs(torch.log2(error(257) / error(513)).item() - order) < 0.15


@every_step
def test_everything_ends_where_the_flow_ends(name):
    """All the way to t = 0, on a schedule with exact ends and through its singular start."""
    noise = torch.randn(400, 3, generator=seeded())
    x = sample(gaussian_teacher(RectifiedFlow()), noise, uniform(256), step_called(name))
    if name == "ancestral":
        assert abs(x.mean() - 0.3) < 4 * 0.5 / 1200**0.5
        assert abs(x.std() / 0.5 - 1) < 0.1
    else:
        off = (x - 0.3 - 0.5 * noise).abs().max()
        assert off < (2e-2 if name == "ddim" else 2e-3), off


# --- the steps themselves -----------------------------------------------------------------------------


@every_schedule
@every_step
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_finite_to_the_end_in_any_number_of_steps(schedule, name, steps, batch):
    noise = torch.randn(batch, 2, generator=seeded())
    x = sample(mixture_teacher(schedule), noise, uniform(steps), step_called(name))
    assert x.shape == noise.shape and bool(x.isfinite().all())


@pytest.mark.parametrize("name", [*STEPS, "ancestral"])
def test_zero_terminal_snr(name):
    table = BetaTable(zero_snr=True)
    x = sample(
        mixture_teacher(table), torch.randn(5, 2, generator=seeded()), uniform(5), step_called(name)
    )
    assert bool(x.isfinite().all()) and x.abs().max() < 2


@every_schedule
@every_step
def test_one_step_is_the_predicted_x0(schedule, name):
    """Arriving at t = 0 returns x0 itself: the last-step rule."""
    teacher, noise = mixture_teacher(schedule), torch.randn(5, 2, generator=seeded())
    x = sample(teacher, noise, (1.0, 0.0), step_called(name))
    first = teacher(start(schedule, noise), torch.ones(5)).x0
    torch.testing.assert_close(x, first, rtol=1e-15, atol=1e-15)


@every_schedule
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("t", [1.0, 0.8])
def test_exact_where_the_data_is_one_point(schedule, name, t):
    """With a constant x0 steps of any length solve the flow exactly."""
    teacher = gaussian_teacher(schedule, mean=0.3, std=0.0)
    noise = torch.randn(5, 3, generator=seeded())
    times = (t, 0.6, 0.55, 0.2)
    x = sample(teacher, noise, times, STEPS[name])
    begin, level_mid, end = (schedule.at(torch.tensor(s)) for s in (t, t, 0.2))
    eps = (start(schedule, noise, t) - begin.alpha * 0.3) / level_mid.sigma
    torch.testing.assert_close(x, end.mix(torch.tensor(0.3), eps), rtol=0, atol=1e-12)


@every_schedule
def test_two_steps_of_heun(schedule):
    """Trapezium in x0 on the exponential form: (1 - e^-h) alpha_s, h the fall of log(sigma / alpha)."""
    teacher, noise = mixture_teacher(schedule), torch.randn(5, 2, generator=seeded())
    t, s = 0.8, 0.5
    x = start(schedule, noise, t)
    level_t, to = (schedule.at(torch.tensor(v)) for v in (t, s))
    one = teacher(x, torch.full((5,), t))
    landed = to.mix(one.x0, one.eps)
    mean = (one.x0 + teacher(landed, torch.full((5,), s)).x0) / 2
    h = (to.logsnr - level_t.logsnr) / 2
    expected = to.sigma / level_t.sigma * x - to.alpha * torch.expm1(-h) * mean
    actual = sample(teacher, noise, (t, s), heun)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@every_schedule
def test_two_steps_of_dpmpp(schedule):
    """Lu et al. 2022, Algorithm 2, as printed: D = (1 + 1/2r) x_1 - 1/2r x_0 with r = h_1 / h_2."""
    teacher, noise = mixture_teacher(schedule), torch.randn(5, 2, generator=seeded())
    times = 0.8, 0.6, 0.25
    levels = [schedule.at(torch.tensor(v)) for v in times]
    x = start(schedule, noise, 0.8)
    zero = teacher(x, torch.full((5,), 0.8))
    x = levels[1].mix(zero.x0, zero.eps)
    one = teacher(x, torch.full((5,), 0.6))
    lam = [level.logsnr / 2 for level in levels]
    h1, h2 = lam[1] - lam[0], lam[2] - lam[1]
    r = h1 / h2
    d = (1 + 1 / (2 * r)) * one.x0 - 1 / (2 * r) * zero.x0
    expected = levels[2].sigma / levels[1].sigma * x - levels[2].alpha * torch.expm1(-h2) * d
    actual = sample(teacher, noise, times, dpmpp_2m)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_dpmpp_from_zero_snr_starts_without_history():
    """A start at alpha = 0 is infinitely far: the second step is then DDIM's."""
    teacher, noise = mixture_teacher(RectifiedFlow()), torch.randn(5, 2, generator=seeded())
    times = (1.0, 0.7, 0.3)
    one, other = (sample(teacher, noise, times, step) for step in (dpmpp_2m, ddim))
    torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)
    more = (*times, 0.1)
    one, other = (sample(teacher, noise, more, step) for step in (dpmpp_2m, ddim))
    assert not torch.allclose(one, other, atol=1e-4)


@every_schedule
@pytest.mark.parametrize("variance", [0.0, 0.4, 1.0])
def test_ancestral_lands_on_the_forward_marginal(schedule, variance):
    """Data at one point: the small variance is the true posterior, so x is alpha x0 + sigma eps."""
    teacher = gaussian_teacher(schedule, mean=0.3, std=0.0)
    n, t, s = 20_000, 0.9, 0.5
    level_t, to = (schedule.at(torch.tensor(v)) for v in (t, s))
    x = level_t.mix(torch.tensor(0.3), torch.randn(n, 1, generator=seeded()))
    noise = x / (1 if schedule.variance_preserving else level_t.sigma)
    actual = sample(teacher, noise, (t, s), ancestral(fresh(), variance=variance))
    ratio = (level_t.logsnr - to.logsnr).exp()
    spread = (1 - ratio) * to.sigma ** (2 - 2 * variance) * level_t.sigma ** (2 * variance)
    std = (ratio * to.sigma**2 + spread).sqrt()
    if variance == 0:
        torch.testing.assert_close(std, to.sigma)
    assert abs(actual.mean() - to.alpha * 0.3) < 4 * std / n**0.5
    assert abs(actual.std() / std - 1) < 4 / (2 * n) ** 0.5


def test_ancestral_keeps_the_data():
    """128 small steps on Gaussian data: mean and spread of the data, for both variance rules."""
    n = 4000
    for variance in (0.0, 1.0):
        step = ancestral(fresh(int(variance)), variance=variance)
        x = sample(
            gaussian_teacher(Cosine()), torch.randn(n, 1, generator=seeded()), uniform(128), step
        )
        assert abs(x.mean() - 0.3) < 4 * 0.5 / n**0.5 + 0.005
        assert abs(x.std() / 0.5 - 1) < 4 / (2 * n) ** 0.5 + 0.015


# --- the loop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5, 16])
@every_step
def test_calls_are_counted(name, steps):
    """Never more than promised: one a step, two for Heun but on the landing."""
    teacher = Counted(mixture_teacher(Cosine()))
    sample(teacher, torch.ones(2, 2), uniform(steps), step_called(name))
    assert teacher.calls == calls(name, steps) == (2 * steps - 1 if name == "heun" else steps)


def test_the_network_is_asked_on_the_grid():
    """distillation-checks.md 50: at 1, 0.75, 0.5, 0.25 in that order, in float64, with the condition."""
    times_seen = []

    class Spy(nn.Module):
        def forward(self, x, t, cond=None):
            times_seen.append((t, cond))
            return x

    cond = Cond(label=torch.tensor([1, 2, 3]))
    denoiser = Denoiser(Spy(), Cosine(), V(), time=NetTime(scale=1.0))
    sample(denoiser, torch.ones(3, 2), uniform(4), cond=cond)
    assert [t.tolist() for t, _ in times_seen] == [[t] * 3 for t in (1.0, 0.75, 0.5, 0.25)]
    assert all(c is cond for _, c in times_seen)


def test_steps_are_numbered_from_one():
    """0 is the noise that sampling starts from (`sample_noise`), so no step draws with it."""
    numbers = []

    def noise(like, step):
        numbers.append(step)
        return torch.zeros_like(like)

    sample(mixture_teacher(Cosine()), torch.ones(2, 2), uniform(4), ancestral(noise))
    assert numbers == [1, 2, 3]  # the landing draws nothing


def test_where_a_walk_starts():
    noise = torch.randn(5, 3, generator=seeded())
    for schedule in (Cosine(), VPLinear(), BetaTable()):
        assert start(schedule, noise) is noise and start(schedule, noise, 0.4) is noise
    torch.testing.assert_close(start(Karras(), noise), 80 * noise, rtol=1e-14, atol=0)
    torch.testing.assert_close(start(RectifiedFlow(), noise, 0.7), 0.7 * noise, rtol=1e-14, atol=0)
    half = noise.float()
    assert start(Karras(), half).dtype == torch.float32


@every_schedule
@every_step
def test_dtype_is_that_of_the_noise(schedule, name):
    noise = torch.randn(3, 2, generator=seeded(), dtype=torch.float32)
    x = sample(mixture_teacher(schedule), noise, uniform(4), step_called(name))
    assert x.dtype == torch.float32 and not x.requires_grad
    if name != "ancestral":  # whose noise is drawn in the dtype of x
        exact = sample(mixture_teacher(schedule), noise.double(), uniform(4), STEPS[name])
        torch.testing.assert_close(x.double(), exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", STEPS)
def test_an_image_does_not_depend_on_its_batch(name):
    teacher = wobbly_teacher(Cosine(), V())
    noise = sample_noise(3, range(6), (3, 4, 5))
    whole = sample(teacher, noise, uniform(4), STEPS[name])
    for k in range(6):
        alone = sample(teacher, sample_noise(3, [k], (3, 4, 5)), uniform(4), STEPS[name])
        torch.testing.assert_close(alone[0], whole[k], rtol=0, atol=1e-5)


@every_schedule
@every_step
def test_clipping(schedule, name):
    """Every x0 is clipped and its eps recomputed; a bound that never binds changes nothing."""
    teacher = wobbly_teacher(schedule, X0())
    noise = 3 * torch.randn(5, 4, generator=seeded())
    free = sample(teacher, noise, uniform(4), step_called(name))
    loose = sample(teacher, noise, uniform(4), step_called(name), clip=1e6)
    tight = sample(teacher, noise, uniform(4), step_called(name), clip=0.25)
    torch.testing.assert_close(loose, free, rtol=1e-9, atol=1e-9)
    assert tight.abs().max() <= 0.25 < free.abs().max()


@pytest.mark.parametrize("clip", [float("nan"), float("inf"), -1.0, 0.0, "1", True, 10**400])
def test_no_walk_clips_to_what_is_no_bound(clip):
    teacher, noise = Counted(wobbly_teacher(Cosine(), X0())), torch.ones(1, 4)
    with pytest.raises(ConfigError, match="clip"):
        sample(teacher, noise, uniform(4), clip=clip)
    with pytest.raises(ConfigError, match="clip"):
        sample_with_scheduler(
            teacher, noise, uniform(4), "DDIMScheduler", generators=[seeded()], clip=clip
        )
    assert teacher.calls == 0


@pytest.mark.parametrize("t", [float("nan"), 2.0, -1.0, "1", None, 10**400])
def test_no_walk_starts_at_what_is_no_time(t):
    x = torch.ones(1, 4)
    with pytest.raises(ConfigError, match=r"^t (must|is)"):
        start(Karras(), x, t)
    with pytest.raises(ConfigError, match=r"^t (must|is)"):
        noise_of(Karras(), x, t)
    for schedule in (Cosine(), Karras(), BetaTable()):
        with pytest.raises(ConfigError, match=r"^t (must|is)"):
            noised(schedule, x, x, t)


def test_clipping_recomputes_eps_on_the_way():
    teacher = wobbly_teacher(Cosine(), X0())
    x = torch.full((1, 2), 2.0)
    level, to = (Cosine().at(torch.tensor(t)) for t in (1.0, 0.5))
    x0 = teacher(x, torch.ones(1)).x0.clamp(-0.1, 0.1)
    expected = to.mix(x0, (x - level.alpha * x0) / level.sigma)
    torch.testing.assert_close(sample(teacher, x, (1.0, 0.5), clip=0.1), expected)


def test_an_eps_teacher_from_zero_snr_is_refused():
    teacher = mixture_teacher(RectifiedFlow(), parameterisation=Eps())
    with pytest.raises(ConfigError, match="reparameterise"):
        sample(teacher, torch.ones(2, 2), uniform(4))
    x = sample(teacher, torch.ones(2, 2), uniform(4, start=0.99))
    assert bool(x.isfinite().all())


@pytest.mark.parametrize("times", [(0.0,), (1.0,), (0.5, 1.0), (1.2, 0.0), (1.0, 0.5, 0.5)])
def test_grids_are_checked(times):
    with pytest.raises(ConfigError, match="grid falls"):
        sample(mixture_teacher(Cosine()), torch.ones(2, 2), times)


def test_progress_is_told_of_every_step():
    ledger = Ledger()
    sample(mixture_teacher(Cosine()), torch.ones(1, 2), uniform(3), progress=ledger)
    assert ledger.steps == 3


def test_a_walk_in_two_halves():
    """Sampling may stop anywhere, and DDIM continues from there as if it had not."""
    teacher, noise = mixture_teacher(Cosine()), torch.randn(5, 2, generator=seeded())
    middle = sample(teacher, noise, (1.0, 0.75, 0.5))
    end = sample(teacher, middle, (0.5, 0.25, 0.0))
    torch.testing.assert_close(end, sample(teacher, noise, uniform(4)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", STEPS)
def test_samples_are_the_data(name):
    """32 steps on the mixture: shares and means of the components."""
    data, n = Mixture(), 4000
    x = sample(
        mixture_teacher(Cosine(), data),
        torch.randn(n, 2, generator=seeded()),
        uniform(32),
        STEPS[name],
    )
    mean = torch.tensor(data.weights) @ torch.tensor(data.means)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.04)
    nearest = torch.cdist(x, torch.tensor(data.means)).argmin(1).bincount(minlength=3) / n
    torch.testing.assert_close(nearest, torch.tensor(data.weights), rtol=0, atol=0.04)
