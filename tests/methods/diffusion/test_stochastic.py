"""The stochastic sampler and the student made for it: the right variance, and each without the other."""

import itertools
import re

import pytest
import torch
from torch import nn

from halfstep.batch import Batch, Cond
from halfstep.diffusion.analytic import gaussian_flow, gaussian_teacher
from halfstep.diffusion.denoiser import Denoiser, level_of, NetTime
from halfstep.diffusion.loss_weighting import constant, snr_plus_one, truncated_snr
from halfstep.diffusion.prediction import Eps, Prediction, V, X0
from halfstep.diffusion.samplers import calls, ModelOutput, sample, start, stochastic, TimePoint
from halfstep.diffusion.schedules import arriving, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import karras, uniform
from halfstep.errors import ConfigError
from halfstep.methods import (
    DenoiserOnly,
    METHODS,
    Progressive,
    Reparameterise,
    Stochastic,
    two_step_target,
)
from halfstep.methods.diffusion.progressive import Halve
from halfstep.methods.diffusion.stochastic import HalveJumps
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.rng import Draw, sample_noise
from halfstep.training import distill, TrainingConfig
from tests.methods.diffusion.test_progressive import draw_of, gaussian_data, train, zero_student
from tests.support.denoisers import Counted, named, SCHEDULES, seeded, Wobbly, wobbly_teacher

pytestmark = pytest.mark.usefixtures("float64")
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
SMOOTH = [Cosine(), VPLinear(), RectifiedFlow(), Karras()]


def at(schedule, t):
    return schedule.at(torch.tensor(t, dtype=torch.float64))


# --- the sampler --------------------------------------------------------------------------------------


def test_the_walk_of_four_steps():
    """distillation-checks.md 41: where the network is asked, and the coefficients of every step."""
    asked, numbers, here = [], [], Cosine()

    class Spy(nn.Module):
        """Says x0 = 0, eps = 0, so that noise alone is left."""

        def forward(self, x, t, cond=None):
            asked.append(t[0].item())
            return torch.zeros_like(x)

    def one(like, step):
        numbers.append(step)
        return torch.ones_like(like)

    step = stochastic(uniform(4), here, one)
    zero = Prediction(torch.zeros(1, 1), torch.zeros(1, 1))
    unit = Prediction(torch.ones(1, 1), torch.zeros(1, 1))
    wanted = [
        # k, s, alpha_s / alpha_k, sigma_{s|k}
        (0.5, 0.75, 0.541225759, 0.840877326),
        (0.25, 0.5, 0.765374061, 0.643585694),
        (0.0, 0.25, 0.923870846, 0.382704402),
    ]
    for number, (k, s, shrink, spread) in enumerate(wanted, start=1):
        visit = ModelOutput(TimePoint(number - 1, s + 0.25, at(here, s + 0.25)), zero)
        to = TimePoint(number, s, at(here, s))
        jumped = arriving(here, torch.tensor(k))
        noise = step(torch.ones(1, 1), [visit], to, None).item()
        assert noise == pytest.approx(spread, abs=4e-9)
        mean = step(torch.ones(1, 1), [ModelOutput(visit.point, unit)], to, None).item() - noise
        assert mean / jumped.alpha.item() == pytest.approx(shrink, abs=4e-9)
        assert (shrink * jumped.sigma) ** 2 + noise**2 == pytest.approx(
            at(here, s).sigma.item() ** 2
        )
    assert numbers == [1, 1, 2, 2, 3, 3]
    numbers.clear()
    spy = Denoiser(Spy(), here, X0(), time=NetTime(scale=1.0))
    sample(spy, torch.ones(2, 3), uniform(4), stochastic(uniform(4), here, one))
    assert asked == [1.0, 0.75, 0.5, 0.25]
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
    seen = []

    class ProgressCallback:
        schedule = teacher.schedule

        def __call__(self, x, t, cond=None):
            seen.append((x.clone(), t[0].item()))
            return teacher(x, t, cond)

    z = torch.randn(6, 2, generator=seeded(99))
    x = sample(ProgressCallback(), z, times, stochastic(times, schedule, fresh))
    torch.testing.assert_close(x, torch.full_like(x, 0.3), rtol=0, atol=1e-12)
    eps = start(schedule, z) - at(schedule, 1.0).alpha * 0.3
    eps = eps / at(schedule, 1.0).sigma
    for number, (x, t) in enumerate(seen[1:], start=1):
        k, s = arriving(schedule, torch.tensor(times[number + 1])), at(schedule, t)
        share = (s.alpha * k.sigma / (s.sigma * k.alpha)) ** 2  # SNR_s / SNR_k
        assert 0 <= share < 1
        eps = share.sqrt() * eps + (1 - share).sqrt() * noises[number]
        torch.testing.assert_close(x, s.alpha * 0.3 + s.sigma * eps, rtol=0, atol=1e-11)


