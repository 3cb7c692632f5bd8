"""Progressive distillation: the official targets, the identity for every teacher, the invariant."""

import re

import pytest
import torch
from torch import nn

from halfstep.batch import Batch, Cond
from halfstep.diffusion.analytic import gaussian_flow, gaussian_teacher, Mixture, mixture_teacher
from halfstep.diffusion.denoiser import Denoiser, level_of, NetTime
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.loss_weighting import constant, snr_plus_one, truncated_snr
from halfstep.diffusion.prediction import Eps, Prediction, V, X0
from halfstep.diffusion.samplers import sample, start
from halfstep.diffusion.schedules import (
    arriving,
    BetaTable,
    Cosine,
    Karras,
    Level,
    RectifiedFlow,
    VPLinear,
)
from halfstep.diffusion.time_grids import grid, karras, uniform
from halfstep.errors import ConfigError
from halfstep.methods import (
    DenoiserOnly,
    METHODS,
    Progressive,
    Reparameterise,
    Stochastic,
    two_step_target,
)
from halfstep.methods.diffusion.progressive import forgiven, Halve, on_grid, shares
from halfstep.rng import Draw
from tests.support.denoisers import Counted, named, READS, SCHEDULES, seeded, Wobbly, wobbly_teacher

pytestmark = pytest.mark.usefixtures("float64")
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
every_reading = pytest.mark.parametrize("reads", READS, ids=named)


def times_of(*values):
    return (torch.tensor([v], dtype=torch.float64) for v in values)


# --- the target of the official code ------------------------------------------------------------------


class Constants(nn.Module):
    """x0 is one number at the first time and another at the second."""

    def __init__(self, first, second):
        super().__init__()
        self.answers = [first, second]

    def forward(self, x, t, cond=None):
        return torch.full_like(x, self.answers.pop(0))


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
    here, middle, there = (Cosine().at(s) for s in (t, mid, end))
    first = Prediction.from_x0(torch.tensor([[x1]]), x_t, here)
    x_mid = middle.mix(first.x0, first.eps)
    second = Prediction.from_x0(torch.tensor([[x2]]), x_mid, middle)
    assert x_mid.item() == pytest.approx(z_mid, abs=6e-10)
    x_end = there.mix(second.x0, second.eps)
    assert x_end.item() == pytest.approx(z_s, abs=6e-10)
    r = there.sigma / here.sigma
    formula = (x_end - r * x_t) / (there.alpha - r * here.alpha)
    assert formula.item() == pytest.approx(FORMULA_ALONE.get((n, i), x0), rel=1e-7, abs=6e-10)


def test_denominator_of_the_official_code():
    """distillation-checks.md 24."""
    here, there = (Cosine().at(torch.tensor(t)) for t in (0.75, 0.5))
    value = there.alpha - there.sigma / here.sigma * here.alpha
    assert value.item() == pytest.approx(0.414194757, abs=6e-10)
    assert value.item() == pytest.approx(
        (torch.tensor(Cosine().a / 4).sin() / here.sigma).item(), rel=1e-12
    )


@pytest.mark.parametrize("n", [2, 4, 37, 512])
def test_target_in_v_form(n):
    """distillation-checks.md 25: v~ = v1 / 2 + sec(d) v2 / 2 - tan(d) x / 2, d = a / 2N, for i > 0."""
    teacher, d = wobbly_teacher(Cosine(), V()), torch.tensor(Cosine().a / (2 * n))
    t = torch.arange(1, n + 1) / n
    mid, end = t - 0.5 / n, t - 1 / n
    x = torch.randn(n, 3, 5, generator=seeded())
    pred = two_step_target(teacher, x, t, mid, end)
    got = V().encode(pred, level_of(Cosine(), t, x))
    first = teacher(x, t)
    x_mid = level_of(Cosine(), mid, x).mix(first.x0, first.eps)
    second = teacher(x_mid, mid)
    v1 = V().encode(first, level_of(Cosine(), t, x))
    v2 = V().encode(second, level_of(Cosine(), mid, x))
    wanted = v1 / 2 + v2 / d.cos() / 2 - d.tan() * x / 2
    torch.testing.assert_close(got[1:], wanted[1:], rtol=1e-10, atol=1e-10)


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

    exact, got = target(torch.float64), target(torch.float32)
    assert got.x0.dtype == torch.float32
    scale = exact.x0.abs().max(1, keepdim=True).values.clamp(min=1)
    assert ((got.x0.double() - exact.x0) / scale).abs().max() < 1e-6
    level = level_of(schedule, t, x)
    back = level.mix(got.x0.double(), got.eps.double())
    assert ((back - x) / x.abs().clamp(min=1)).abs().max() < 2e-6


