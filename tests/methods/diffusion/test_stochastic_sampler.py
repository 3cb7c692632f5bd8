"""The stochastic sampler: its noise, and the variance of samples of exact and of trained students."""

import itertools

import pytest
import torch
from torch import nn

from halfstep.diffusion.analytic import gaussian_flow, gaussian_teacher
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import Prediction, V, X0
from halfstep.diffusion.samplers import calls, ModelOutput, sample, start, stochastic, TimePoint
from halfstep.diffusion.schedules import arriving, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import karras, uniform
from halfstep.errors import ConfigError
from halfstep.methods.diffusion.progressive import Halve
from halfstep.methods.diffusion.stochastic import HalveJumps
from tests.support.denoisers import Counted, named, SCHEDULES, seeded, wobbly_teacher
from tests.support.students import (
    ExactStudent,
    gaussian_data,
    level_at,
    train,
    zero_student,
)

pytestmark = pytest.mark.usefixtures("float64")
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
SMOOTH = [Cosine(), VPLinear(), RectifiedFlow(), Karras()]


def test_the_walk_of_four_steps():
    """distillation-checks.md 41: where the network is asked, and the coefficients of every step."""
    times_seen, numbers, schedule = [], [], Cosine()

    class Spy(nn.Module):
        """Says x0 = 0, eps = 0, so that noise alone is left."""

        def forward(self, x, t, cond=None):
            times_seen.append(t[0].item())
            return torch.zeros_like(x)

    def one(like, step):
        numbers.append(step)
        return torch.ones_like(like)

    step = stochastic(uniform(4), schedule, one)
    zero = Prediction(torch.zeros(1, 1), torch.zeros(1, 1))
    unit = Prediction(torch.ones(1, 1), torch.zeros(1, 1))
    expected = [
        # k, s, alpha_s / alpha_k, sigma_{s|k}
        (0.5, 0.75, 0.541225759, 0.840877326),
        (0.25, 0.5, 0.765374061, 0.643585694),
        (0.0, 0.25, 0.923870846, 0.382704402),
    ]
    for number, (k, s, shrink, spread) in enumerate(expected, start=1):
        visit = ModelOutput(TimePoint(number - 1, s + 0.25, level_at(schedule, s + 0.25)), zero)
        to = TimePoint(number, s, level_at(schedule, s))
        jumped = arriving(schedule, torch.tensor(k))
        noise = step(torch.ones(1, 1), [visit], to, None).item()
        assert noise == pytest.approx(spread, abs=4e-9)
        mean = step(torch.ones(1, 1), [ModelOutput(visit.point, unit)], to, None).item() - noise
        assert mean / jumped.alpha.item() == pytest.approx(shrink, abs=4e-9)
        assert (shrink * jumped.sigma) ** 2 + noise**2 == pytest.approx(
            level_at(schedule, s).sigma.item() ** 2
        )
    assert numbers == [1, 1, 2, 2, 3, 3]
    numbers.clear()
    spy = Denoiser(Spy(), schedule, X0(), time=NetTime(scale=1.0))
    sample(spy, torch.ones(2, 3), uniform(4), stochastic(uniform(4), schedule, one))
    assert times_seen == [1.0, 0.75, 0.5, 0.25]
    assert numbers == [1, 2, 3]  # the last step draws nothing


@every_schedule
@pytest.mark.parametrize(
    "times", [uniform(5), (1.0, 0.7, 0.45, 0.3, 0.12, 0.0)], ids=["even", "uneven"]
)
def test_noise_keeps_the_marginal(schedule, times):
    """With data at one point and its exact denoiser, every x is alpha x0 + sigma eps again."""
    noises = {}

    def fresh(like, step):
        return noises.setdefault(step, torch.randn(like.shape, generator=seeded(step)))

    teacher = gaussian_teacher(schedule, 0.3, 0.0)
    conds = []

    class ProgressCallback:
        schedule = teacher.schedule

        def __call__(self, x, t, cond=None):
            conds.append((x.clone(), t[0].item()))
            return teacher(x, t, cond)

    z = torch.randn(6, 2, generator=seeded(99))
    x = sample(ProgressCallback(), z, times, stochastic(times, schedule, fresh))
    torch.testing.assert_close(x, torch.full_like(x, 0.3), rtol=0, atol=1e-12)
    eps = start(schedule, z) - level_at(schedule, 1.0).alpha * 0.3
    eps = eps / level_at(schedule, 1.0).sigma
    for number, (x, t) in enumerate(conds[1:], start=1):
        k, s = arriving(schedule, torch.tensor(times[number + 1])), level_at(schedule, t)
        share = (s.alpha * k.sigma / (s.sigma * k.alpha)) ** 2  # SNR_s / SNR_k
        assert 0 <= share < 1
        eps = share.sqrt() * eps + (1 - share).sqrt() * noises[number]
        torch.testing.assert_close(x, s.alpha * 0.3 + s.sigma * eps, rtol=0, atol=1e-11)