def test_noise_of_a_spread_that_is_exact():
    """The spread is right near t = 0 too, where sigma_s and sigma_k differ little, in float32."""
    times = uniform(1024)
    exact, got = (
        sample(
            wobbly_teacher(Cosine(), V()),
            torch.randn(3, 2, generator=seeded()).to(dtype),
            times,
            stochastic(times, Cosine(), lambda like, step: torch.ones_like(like)),
        )
        for dtype in (torch.float64, torch.float32)
    )
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=1e-3)


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
    for made, walked in [
        (uniform(4), uniform(8)),
        (uniform(8), uniform(4)),
        (uniform(2), uniform(3)),
    ]:
        with pytest.raises(ConfigError, match="another grid"):
            sample(teacher, z, walked, stochastic(made, Cosine(), fresh))


# --- the variance of what it makes --------------------------------------------------------------------


class Jumps:
    """The perfect student: from t, it lands where the exact flow of Gaussian data of spread 1/2 lands.

    span    how many steps of the grid it jumps; at the last time there is one alone
    landed  the level it takes itself to be at on arrival
    """

    def __init__(self, times, schedule, span, landed=arriving):
        self.times, self.schedule, self.span, self.landed = times, schedule, span, landed

    def __call__(self, x, t, cond=None):
        k = self.times.index(t[0].item())
        there = self.times[min(k + self.span, len(self.times) - 1)]
        z = gaussian_flow(self.schedule, x, t[0].item(), there, 0.0, 0.5)
        here, end = at(self.schedule, t[0].item()), self.landed(self.schedule, torch.tensor(there))
        r = end.sigma / here.sigma
        x0 = (z - r * x) / (end.alpha - r * here.alpha)
        return Prediction.from_x0(x0, x, here)


def variance(student, times):
    """Exactly: a linear walk of the basis of its noises, whose squares are summed."""
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
    for span, wanted in ((2, right), (1, wrong)):
        got = variance(Jumps(times, Cosine(), span, lambda s, t: s.at(t)), times)
        assert got == pytest.approx(wanted, abs=2e-5)


@pytest.mark.parametrize("schedule", SMOOTH, ids=named)
@pytest.mark.parametrize("steps", [2, 3, 5, 8])
def test_variance_on_every_schedule_and_grid(schedule, steps):
    top = 0.999 if schedule == RectifiedFlow() else 1.0
    for times in (uniform(steps, start=top), karras(steps, schedule, start=top)):
        first = at(schedule, times[0])
        noise = 1 if schedule.variance_preserving else first.sigma**2
        wrong = noise / (0.25 * first.alpha**2 + first.sigma**2)  # a walk starts from noise alone
        got = variance(Jumps(times, schedule, 2), times)
        assert 0.25 * min(1, wrong) - 1e-5 < got < 0.25 * max(1, wrong) + 1e-5
    uneven = variance(Jumps(uniform(steps, start=top), schedule, 1), uniform(steps, start=top))
    assert uneven < 0.245


# --- the recursion closes -----------------------------------------------------------------------------


class Composed:
    """The student that is exactly its target: two jumps of its teacher, or one at the last time."""

    def __init__(self, teacher, times):
        self.teacher, self.times, self.schedule = teacher, times, teacher.schedule

    def __call__(self, x, t, cond=None):
        k, end = self.times.index(t[0].item()), len(self.times) - 1
        if k + 2 == end:
            return self.teacher(x, t, cond)
        rest = (torch.full_like(t, self.times[k + j]) for j in (2, 4))
        return two_step_target(self.teacher, x, t, *rest, cond)