# --- the identity, for every teacher ------------------------------------------------------------------


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
        here, mid = (level_of(schedule, s, torch.empty(n, 1, 1, 1)) for s in (t, t_mid))
        end = arriving(schedule, t_end.reshape(-1, 1, 1, 1))
        x0, eps = torch.randn(2, n, 2, 4, 3, generator=seeded())
        x = here.mix(x0, eps)

        got = two_step_target(teacher, x, t, t_mid, t_end)

        first = teacher(x, t)
        x_mid = mid.mix(first.x0, first.eps)
        second = teacher(x_mid, t_mid)
        two = end.mix(second.x0, second.eps)
        size = 1 + here.sigma * (first.eps.abs() + second.eps.abs())
        assert (((end.mix(got.x0, got.eps) - two) / size).abs() < 1e-11).all()
        assert (((here.mix(got.x0, got.eps) - x) / size).abs() < 1e-11).all()


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
    wanted = (rho[2] - rho[1]) / (rho[2] - rho[0])
    torch.testing.assert_close(x_share[:-1], wanted[:-1], rtol=1e-9, atol=1e-12)


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


# --- the invariant: exact students sample what the teacher samples ------------------------------------


class Composed:
    """The student that is exactly its teacher's two-step target, whatever the teacher is."""

    def __init__(self, teacher, times, clip=None):
        self.teacher, self.times, self.schedule, self.clip = teacher, times, teacher.schedule, clip

    def __call__(self, x, t, cond=None):
        k = self.times.index(t[0].item())
        rest = (torch.full_like(t, self.times[k + j]) for j in (1, 2))
        return two_step_target(self.teacher, x, t, *rest, cond, clip=self.clip)


@every_schedule
@every_reading
def test_exact_students_of_any_teacher_sample_what_it_samples(schedule, reads):
    """16 steps halved to 1, with a nonlinear network as teacher."""
    teacher, top = wobbly_teacher(schedule, reads), 0.9 if isinstance(reads, Eps) else 1.0
    times, noise = tuple(top * t for t in uniform(16)), torch.randn(3, 2, 5, generator=seeded())
    wanted, student = sample(teacher, noise, times), teacher
    while len(times) > 2:
        student, times = Composed(student, times), times[::2]
        torch.testing.assert_close(sample(student, noise, times), wanted, rtol=1e-11, atol=1e-11)


@every_schedule
def test_exact_students_of_clipped_targets_sample_what_the_clipping_sampler_does(schedule):
    """Without clipping anything themselves; the bound is such that the teacher meets it everywhere."""
    teacher, times, bound = wobbly_teacher(schedule, X0()), uniform(16), 0.3
    noise = torch.randn(3, 2, 5, generator=seeded())
    wanted, student = sample(teacher, noise, times, clip=bound), teacher
    assert (wanted - sample(teacher, noise, times).clamp(-bound, bound)).abs().max() > 1e-3
    while len(times) > 2:
        student, times = Composed(student, times, bound), times[::2]
        torch.testing.assert_close(sample(student, noise, times), wanted, rtol=1e-11, atol=1e-11)


