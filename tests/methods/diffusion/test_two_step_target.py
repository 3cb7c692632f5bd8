"""The two-step target: the official code's numbers, and the identity for every teacher."""

import pytest
import torch
from torch import nn

from halfstep.diffusion.denoiser import Denoiser, level_of
from halfstep.diffusion.prediction import Eps, Prediction, V, X0
from halfstep.diffusion.schedules import (
    arriving,
    BetaTable,
    Cosine,
    RectifiedFlow,
)
from halfstep.diffusion.time_grids import karras, uniform
from halfstep.methods import (
    two_step_target,
)
from halfstep.methods.diffusion.two_step_target import shares
from tests.support.denoisers import Counted, named, READS, SCHEDULES, seeded, wobbly_teacher
from tests.support.students import Constants

pytestmark = pytest.mark.usefixtures("float64")
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
every_reading = pytest.mark.parametrize("reads", READS, ids=named)


def times_of(*values):
    return (torch.tensor([v], dtype=torch.float64) for v in values)


TARGETS = [
    # N, i, z_t, x1, x2, z_mid, z_s, x~, eps~, v~
    (4, 2, 0.5, 0.3, -0.2, 0.513335184, 0.389634695, 0.016773906, 0.534252764, 0.188963963),
    (4, 3, 0.5, 0.3, -0.2, 0.548913076, 0.477282979, 0.040107294, 0.499998180, -0.040084594),
    (4, 1, 0.5, 0.3, -0.2, 0.475619243, 0.257399161, -0.024417106, 0.731523887, 0.534531002),
    (4, 0, 0.5, 0.3, -0.2, 0.407849019, -0.199859464, -0.2, 1.789303079, 1.729625829),
    (2, 1, 0.7, 0.1, 0.25, 0.684975838, 0.627811429, 0.187867966, 0.699991472, -0.187836186),
    (1, 0, -1.2, 0.1, 0.25, -0.777820670, 0.249938710, 0.25, -1.200011351, -0.250054480),
    (512, 0, 0.5, 0.3, 0.299, 0.401458797, 0.301945396, 0.299, 64.564691056, 64.563447338),
]


FORMULA_ALONE = {(4, 0): -0.199940692, (1, 0): 0.249993190, (512, 0): 0.299014374}


@pytest.mark.parametrize("case", TARGETS, ids=lambda c: f"{c[0]}-{c[1]}")
def test_target_of_the_official_code(case):
    """distillation-checks.md 15 to 23, the edge i = 0 included."""
    n, i, z, x1, x2, z_mid, z_s, x0, eps, v = case
    t, mid, end = times_of((i + 1) / n, (i + 0.5) / n, i / n)
    x_t = torch.tensor([[z]])
    pred = two_step_target(Denoiser(Constants(x1, x2), Cosine(), X0()), x_t, t, mid, end)
    level = level_of(Cosine(), t, x_t)
    assert pred.x0.item() == pytest.approx(x0, rel=1e-7, abs=6e-10)
    assert pred.eps.item() == pytest.approx(eps, rel=1e-10, abs=6e-10)
    assert V().encode(pred, level).item() == pytest.approx(v, rel=1e-10, abs=6e-10)
    # The path between, by the conversions alone: what the table's z are.
    level_t, middle, level_s = (Cosine().at(s) for s in (t, mid, end))
    first = Prediction.from_x0(torch.tensor([[x1]]), x_t, level_t)
    x_mid = middle.mix(first.x0, first.eps)
    second = Prediction.from_x0(torch.tensor([[x2]]), x_mid, middle)
    assert x_mid.item() == pytest.approx(z_mid, abs=6e-10)
    x_end = level_s.mix(second.x0, second.eps)
    assert x_end.item() == pytest.approx(z_s, abs=6e-10)
    r = level_s.sigma / level_t.sigma
    formula = (x_end - r * x_t) / (level_s.alpha - r * level_t.alpha)
    assert formula.item() == pytest.approx(FORMULA_ALONE.get((n, i), x0), rel=1e-7, abs=6e-10)