@every_schedule
def test_exact_students_jump_as_their_teacher_walks(schedule):
    """16 steps halved to 2: a call of a student of N steps is DDIM of its teacher over 2 / N, to the end."""
    teacher, times = wobbly_teacher(schedule, V()), uniform(16)
    fine, student = times[::2], teacher  # a stochastic teacher of 16 steps jumps 2 / 16
    x = 0.7 * torch.randn(3, 2, 5, generator=seeded())
    while len(times) > 3:
        student, times = Composed(student, times), times[::2]
        n = len(times) - 1
        for k in range(n):
            t, to = times[k], times[min(k + 2, n)]
            pred = student(x, torch.full((3,), t))
            landed = arriving(schedule, torch.tensor(to)).mix(pred.x0, pred.eps)
            path = tuple(s for s in fine if to <= s <= t)
            assert len(path) == 1 + (16 // n if k + 2 <= n else 8 // n)
            z = x if schedule.variance_preserving else x / at(schedule, t).sigma
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
        student, times = Composed(student, times), times[::2]
        got = sample(student, z, times, stochastic(times, schedule, fresh))
        x = start(schedule, z)
        for number, (t, s) in enumerate(itertools.pairwise(times), start=1):
            k = times[min(number + 1, len(times) - 1)]
            unit = x if schedule.variance_preserving else x / at(schedule, t).sigma
            x = sample(teacher, unit, tuple(u for u in fine if k <= u <= t))
            if number < len(times) - 1:
                far, near = arriving(schedule, torch.tensor(k)), at(schedule, s)
                var = near.sigma**2 * -torch.expm1(near.logsnr - far.logsnr)
                x = near.alpha / far.alpha * x + var.sqrt() * fresh(x, number)
        torch.testing.assert_close(got, x, rtol=1e-11, atol=1e-12)


# --- the objective ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", [constant, truncated_snr, snr_plus_one])
@pytest.mark.parametrize(
    "times",
    [uniform(8), (0.93, 0.8, 0.5, 0.44, 0.2, 0.1, 0.0), uniform(4)],
    ids=["8", "6", "4"],
)
def test_objective_by_hand(weighting, times):
    """distillation.md 2.4 line by line, both edges among the times drawn."""
    shape, b = (40, 3, 4, 2), 40
    teacher, student = wobbly_teacher(Cosine(), V()), wobbly_teacher(Cosine(), X0())
    x0 = torch.rand(shape, generator=seeded(1)) * 2 - 1
    loss = HalveJumps(teacher, times, weighting)(student, Batch(x0), draw_of(9, b))

    draw, n = draw_of(9, b), len(times) // 2
    number = draw.integers(n)
    z = draw.normal(x0)
    assert set(number.tolist()) == set(range(n))
    for row in range(b):
        k = 2 * number[row].item()
        t = torch.tensor([times[k]])
        here = level_of(Cosine(), t, x0[:1])
        x_t = here.mix(x0[row : row + 1], z[row : row + 1])
        first = teacher(x_t, t)
        if k + 2 == 2 * n:  # i = 1: one step of the teacher
            wanted = first.x0
        else:
            mid, end = (torch.tensor([times[k + j]]) for j in (2, 4))
            middle, there = (level_of(Cosine(), s, x0[:1]) for s in (mid, end))
            x_mid = middle.mix(first.x0, first.eps)
            second = teacher(x_mid, mid)
            r = there.sigma / here.sigma
            x_end = there.mix(second.x0, second.eps)
            wanted = (x_end - r * x_t) / (there.alpha - r * here.alpha)
            if k + 4 == 2 * n:  # i = 2
                wanted = second.x0
        x_err = (student(x_t, t).x0 - wanted).square().mean()
        snr = Cosine().at(t).logsnr.exp()
        weight = {constant: 1, truncated_snr: snr.clamp(min=1), snr_plus_one: snr + 1}[weighting]
        torch.testing.assert_close(loss[row], (weight * x_err).squeeze(), rtol=1e-9, atol=1e-12)


def test_times_that_are_drawn():
    """t in {1/N, ..., 1}, all equally often; the second call at t - 1/N, and at t itself for t = 1/N."""
    asked = []

    class Spy(Wobbly):
        def forward(self, x, t, cond=None):
            asked.append(t)
            return super().forward(x, t)

    teacher = Denoiser(Spy(), Cosine(), V(), time=NetTime(scale=1.0))
    n = 4000
    HalveJumps(teacher, uniform(8))(
        wobbly_teacher(Cosine(), V()), Batch(torch.zeros(n, 1)), draw_of(0, n)
    )
    first, second = asked
    values, counts = first.unique(return_counts=True)
    assert values.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert bool(((counts / n - 0.25).abs() < 4 * (0.1875 / n) ** 0.5).all())
    wanted = torch.where(first == 0.25, first, first - 0.25)
    torch.testing.assert_close(second, wanted, rtol=0, atol=0)


@every_schedule
def test_the_objective_is_zero_for_the_exact_student_alone(schedule):
    teacher, times = wobbly_teacher(schedule, V()), uniform(8)

    class Rowwise:
        def __call__(self, x, t, cond=None):
            rows = [Composed(teacher, times)(x[r : r + 1], t[r : r + 1]) for r in range(len(x))]
            return Prediction(*(torch.cat([getattr(p, f) for p in rows]) for f in ("x0", "eps")))

    batch = Batch(torch.rand(32, 3, generator=seeded()) * 2 - 1)
    assert HalveJumps(teacher, times, constant)(Rowwise(), batch, draw_of(1, 32)).max() < 1e-18
    assert HalveJumps(teacher, times, constant)(teacher, batch, draw_of(1, 32)).mean() > 1e-4


def test_the_condition_goes_to_all_three_calls():
    seen = []

    class Spy(Wobbly):
        def forward(self, x, t, cond=None):
            seen.append(cond)
            return super().forward(x, t)

    spies = [Denoiser(Spy(), Cosine(), V()) for _ in range(2)]
    cond = Cond(label=torch.tensor([3, 1]))
    loss = HalveJumps(spies[0], uniform(4))(spies[1], Batch(torch.ones(2, 3), cond), draw_of(0, 2))
    assert len(seen) == 3 and all(c is cond for c in seen)
    loss.mean().backward()
    assert spies[0].net.gain.grad is None and spies[1].net.gain.grad is not None
    assert HalveJumps(spies[0], uniform(4)).forwards == 5


def test_micro_batches_have_the_losses_of_the_batch():
    teacher, student = wobbly_teacher(Cosine(), V()), wobbly_teacher(Cosine(), X0())
    batch, halve = Batch(torch.randn(5, 3, 4, generator=seeded())), HalveJumps(teacher, uniform(8))
    whole = halve(student, batch, draw_of(4, 5))
    for a, b in ((0, 2), (2, 5)):
        part = halve(student, batch[a:b], Draw(seeded(4), 5, slice(a, b)))
        torch.testing.assert_close(part, whole[a:b], rtol=1e-12, atol=0)


# --- the method ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 2])
def test_stages_end_at_two_steps(stop):
    teacher, seen = wobbly_teacher(Cosine(), V()), []
    method = Stochastic(start=16, stop=stop, updates=(10,))
    for stage in method.stages(DenoiserOnly(teacher)):
        assert stage.objective.teacher is teacher and stage.student is not teacher
        assert stage.times == stage.objective.times[::2] and stage.sampler == "stochastic"
        assert torch.equal(stage.student.net.gain, teacher.net.gain)
        assert not teacher.training and stage.student.training
        teacher = stage.student
        seen.append((stage.name, stage.updates))
    assert seen == [("0008-steps", 10), ("0004-steps", 10), ("0002-steps", 20)]
    assert method.counts == [8, 4, 2]


def test_options():
    assert METHODS["stochastic"] is Stochastic
    method = Stochastic(start=12, stop=3, updates=(7, 9), weighting="snr+1")
    stages = list(method.stages(DenoiserOnly(wobbly_teacher(VPLinear(), V()))))
    assert [(s.name, s.updates) for s in stages] == [("0006-steps", 7), ("0003-steps", 9)]
    assert all(s.objective.weighting is snr_plus_one for s in stages)
    [stage] = Stochastic(start=4, grid="karras").stages(
        DenoiserOnly(wobbly_teacher(VPLinear(), V()))
    )
    assert stage.objective.times == karras(4, VPLinear())
    own = (0.9, 0.5, 0.44, 0.2, 0.0)
    [stage] = Stochastic(start=4, times=own).stages(DenoiserOnly(wobbly_teacher(VPLinear(), V())))
    assert stage.times == (0.9, 0.44, 0.0)


@pytest.mark.parametrize("stop", [1, 2])
def test_from_two_steps_there_is_nothing_to_halve(stop):
    with pytest.raises(ConfigError, match="write start=4"):
        Stochastic(start=2, stop=stop)
    assert Stochastic(start=4, stop=stop).counts == [2]


def test_updates_are_those_of_the_halvings_there_are():
    assert Stochastic(start=8, stop=1, updates=(1, 2)).counts == [4, 2]
    with pytest.raises(ConfigError, match="3 numbers for 2 halvings"):
        Stochastic(start=8, stop=1, updates=(1, 2, 3))


def test_other_refusals_are_progressives():
    with pytest.raises(ConfigError, match="power of two"):
        Stochastic(start=12, stop=4)
    with pytest.raises(ConfigError, match="vanishes"):
        Stochastic(weighting="snr")
    with pytest.raises(ConfigError, match="predicts eps"):
        Stochastic(start=4).check(DenoiserOnly(wobbly_teacher(Cosine(), Eps())))


# --- what belongs together ----------------------------------------------------------------------------


def pipeline(**more):
    torch.manual_seed(3)
    net = build("mlp", {"dim": 2, "width": 16, "depth": 1})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Pipeline(Denoiser(net.float(), Cosine(), V()).freeze(), (2,), **more)


def test_a_student_of_ddim_is_refused_by_the_stochastic_sampler():
    with pytest.raises(ConfigError, match=r"too little variance.*sampler='ddim'") as refusal:
        pipeline(times=(uniform(4),)).sample(1, sampler="stochastic")
    verb, name = re.search(r"halfstep (\w+) (\w+)\)", str(refusal.value)).groups()
    assert verb == "distill" and name in METHODS


@pytest.mark.parametrize(
    "sampler", ["ddim", "heun", "dpmpp-2m", "ancestral", "dpm-fast", "diffusers:DDIMScheduler"]
)
def test_a_stochastic_student_is_refused_by_every_other_sampler(sampler):
    made = pipeline(times=(uniform(4),), sampler="stochastic")
    with pytest.raises(ConfigError, match=f"'{sampler}' would.*='stochastic'"):
        made.sample(1, sampler=sampler)


def test_a_teacher_takes_both():
    made = pipeline()
    a, b = (made.sample(2, steps=4, sampler=name) for name in ("ddim", "stochastic"))
    assert not torch.equal(a, b) and bool(b.isfinite().all())
    assert made.sampler == "ddim" and made.grid(4, "stochastic") == uniform(4)


@pytest.mark.parametrize("batch, first", [(256, 0), (2, 0), (1, 3)])
def test_a_pipeline_samples_by_it(batch, first):
    made = pipeline(times=(uniform(4),), sampler="stochastic")
    ids = range(first, 5)

    def fresh(like, step):
        return sample_noise(6, ids, (2,), step=step)

    z = sample_noise(6, ids, (2,))
    wanted = sample(made.denoiser, z, uniform(4), stochastic(uniform(4), Cosine(), fresh))
    got = made.sample(5 - first, seed=6, batch=batch, first=first)
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5)
    assert torch.equal(
        got, made.sample(5 - first, seed=6, batch=batch, first=first, sampler="stochastic")
    )