def test_halving_learns_clipped_targets_where_it_is_told_to():
    teacher, bound = wobbly_teacher(Cosine(), V()), 0.3
    batch, losses = Batch(torch.randn(5, 2, 3, generator=seeded())), {}
    for target_clip in (0.0, bound):
        (stage,) = Progressive(start=4, stop=2, target_clip=target_clip).stages(
            DenoiserOnly(teacher)
        )
        exact = Exactly(teacher, uniform(4), bound)
        losses[target_clip] = stage.objective(exact, batch, Draw.all(seeded(1), 5))
    assert losses[bound].max() < 1e-20 < 1e-3 < losses[0.0].max()


def test_errors_that_a_clipping_sampler_never_sees_cost_nothing():
    """Pixel by pixel: target on the bound or within it, guess within, on or behind it."""
    target, guess = (0.5, -0.5, 0.5, -0.5, 0.2), (0.9, -0.9, -0.9, -0.2, 0.9)
    x_t, level = torch.full((1, 5), 0.1), Level(torch.tensor(0.6), torch.tensor(0.8))
    guess, target = (Prediction.from_x0(torch.tensor([x]), x_t, level) for x in (guess, target))
    guess.x0.requires_grad_()
    found = forgiven(guess, target, 0.5)
    missed = (found.x0 - target.x0)[0].tolist()
    assert missed == pytest.approx([0, 0, -1.4, 0.3, 0.7])
    assert (found.eps - target.eps)[0].tolist() == pytest.approx([-0.75 * miss for miss in missed])
    found.x0.sum().backward()
    assert guess.x0.grad[0].tolist() == [0, 0, 1, 1, 1]  # a guess on the wrong side can come back


@pytest.mark.parametrize("method", [Progressive, Stochastic], ids=named)
def test_a_copy_of_a_teacher_behind_the_bound_has_nothing_to_learn(method):
    """The first steps of a halving: a fresh student is not clipped, its teacher's steps are."""
    teacher, loss = Denoiser(Behind(), Cosine(), X0()), {}
    batch = Batch(torch.randn(5, 2, 3, generator=seeded()))
    for target_clip in (0.3, 0.6):
        (stage,) = method(start=8, stop=4, target_clip=target_clip).stages(DenoiserOnly(teacher))
        loss[target_clip] = stage.objective(stage.student, batch, Draw.all(seeded(1), 5))
    assert loss[0.3].max() == 0 < 5e-5 < loss[0.6].max()


class Behind(nn.Module):
    """x0 is near .5 or near -.5, on the side of x."""

    def forward(self, x, t, cond=None):
        return 0.5 * x.sign() + 0.1 * x.sin()


class Exactly(Composed):
    """The same where every sample has a time of its own."""

    def __call__(self, x, t, cond=None):
        rows = [super(Exactly, self).__call__(x[k : k + 1], t[k : k + 1]) for k in range(len(x))]
        return Prediction(*(torch.cat([getattr(r, of) for r in rows]) for of in ("x0", "eps")))


@pytest.mark.parametrize("target_clip", [-1.0, float("inf"), float("nan")])
def test_a_clipping_that_is_none_is_refused(target_clip):
    with pytest.raises(ConfigError, match="target_clip"):
        Progressive(start=4, stop=1, target_clip=target_clip)


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
    """The mistake of others: the student is taught the teacher's x0 at the mid point."""
    first = teacher(x, t)
    return teacher(level_of(teacher.schedule, mid, x).mix(first.x0, first.eps), mid).x0


def without_last_step_rule(teacher, x, t, mid, end):
    """Section 1.4's formula alone, with sigma(0) = 4.5e-5 at the end."""
    here, middle, there = (level_of(teacher.schedule, s, x) for s in (t, mid, end))
    first = teacher(x, t)
    x_mid = middle.mix(first.x0, first.eps)
    second = teacher(x_mid, mid)
    r = there.sigma / here.sigma
    return (there.mix(second.x0, second.eps) - r * x) / (there.alpha - r * here.alpha)