def test_denominator_of_the_official_code():
    """distillation-checks.md 24."""
    level_t, level_s = (Cosine().at(torch.tensor(t)) for t in (0.75, 0.5))
    value = level_s.alpha - level_s.sigma / level_t.sigma * level_t.alpha
    assert value.item() == pytest.approx(0.414194757, abs=6e-10)
    assert value.item() == pytest.approx(
        (torch.tensor(Cosine().a / 4).sin() / level_t.sigma).item(), rel=1e-12
    )


@pytest.mark.parametrize("n", [2, 4, 37, 512])
def test_target_in_v_form(n):
    """distillation-checks.md 25: v~ = v1 / 2 + sec(d) v2 / 2 - tan(d) x / 2, d = a / 2N, for i > 0."""
    teacher, d = wobbly_teacher(Cosine(), V()), torch.tensor(Cosine().a / (2 * n))
    t = torch.arange(1, n + 1) / n
    mid, end = t - 0.5 / n, t - 1 / n
    x = torch.randn(n, 3, 5, generator=seeded())
    pred = two_step_target(teacher, x, t, mid, end)
    actual = V().encode(pred, level_of(Cosine(), t, x))
    first = teacher(x, t)
    x_mid = level_of(Cosine(), mid, x).mix(first.x0, first.eps)
    second = teacher(x_mid, mid)
    v1 = V().encode(first, level_of(Cosine(), t, x))
    v2 = V().encode(second, level_of(Cosine(), mid, x))
    expected = v1 / 2 + v2 / d.cos() / 2 - d.tan() * x / 2
    torch.testing.assert_close(actual[1:], expected[1:], rtol=1e-10, atol=1e-10)


@every_schedule
@pytest.mark.parametrize("reads", [V(), X0()], ids=named)
def test_float32_target_at_4096_steps(schedule, reads):
    """The convex combination cancels nothing: below 1e-6 where the difference form has 1e-4."""
    if isinstance(schedule, BetaTable):
        schedule = BetaTable("scaled_linear", levels=8192)
    n, generator = 4096, seeded()
    i = torch.randint(n, (500,), generator=generator)
    t, mid, end = ((i + k) / n for k in (1.0, 0.5, 0.0))
    x1, x2 = torch.randn(2, 500, 7, generator=generator).tanh()
    x = level_of(schedule, t, x1).mix(x1, torch.randn(500, 7, generator=generator))

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.answers = [x1, x2]

        def forward(self, z, time, cond=None):
            return self.answers.pop(0).to(z.dtype)

    def target(dtype):
        return two_step_target(Denoiser(Fixed(), schedule, reads), x.to(dtype), t, mid, end)

    exact, actual = target(torch.float64), target(torch.float32)
    assert actual.x0.dtype == torch.float32
    scale = exact.x0.abs().max(1, keepdim=True).values.clamp(min=1)
    assert ((actual.x0.double() - exact.x0) / scale).abs().max() < 1e-6
    level = level_of(schedule, t, x)
    back = level.mix(actual.x0.double(), actual.eps.double())
    assert ((back - x) / x.abs().clamp(min=1)).abs().max() < 2e-6


def grids(schedule, n, top):
    """Grids of 2n steps, `times[0] == top`: uniform, Karras, log-SNR and random."""
    yield tuple(top * t for t in uniform(2 * n))
    if not isinstance(schedule, BetaTable):
        end = 1e-3
        share = torch.linspace(0, 1, 2 * n)
        ends = schedule.at(torch.tensor([min(top, 0.999), end])).logsnr
        spaced = schedule.time(ends[0] + share * (ends[1] - ends[0])).tolist()
        yield (*spaced, 0.0)
        yield karras(2 * n, schedule, start=min(top, 0.999))
        inner = torch.rand(2 * n - 1, generator=seeded(n)).clamp(1e-3, 0.995).sort().values
        yield (top, *(top * inner.flip(0)).tolist(), 0.0)