def test_the_student_of_two_steps_is_the_student_of_one():
    made = pipeline(times=(uniform(4), uniform(2)), sampler="stochastic")
    assert made.grid() == uniform(2) and made.grid(1) == (1.0, 0.0)
    z = sample_noise(0, range(3), (2,))
    torch.testing.assert_close(made.sample(3, steps=1), made.denoiser(z, torch.ones(3)).x0)
    with pytest.raises(ConfigError, match="it can take 4"):
        pipeline(times=(uniform(4),), sampler="stochastic").grid(1)
    with pytest.raises(ConfigError, match="not distilled"):
        pipeline(times=(uniform(2),)).grid(1)


def test_what_it_is_made_for_is_saved_where_it_is_unusual(tmp_path):
    made = pipeline(times=(uniform(4),), sampler="stochastic")
    assert made.describe()["sampler"] == "stochastic"
    made.save(tmp_path)
    back = Pipeline.load(tmp_path)
    assert back.sampler == "stochastic" and back.grid() == uniform(4)
    torch.testing.assert_close(back.sample(2), made.sample(2), rtol=0, atol=2e-5)
    assert "sampler" not in pipeline(times=(uniform(4),)).describe()


def test_a_run_marks_its_students_and_no_other_method_takes_them(tmp_path):
    few = TrainingConfig(batch_size=8, save_every=2, log_every=2)
    method = Stochastic(start=8, stop=1, updates=(2,))
    student = distill(pipeline(), "two-moons", tmp_path / "s", method=method, training=few)
    assert student.sampler == "stochastic" and student.times == (uniform(2),)
    assert student.sample(3).shape == (3, 2)
    assert sorted(p.name for p in (tmp_path / "s" / "stages").iterdir()) == [
        "0002-steps",
        "0004-steps",
    ]
    four = Pipeline.load(tmp_path / "s" / "stages" / "0004-steps")
    assert four.sampler == "stochastic" and four.times == (uniform(4),)
    again = distill(
        four, "two-moons", tmp_path / "t", method=Stochastic(start=4, updates=(2,)), training=few
    )
    assert again.sampler == "stochastic"
    for other in (Progressive(start=4, updates=(1,)), Reparameterise(updates=1)):
        said = r"student for sampler 'stochastic'.*'ddim'|would be asked at every time"
        with pytest.raises(ConfigError, match=said):
            distill(four, "two-moons", tmp_path / "u", method=other, training=few)
    with pytest.raises(ConfigError, match=r"'ddim'.*'stochastic'"):
        plain = pipeline(times=(uniform(4),))
        distill(plain, "two-moons", tmp_path / "u", method=method, training=few)
    assert not (tmp_path / "u").exists()