def walk_down(teacher, times, noise, target):
    """{steps: what the student of so many steps samples}, all the way to one step."""
    samples, student = {}, teacher
    while len(times) > 2:
        student, times = halved(student, times, target), times[::2]
        samples[len(times) - 1] = sample(student, noise, times)
    return samples


def grid_of(name, steps, schedule):
    if name == "random":
        inner = torch.rand(steps - 1, generator=seeded(), dtype=torch.float64)
        return (1.0, *inner.sort(descending=True).values.tolist(), 0.0)
    # A straight schedule has no log-SNR at t = 1 to space steps in.
    if schedule == RectifiedFlow() and name == "karras":
        return karras(steps, schedule, start=0.999)
    return grid(name, steps, schedule)


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), VPLinear(), Karras()], ids=named)
@pytest.mark.parametrize("name", ["uniform", "karras", "random"])
@pytest.mark.parametrize("steps", [16, 1024])
def test_invariant(schedule, name, steps):
    """distillation-checks.md 38: halved to one step, exact students sample what the teacher samples."""
    teacher, times = gaussian_teacher(schedule), grid_of(name, steps, schedule)
    noise = torch.randn(7, 1, generator=seeded())
    wanted = sample(teacher, noise, times)
    samples = walk_down(teacher, times, noise, right)
    assert list(samples) == [steps // 2**k for k in range(1, steps.bit_length())]
    for got in samples.values():
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    # and the same check rejects the wrong target
    for n, got in walk_down(teacher, times, noise, mid_point).items():
        assert (got - wanted).abs().max() > 1e-5, n


@pytest.mark.parametrize("steps, wanted", [(1024, 0.499247552), (16, 0.453926567)])
def test_invariant_of_the_official_code(steps, wanted):
    teacher, one = gaussian_teacher(Cosine(), 0.0, 0.5), torch.ones(1, 1)
    for got in walk_down(teacher, uniform(steps), one, right).values():
        assert got.item() == pytest.approx(wanted, abs=6e-10)


def test_without_the_last_step_rule():
    """distillation-checks.md 38: what an implementation without the rule at i = 0 would give."""
    teacher, one = gaussian_teacher(Cosine(), 0.0, 0.5), torch.ones(1, 1)
    got = walk_down(teacher, uniform(16), one, without_last_step_rule)
    wanted = {8: 0.453922692, 4: 0.453915782, 2: 0.453905230, 1: 0.453889291}
    assert {n: x.item() for n, x in got.items()} == pytest.approx(wanted, abs=6e-10)


def test_wrong_target_detector():
    """distillation-checks.md 39: the mid-point mistake is seen, with the numbers it is known by."""
    teacher, one = gaussian_teacher(Cosine(), 0.0, 0.5), torch.ones(1, 1)
    got = walk_down(teacher, uniform(1024), one, mid_point)
    wanted = {512: 0.499974952, 64: 0.509288, 8: 0.558574, 4: 0.588851, 1: 0.615418}
    for n, value in wanted.items():
        assert got[n].item() == pytest.approx(value, abs=6e-7)
        assert abs(got[n].item() - 0.499247552) > 1e-4


# --- the objective ------------------------------------------------------------------------------------


def draw_of(seed, batch):
    return Draw.all(seeded(seed), batch)


@pytest.mark.parametrize("weighting", [constant, truncated_snr, snr_plus_one])
@pytest.mark.parametrize("times", [uniform(8), (0.93, 0.8, 0.5, 0.44, 0.2, 0.1, 0.0)], ids=len)
def test_halve_by_hand(weighting, times):
    """Times, noise, Algorithm 2's formula as printed, and the weight: every number of the loss."""
    shape, b = (5, 3, 4, 6), 5
    teacher, student = wobbly_teacher(Cosine(), V()), wobbly_teacher(Cosine(), X0())
    x0 = torch.rand(shape, generator=seeded(1)) * 2 - 1
    loss = Halve(teacher, times, weighting)(student, Batch(x0), draw_of(9, b))

    draw = draw_of(9, b)
    n = draw.integers(len(times) // 2)
    z = draw.normal(x0)
    points = torch.tensor(times)
    t, mid, end = points[2 * n], points[2 * n + 1], points[2 * n + 2]
    level = level_of(Cosine(), t, x0)
    x_t = level.alpha * x0 + level.sigma * z
    wanted = without_last_step_rule(teacher, x_t, t, mid, end)
    wanted = torch.where(
        (end == 0).reshape(-1, 1, 1, 1), mid_point(teacher, x_t, t, mid, end), wanted
    )
    x_err = (student(x_t, t).x0 - wanted).square().mean((1, 2, 3))
    snr = Cosine().at(t).logsnr.exp()
    weight = {constant: 1, truncated_snr: snr.clamp(min=1), snr_plus_one: snr + 1}[weighting]
    assert loss.shape == (b,)
    torch.testing.assert_close(loss, weight * x_err, rtol=1e-9, atol=1e-12)


def test_halve_draws_every_time_of_the_student_and_no_other():
    """distillation-checks.md 50: t in {1/N, ..., 1}, never 0, all equally often."""
    asked = []

    class Spy(Wobbly):
        def forward(self, x, t, cond=None):
            asked.append(t)
            return super().forward(x, t)

    teacher = Denoiser(Spy(), Cosine(), V(), time=NetTime(scale=1.0))
    student = wobbly_teacher(Cosine(), V())
    n = 4000
    Halve(teacher, uniform(8))(student, Batch(torch.zeros(n, 1)), draw_of(0, n))
    first, second = asked
    values, counts = first.unique(return_counts=True)
    assert values.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert bool(((counts / n - 0.25).abs() < 4 * (0.1875 / n) ** 0.5).all())
    torch.testing.assert_close(second, first - 0.125, rtol=0, atol=0)


def test_halve_of_a_teacher_that_is_its_own_student_is_zero_only_for_exact_students():
    times = uniform(4)
    teacher = gaussian_teacher(Cosine())
    x0 = 0.3 + 0.5 * torch.randn(64, 1, generator=seeded())
    exact = halved(teacher, times, right)
    loss = Halve(teacher, times)(exact, Batch(x0), draw_of(1, 64))
    assert loss.max() < 1e-20
    assert Halve(teacher, times)(teacher, Batch(x0), draw_of(1, 64)).mean() > 1e-4


def test_gradient_reaches_the_student_alone():
    teacher, student = wobbly_teacher(Cosine(), V()), wobbly_teacher(Cosine(), V())
    loss = Halve(teacher, uniform(4))(student, Batch(torch.ones(5, 3)), draw_of(0, 5))
    loss.mean().backward()
    assert teacher.net.gain.grad is None
    h, gain = 1e-6, student.net.gain
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            gain += sign * h
            ends.append(
                Halve(teacher, uniform(4))(student, Batch(torch.ones(5, 3)), draw_of(0, 5)).mean()
            )
            gain -= sign * h
    slope = (ends[0] - ends[1]) / (2 * h)
    torch.testing.assert_close(gain.grad, slope, rtol=1e-6, atol=1e-9)


def test_micro_batches_have_the_losses_of_the_batch():
    teacher, student = wobbly_teacher(Cosine(), V()), wobbly_teacher(Cosine(), X0())
    batch = Batch(torch.randn(5, 3, 4, generator=seeded()))
    halve = Halve(teacher, uniform(8))
    whole = halve(student, batch, draw_of(4, 5))
    for a, b in ((0, 2), (2, 5)):
        part = halve(student, batch[a:b], Draw(seeded(4), 5, slice(a, b)))
        torch.testing.assert_close(part, whole[a:b], rtol=1e-12, atol=0)


def test_teacher_and_student_see_the_same_condition():
    seen = []

    class Spy(Wobbly):
        def forward(self, x, t, cond=None):
            seen.append(cond)
            return super().forward(x, t)

    spies = [Denoiser(Spy(), Cosine(), V()) for _ in range(2)]
    cond = Cond(label=torch.tensor([3, 1]))
    Halve(spies[0], uniform(2))(spies[1], Batch(torch.ones(2, 3), cond), draw_of(0, 2))
    assert len(seen) == 3 and all(c is cond for c in seen)


def test_forwards():
    """Two teacher forwards, and a forward and backward, which cost three."""
    assert Halve(wobbly_teacher(Cosine(), V()), uniform(2)).forwards == 5


def test_on_grid():
    t, other = on_grid((1.0, 0.4, 0.0), torch.tensor([0, 2]), torch.tensor([1, 1]))
    assert t.tolist() == [1.0, 0.0] and other.tolist() == [0.4, 0.4]
    assert t.dtype == torch.float64


# --- trained students whose optimum is known ----------------------------------------------------------


def zero_student(times, schedule):
    zeros = torch.zeros(len(times) - 1)
    net = Affine(times[:-1], zeros, zeros.clone())
    return Denoiser(net, schedule, X0(), time=NetTime(scale=1.0))


def train(student, objective, draw_data, updates, rate):
    """Adam with the rate to 0: all the engine that a proof needs."""
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


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), VPLinear(), Karras()], ids=named)
def test_student_reaches_the_closed_form(schedule):
    """The best 4-step student of an analytic teacher is known: it equals 8 teacher steps."""
    teacher = gaussian_teacher(schedule).freeze()
    student = zero_student(uniform(4), schedule)
    noise = torch.randn(512, 2, generator=seeded(7))
    wanted = sample(teacher, noise, uniform(8))
    assert (sample(student, noise, uniform(4)) - wanted).abs().max() > 0.1
    if schedule == Karras():  # x is 80 wide at t = 1: start where the answer is, up to a nudge
        exact = halved(teacher, uniform(8), right)
        with torch.no_grad():
            student.net.a.copy_(exact.net.a * 1.01)
            student.net.b.copy_(exact.net.b + 0.02)
        assert (sample(student, noise, uniform(4)) - wanted).abs().max() > 0.01
        train(student, Halve(teacher, uniform(8), constant), gaussian_data, 600, 2e-3)
    else:
        train(student, Halve(teacher, uniform(8)), gaussian_data, 500, 0.05)
    torch.testing.assert_close(sample(student, noise, uniform(4)), wanted, rtol=0, atol=1e-3)