@every_schedule
@every_reading
@pytest.mark.parametrize("n", [1, 2, 3, 8, 512])
def test_one_student_step_equals_two_teacher_steps(schedule, reads, n):
    """Algorithm 2's target is right by construction, up to round-off, for any teacher."""
    teacher = wobbly_teacher(schedule, reads)
    # An eps output says next to nothing about x0 near t = 1, where round-off is divided by alpha.
    top = 0.98 if isinstance(reads, Eps) else 1.0
    for times in grids(schedule, n, top):
        points = torch.tensor(times)
        t, t_mid, t_end = points[0:-1:2], points[1::2], points[2::2]
        level_t, mid = (level_of(schedule, s, torch.empty(n, 1, 1, 1)) for s in (t, t_mid))
        end = arriving(schedule, t_end.reshape(-1, 1, 1, 1))
        x0, eps = torch.randn(2, n, 2, 4, 3, generator=seeded())
        x = level_t.mix(x0, eps)

        actual = two_step_target(teacher, x, t, t_mid, t_end)

        first = teacher(x, t)
        x_mid = mid.mix(first.x0, first.eps)
        second = teacher(x_mid, t_mid)
        two = end.mix(second.x0, second.eps)
        size = 1 + level_t.sigma * (first.eps.abs() + second.eps.abs())
        assert (((end.mix(actual.x0, actual.eps) - two) / size).abs() < 1e-11).all()
        assert (((level_t.mix(actual.x0, actual.eps) - x) / size).abs() < 1e-11).all()


@every_schedule
def test_shares_are_shares(schedule):
    """Convex: in [0, 1], the second step's share of x0 1 on arrival at data, that of eps 0 at alpha 0."""
    times = torch.tensor(uniform(64))
    t, mid, end = times[0:-1:2], times[1::2], times[2::2]
    x_share, eps_share = shares(schedule, t, mid, end)
    for share in (x_share, eps_share):
        assert bool(((share >= 0) & (share <= 1)).all())
    assert x_share[-1].item() == 1
    assert schedule != RectifiedFlow() or eps_share[0].item() == 0
    rho = [level.alpha / level.sigma for level in map(schedule.at, (t, mid, end))]
    expected = (rho[2] - rho[1]) / (rho[2] - rho[0])
    torch.testing.assert_close(x_share[:-1], expected[:-1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (4, 2, 5, 4), (3, 3, 3, 3), (1, 7), (6, 2)])
def test_samples_do_not_mix(shape):
    """One sample alone has the target it has in a batch, also where the batch is as wide as the image."""
    teacher, b = wobbly_teacher(Cosine(), V()), shape[0]
    x, t = torch.randn(shape, generator=seeded()), torch.linspace(0.3, 1.0, b)
    whole = two_step_target(teacher, x, t, t - 0.1, t - 0.25)
    assert whole.x0.shape == whole.eps.shape == shape
    for k in range(b):
        r = slice(k, k + 1)
        alone = two_step_target(teacher, x[r], t[r], t[r] - 0.1, t[r] - 0.25)
        torch.testing.assert_close(alone.x0[0], whole.x0[k], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone.eps[0], whole.eps[k], rtol=1e-12, atol=1e-12)


def test_the_teacher_is_called_twice_and_never_differentiated():
    teacher, t = Counted(wobbly_teacher(Cosine(), V())), torch.tensor([0.5, 1.0])
    pred = two_step_target(teacher, torch.ones(2, 3), t, t - 0.1, t - 0.2)
    assert teacher.calls == 2
    assert not pred.x0.requires_grad and not pred.eps.requires_grad


def test_targets_are_not_clipped():
    t, mid, end = times_of(0.5, 0.375, 0.25)
    teacher = Denoiser(Constants(3.0, 4.0), Cosine(), X0())
    assert 3 < two_step_target(teacher, torch.ones(1, 1), t, mid, end).x0.item() < 4