# --- trained ------------------------------------------------------------------------------------------


def test_trained_students_have_the_variance_of_exact_ones():
    """16 to 4 steps, an affine map a time; and students of DDIM, trained beside them, far too little."""
    teacher, times = gaussian_teacher(Cosine()).freeze(), uniform(16)
    exact = jumper = walker = teacher

    def trained(objective):
        return train(zero_student(times[::2], Cosine()), objective, gaussian_data, 300, 0.05)

    while len(times) > 5:
        exact = Composed(exact, times)
        jumper, walker = trained(HalveJumps(jumper, times)), trained(Halve(walker, times))
        times = times[::2]

    def spread(student):
        basis = torch.cat([torch.zeros(1, 4), torch.eye(4)])
        step = stochastic(times, Cosine(), lambda like, number: basis[:, number : number + 1])
        x = sample(student, basis[:, :1], times, step)
        return (x[1:] - x[0]).square().sum().item()

    assert spread(jumper) == pytest.approx(spread(exact), abs=3e-3)
    assert spread(walker) < spread(exact) - 0.02


@pytest.mark.parametrize("asked, clip", [(0.0, None), (0.3, 0.3)])
def test_targets_are_clipped_where_it_is_told_to(asked, clip):
    (stage,) = Stochastic(start=4, stop=2, target_clip=asked).stages(
        DenoiserOnly(wobbly_teacher(Cosine(), V()))
    )
    assert stage.objective.clip == clip