def test_sixteen_steps_to_one():
    """The whole method: each stage's student, trained, is the next one's teacher."""
    teacher = zero_student(uniform(16), Cosine())
    exact = halved(gaussian_teacher(Cosine()), uniform(32), right)
    teacher.load_state_dict(exact.state_dict())
    noise = torch.randn(300, 2, generator=seeded(7))
    wanted = sample(teacher, noise, uniform(16))
    untrained = sample(teacher, noise, uniform(1))
    assert (untrained - wanted).abs().max() > 0.3
    names = []
    for stage in Progressive(start=16, stop=1, updates=(250,)).stages(DenoiserOnly(teacher)):
        train(stage.student, stage.objective, gaussian_data, stage.updates, 0.05)
        got = sample(stage.student, noise, stage.times)
        torch.testing.assert_close(got, wanted, rtol=0, atol=5e-3)
        names.append(stage.name)
    assert names == ["0008-steps", "0004-steps", "0002-steps", "0001-steps"]


# --- the method: stages -------------------------------------------------------------------------------


def test_each_stage_teaches_the_next():
    teacher, seen = wobbly_teacher(Cosine(), V()), []
    for stage in Progressive(start=16, stop=1, updates=(10,)).stages(DenoiserOnly(teacher)):
        assert stage.objective.teacher is teacher and stage.student is not teacher
        assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training
        assert all(p.requires_grad for p in stage.student.parameters()) and stage.student.training
        assert torch.equal(stage.student.net.gain, teacher.net.gain)
        assert stage.times == stage.objective.times[::2]
        assert stage.objective.weighting is truncated_snr
        with torch.no_grad():
            stage.student.net.gain += 1
        teacher = stage.student
        seen.append((stage.name, len(stage.times) - 1, stage.updates))
    assert seen == [
        ("0008-steps", 8, 10),
        ("0004-steps", 4, 10),
        ("0002-steps", 2, 20),
        ("0001-steps", 1, 20),
    ]
    assert teacher.net.gain.item() == pytest.approx(1.7 + 4)