def test_noise_of_a_spread_that_is_exact():
    """The spread is right near t = 0 too, where sigma_s and sigma_k differ little, in float32."""
    times = uniform(1024)
    exact, actual = (
        sample(
            wobbly_teacher(Cosine(), V()),
            torch.randn(3, 2, generator=seeded()).to(dtype),
            times,
            stochastic(times, Cosine(), lambda like, step: torch.ones_like(like)),
        )
        for dtype in (torch.float64, torch.float32)
    )
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_calls(steps):
    """N of them, as many as steps."""
    teacher, times = Counted(gaussian_teacher(Cosine())), uniform(steps)
    fresh = lambda like, step: torch.zeros_like(like)  # noqa: E731
    sample(teacher, torch.ones(2, 1), times, stochastic(times, Cosine(), fresh))
    assert teacher.calls == calls("stochastic", steps) == steps


@pytest.mark.parametrize("batch", [0, 1])
@every_schedule
def test_one_step_is_ddim(schedule, batch):
    teacher, z = wobbly_teacher(schedule, V()), torch.randn(batch, 3, generator=seeded())
    step = stochastic((1.0, 0.0), schedule, None)  # draws nothing
    assert torch.equal(sample(teacher, z, (1.0, 0.0), step), sample(teacher, z, (1.0, 0.0)))


def test_another_grid_is_refused():
    teacher, z = gaussian_teacher(Cosine()), torch.ones(1, 1)
    fresh = lambda like, step: torch.zeros_like(like)  # noqa: E731
    for made, sampled in [
        (uniform(4), uniform(8)),
        (uniform(8), uniform(4)),
        (uniform(2), uniform(3)),
    ]:
        with pytest.raises(ConfigError, match="another grid"):
            sample(teacher, z, sampled, stochastic(made, Cosine(), fresh))


class Jumps:
    """The perfect student: from t, it lands where the exact flow of Gaussian data of spread 1/2 lands.

    span    how many steps of the grid it jumps; at the last time there is one alone
    arriving_level  the level it takes itself to be at on arrival
    """

    def __init__(self, times, schedule, span, arriving_level=arriving):
        self.times, self.schedule, self.span, self.arriving_level = (
            times,
            schedule,
            span,
            arriving_level,
        )

    def __call__(self, x, t, cond=None):
        k = self.times.index(t[0].item())
        t_end = self.times[min(k + self.span, len(self.times) - 1)]
        z = gaussian_flow(self.schedule, x, t[0].item(), t_end, 0.0, 0.5)
        level, end = (
            level_at(self.schedule, t[0].item()),
            self.arriving_level(self.schedule, torch.tensor(t_end)),
        )
        r = end.sigma / level.sigma
        x0 = (z - r * x) / (end.alpha - r * level.alpha)
        return Prediction.from_x0(x0, x, level)


def variance(student, times):
    """The exact variance: sampling is linear, so the squares of its basis of noises are summed."""
    basis = torch.eye(len(times) - 1)[..., None]
    step = stochastic(times, student.schedule, lambda like, number: basis[number])
    return sample(student, basis[0], times, step).square().sum().item()


@pytest.mark.parametrize(
    "steps, right, wrong",
    [(2, 0.249971943, 0.202766), (4, 0.249983637, 0.156118), (8, 0.249991300, 0.171787)],
)
def test_variance_of_perfect_students(steps, right, wrong):
    """distillation-checks.md 43: data 0.25; with the student of the other sampler it is far too small.

    Its students arrive at sigma(0) = 4.5e-5 and not at 0, and so does its sampler: hence the 2e-5.
    """
    times = uniform(steps)
    assert variance(Jumps(times, Cosine(), 2), times) == pytest.approx(0.25, abs=1e-8)
    for span, expected in ((2, right), (1, wrong)):
        actual = variance(Jumps(times, Cosine(), span, lambda s, t: s.at(t)), times)
        assert actual == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("schedule", SMOOTH, ids=named)