def test_updates_one_each():
    method = Progressive(start=12, stop=3, updates=(7, 9))
    stages = list(method.stages(DenoiserOnly(wobbly_teacher(Cosine(), V()))))
    assert [(s.name, s.updates) for s in stages] == [("0006-steps", 7), ("0003-steps", 9)]
    assert method.updates_for(1, 1) == 9
    assert [Progressive(updates=(5,)).updates_for(0, n) for n in (8, 4, 3, 2, 1)] == [
        5,
        5,
        5,
        10,
        10,
    ]


def test_the_papers_updates():
    """CIFAR-10: 8192 to 1 in 13 halvings of 50,000 and 100,000 updates, 750,000 in all."""
    method = Progressive(start=8192, stop=1)
    steps = [8192 // 2**k for k in range(1, 14)]
    assert sum(method.updates_for(k, n) for k, n in enumerate(steps)) == 750_000


@pytest.mark.parametrize("name", ["uniform", "trailing", "logsnr", "karras"])
def test_grids_by_name(name):
    schedule = VPLinear()
    [stage] = Progressive(start=6, stop=3, grid=name).stages(
        DenoiserOnly(wobbly_teacher(schedule, V()))
    )
    assert stage.objective.times == grid(name, 6, schedule)
    assert stage.times == grid(name, 6, schedule)[::2] and len(stage.times) == 4


def test_a_grid_of_ones_own():
    times = (0.9, 0.5, 0.44, 0.2, 0.0)
    stages = list(
        Progressive(start=4, times=times).stages(DenoiserOnly(wobbly_teacher(RectifiedFlow(), V())))
    )
    assert [s.times for s in stages] == [(0.9, 0.44, 0.0), (0.9, 0.0)]


def test_a_guided_teacher_is_distilled_into_a_plain_student():
    guided = Guided(mixture_teacher(Cosine()), 3.0, null=3)
    [stage] = Progressive(start=2, stop=1).stages(DenoiserOnly(guided))
    assert stage.objective.teacher is guided and type(stage.student) is Denoiser
    batch = Batch(Mixture().draw(5, seeded()), Cond(label=torch.tensor([0, 1, 2, 1, 0])))
    assert bool(stage.objective(stage.student, batch, draw_of(0, 5)).isfinite().all())


def test_methods_by_name():
    assert METHODS["progressive"] is Progressive and METHODS["reparameterise"] is Reparameterise


# --- refusals, whose advice works ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "start_, stop",
    [
        (12, 4),
        (4, 4),
        (2, 4),
        (1024, 3),
        (1000, 1),
        (7, 1),
        (1, 1),
        (0, 1),
        (-8, 1),
        (8, 0),
        (8, -2),
    ],
)
def test_refuses_what_cannot_be_halved(start_, stop):
    with pytest.raises(ConfigError, match="power of two") as refusal:
        Progressive(start=start_, stop=stop)
    said = str(refusal.value)
    better = re.search(r"for example start=(\d+) with stop=(\d+)", said)
    Progressive(start=int(better[1]), stop=int(better[2]))
    if reachable := re.search(rf"from {start_} one can stop at ([\d, ]+)", said):
        for other in reachable[1].split(", "):
            Progressive(start=start_, stop=int(other))


def test_says_what_can_be_reached():
    with pytest.raises(ConfigError, match=r"stop at 6, 3$"):
        Progressive(start=12, stop=4)
    with pytest.raises(ConfigError, match=r"stop at 500, 250, 125$"):
        Progressive(start=1000, stop=1)
    with pytest.raises(ConfigError) as refusal:
        Progressive(start=7, stop=1)
    assert "can stop at" not in str(refusal.value)


@pytest.mark.parametrize("updates", [(), (1, 2), (1, 2, 3, 4), (-1,), (5, -1, 5)])
def test_updates_that_do_not_fit(updates):
    with pytest.raises(ConfigError, match="updates"):
        Progressive(start=8, stop=1, updates=updates)
    assert Progressive(start=8, stop=1, updates=(0, 0, 3)).updates == (0, 0, 3)


def test_a_grid_of_ones_own_must_fit():
    with pytest.raises(ConfigError, match="write start=2") as refusal:
        Progressive(start=4, times=(1.0, 0.5, 0.0))
    better = int(str(refusal.value).rpartition("=")[2])
    assert Progressive(start=better, times=(1.0, 0.5, 0.0)).start == 2
    with pytest.raises(ConfigError, match="grid falls"):
        Progressive(start=2, times=(0.0, 0.5, 1.0))