@pytest.mark.parametrize("steps", [2, 3, 5, 8])
def test_variance_on_every_schedule_and_grid(schedule, steps):
    top = 0.999 if schedule == RectifiedFlow() else 1.0
    for times in (uniform(steps, start=top), karras(steps, schedule, start=top)):
        first = level_at(schedule, times[0])
        noise = 1 if schedule.variance_preserving else first.sigma**2
        wrong = noise / (0.25 * first.alpha**2 + first.sigma**2)  # sampling starts from noise alone
        actual = variance(Jumps(times, schedule, 2), times)
        assert 0.25 * min(1, wrong) - 1e-5 < actual < 0.25 * max(1, wrong) + 1e-5
    uneven = variance(Jumps(uniform(steps, start=top), schedule, 1), uniform(steps, start=top))
    assert uneven < 0.245


@every_schedule
def test_exact_students_jump_as_their_teacher_walks(schedule):
    """16 steps halved to 2: a call of a student of N steps is DDIM of its teacher over 2 / N, to the end."""
    teacher, times = wobbly_teacher(schedule, V()), uniform(16)
    fine, student = times[::2], teacher  # a stochastic teacher of 16 steps jumps 2 / 16
    x = 0.7 * torch.randn(3, 2, 5, generator=seeded())
    while len(times) > 3:
        student, times = ExactStudent(student, times, (2, 4)), times[::2]
        n = len(times) - 1
        for k in range(n):
            t, to = times[k], times[min(k + 2, n)]
            pred = student(x, torch.full((3,), t))
            landed = arriving(schedule, torch.tensor(to)).mix(pred.x0, pred.eps)
            path = tuple(s for s in fine if to <= s <= t)
            assert len(path) == 1 + (16 // n if k + 2 <= n else 8 // n)
            z = x if schedule.variance_preserving else x / level_at(schedule, t).sigma
            torch.testing.assert_close(landed, sample(teacher, z, path), rtol=1e-12, atol=1e-12)


@every_schedule
@pytest.mark.parametrize("start_", [4, 12, 16])
def test_exact_students_sample_what_their_teacher_would(schedule, start_):
    """The whole sampler, with the teacher's own steps in place of each jump and the same noises."""
    teacher, times = wobbly_teacher(schedule, V()), uniform(start_)
    fine, student = times[::2], teacher

    def fresh(like, step):
        return torch.randn(like.shape, generator=seeded(step))

    z = torch.randn(4, 3, generator=seeded(77))
    while len(times) > 3 and len(times) % 2:
        student, times = ExactStudent(student, times, (2, 4)), times[::2]
        actual = sample(student, z, times, stochastic(times, schedule, fresh))
        x = start(schedule, z)
        for number, (t, s) in enumerate(itertools.pairwise(times), start=1):
            k = times[min(number + 1, len(times) - 1)]
            unit = x if schedule.variance_preserving else x / level_at(schedule, t).sigma
            x = sample(teacher, unit, tuple(u for u in fine if k <= u <= t))
            if number < len(times) - 1:
                far, near = arriving(schedule, torch.tensor(k)), level_at(schedule, s)
                var = near.sigma**2 * -torch.expm1(near.logsnr - far.logsnr)
                x = near.alpha / far.alpha * x + var.sqrt() * fresh(x, number)
        torch.testing.assert_close(actual, x, rtol=1e-11, atol=1e-12)


def test_trained_students_have_the_variance_of_exact_ones():
    """16 to 4 steps, an affine map a time; and students of DDIM, trained beside them, far too little."""
    teacher, times = gaussian_teacher(Cosine()).freeze(), uniform(16)
    exact = jumper = walker = teacher

    def trained(objective):
        return train(zero_student(times[::2], Cosine()), objective, gaussian_data, 300, 0.05)

    while len(times) > 5:
        exact = ExactStudent(exact, times, (2, 4))
        jumper, walker = trained(HalveJumps(jumper, times)), trained(Halve(walker, times))
        times = times[::2]

    def spread(student):
        basis = torch.cat([torch.zeros(1, 4), torch.eye(4)])
        step = stochastic(times, Cosine(), lambda like, number: basis[:, number : number + 1])
        x = sample(student, basis[:, :1], times, step)
        return (x[1:] - x[0]).square().sum().item()

    assert spread(jumper) == pytest.approx(spread(exact), abs=3e-3)
    assert spread(walker) < spread(exact) - 0.02