@pytest.mark.parametrize("weighting", ["snr", "min-snr"])
def test_weights_that_vanish_are_refused(weighting):
    with pytest.raises(ConfigError, match=f"'{weighting}' vanishes") as refusal:
        Progressive(weighting=weighting)
    for better in re.search(r"weighting='(\S+)' or '(\S+)'", str(refusal.value)).groups():
        assert Progressive(weighting=better).weighting == better
    assert Progressive(weighting="constant").weighting == "constant"


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="meant 'truncated-snr'"):
        Progressive(weighting="truncated_snr")
    with pytest.raises(ConfigError, match="grid 'unifrom'"):
        Progressive(start=2, grid="unifrom").check(DenoiserOnly(wobbly_teacher(Cosine(), V())))


@pytest.mark.parametrize(
    "schedule",
    [Cosine(), VPLinear(), RectifiedFlow(), Karras(), BetaTable(), BetaTable(zero_snr=True)],
    ids=repr,
)
def test_an_eps_teacher_is_refused_from_pure_noise_and_the_advice_works(schedule):
    teacher = wobbly_teacher(schedule, Eps())
    with pytest.raises(ConfigError, match="predicts eps") as no:
        Progressive(start=2).check(DenoiserOnly(teacher))
    assert "halfstep distill reparameterise" in str(no.value)
    assert "times that start lower" in str(no.value)
    Progressive(start=2, times=(0.5, 0.25, 0.0)).check(DenoiserOnly(teacher))
    if schedule != BetaTable(zero_snr=True):  # whose eps teacher was never there to be asked
        [stage] = Reparameterise().stages(DenoiserOnly(teacher))
        Progressive(start=2).check(DenoiserOnly(stage.student))


@pytest.mark.parametrize("reads", [X0(), V()], ids=named)
@every_schedule
def test_other_teachers_are_distilled_from_pure_noise(schedule, reads):
    Progressive(start=2).check(DenoiserOnly(wobbly_teacher(schedule, reads)))


def test_walks_agree_with_the_exact_flow():
    """Not only with each other: many steps approach the closed flow, and so does the one-step student."""
    teacher, noise = gaussian_teacher(Cosine()), torch.randn(9, 1, generator=seeded())
    [*_, one] = walk_down(teacher, uniform(1024), noise, right).values()
    exact = gaussian_flow(Cosine(), start(Cosine(), noise), 1.0, 0.0)
    torch.testing.assert_close(one, exact, rtol=0, atol=5e-3)
