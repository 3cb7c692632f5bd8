"""Distillation of guided models: the guided target, exact students at every scale, and trained ones."""

from dataclasses import replace

import pytest
import torch

from halfstep.batch import Batch, Cond
from halfstep.diffusion.analytic import Mixture, mixture_teacher
from halfstep.diffusion.denoiser import Denoiser, level_of, NetTime
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.loss_weighting import constant, snr_plus_one, truncated_snr
from halfstep.diffusion.prediction import Eps, Prediction, V, X0
from halfstep.diffusion.samplers import sample
from halfstep.diffusion.schedules import BetaTable, Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.methods import two_step_target
from halfstep.methods.diffusion.guided import AnyScale, MatchGuided, random_scales
from halfstep.methods.diffusion.progressive import Halve
from halfstep.rng import Draw
from tests.support.denoisers import named, SCHEDULES, seeded, Wobbly

pytestmark = pytest.mark.usefixtures("float64")
DATA, NULL, RANGE = Mixture(), 3, (1.0, 5.0)
SCALES = [1.0, 1.3, 2.0, 3.0, 5.0]


def draw_of(seed, n):
    return Draw.all(seeded(seed), n)


def labelled(n, seed=0, dtype=torch.float64):
    x, label = DATA.labelled(n, seeded(seed), dtype)
    return Batch(x, Cond(label))


class ByScale:
    """What takes its guidance scale as an input: exactly the guided teacher, at every scale."""

    guided = False

    def __init__(self, teacher):
        self.teacher, self.schedule = teacher, teacher.schedule

    def __call__(self, x, t, cond):
        return Guided(self.teacher, cond.guidance_scale, NULL)(x, t, Cond(cond.label))


class Composed:
    """The student that is exactly its teacher's two-step target; every row may have its own time."""

    def __init__(self, teacher, times):
        self.teacher, self.schedule = teacher, teacher.schedule
        self.times = torch.tensor(times, dtype=torch.float64)

    def __call__(self, x, t, cond=None):
        k = (self.times - t[:, None]).abs().argmin(1)
        return two_step_target(self.teacher, x, *(self.times[k + j] for j in range(3)), cond)


class Spy:
    """A denoiser that keeps the conditions it was asked with."""

    def __init__(self, denoiser):
        self.denoiser, self.schedule, self.conds = denoiser, denoiser.schedule, []
        self.guided = denoiser.guided

    def __call__(self, x, t, cond=None):
        self.conds.append(cond)
        return self.denoiser(x, t, cond)


# --- the target ---------------------------------------------------------------------------------------


def by_hand(x, t, label, w):
    """(1 + w) E[x0 | x, label] - w E[x0 | x] of the mixture, from its textbook formulas."""
    level = Cosine().at(t)
    means, stds, weights = (torch.tensor(v) for v in (DATA.means, DATA.stds, DATA.weights))
    posterior, likely = [], []
    for mean, std, weight in zip(means, stds, weights, strict=True):
        spread = (level.alpha * std) ** 2 + level.sigma**2
        gain = level.alpha * std**2 / spread
        away = x - level.alpha[:, None] * mean
        posterior.append(mean + gain[:, None] * away)
        likely.append(weight / spread * torch.exp(-away.square().sum(1) / (2 * spread)))
    posterior, likely = torch.stack(posterior), torch.stack(likely)
    mixed = (likely[..., None] * posterior).sum(0) / likely.sum(0)[:, None]
    share = posterior[label, torch.arange(len(x))]
    return (1 + w)[:, None] * share - w[:, None] * mixed


@pytest.mark.parametrize("reads", [V(), X0(), Eps()], ids=named)
def test_the_objective_by_hand(reads):
    """Section 3.1 for every w: the student's x0 error against the closed form, for all parameterisations."""
    n, batch = 57, labelled(57)
    teacher = mixture_teacher(Cosine(), parameterisation=reads)
    inputs = {}

    def student(x, t, cond):
        inputs.update(x=x, t=t, cond=cond)
        return Prediction(torch.zeros_like(x), torch.zeros_like(x))

    loss = MatchGuided(teacher, NULL, (1.5, 4.0), constant)(student, batch, draw_of(1, n))
    w = inputs["cond"].guidance_scale - 1
    assert 0.5 <= w.min() < 0.7 and 2.8 < w.max() <= 3
    expected = by_hand(inputs["x"], inputs["t"], batch.cond.label, w).square().mean(1)
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=1e-10)
    assert inputs["cond"].label is batch.cond.label and loss.shape == (n,)
    # w first, then the time, then the noise: all three uniform or normal as they should be.
    draw = draw_of(1, n)
    assert torch.equal(inputs["cond"].guidance_scale, random_scales(draw, (1.5, 4.0)))
    assert torch.equal(inputs["t"], draw.uniform())
    x_t = level_of(Cosine(), inputs["t"], batch.x0).mix(batch.x0, draw.normal(batch.x0))
    assert torch.equal(inputs["x"], x_t)


def test_the_target_of_the_specification():
    """distillation-checks.md 40: w = 2 at t = 0.3, in x, in eps and in v."""

    class Labelled(Wobbly):
        def forward(self, x, t, cond=None):
            return torch.where(cond.label[:, None] == 0, 0.4, 0.1).to(x)

    teacher = Denoiser(Labelled(), Cosine(), X0())
    x, t = torch.full((2, 1), 0.5), torch.full((2,), 0.3)
    scale = torch.tensor([3.0, 1.0])
    actual = Guided(teacher, scale, 1)(x, t, Cond(torch.zeros(2, dtype=torch.int64)))
    v = V().encode(actual, level_of(Cosine(), t, x))
    values = [actual.x0[0].item(), actual.eps[0].item(), v[0].item()]
    assert values == pytest.approx([1.0, -0.861217018, -1.221349562], abs=6e-10)
    assert actual.x0[1].item() == pytest.approx(0.4, abs=1e-12)


@pytest.mark.parametrize("weighting", [constant, truncated_snr, snr_plus_one])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_the_exact_student_has_no_error(schedule, weighting):
    teacher = mixture_teacher(schedule)
    match = MatchGuided(teacher, NULL, RANGE, weighting, levels=1024)
    assert match(ByScale(teacher), labelled(40), draw_of(2, 40)).max() < 1e-20


def test_weighting_and_levels_are_those_asked_for():
    teacher, batch, n = mixture_teacher(Cosine()), labelled(64), 64
    student, losses = Spy(ByScale(mixture_teacher(Cosine(), Mixture(stds=(0.3, 0.3, 0.3))))), []
    for weighting in (constant, truncated_snr, snr_plus_one):
        losses.append(
            MatchGuided(teacher, NULL, RANGE, weighting)(student, batch, draw_of(3, n)).detach()
        )
    assert bool((losses[1] >= losses[0]).all()) and bool((losses[2] >= losses[1]).all())
    assert not torch.equal(losses[0], losses[1]) and not torch.equal(losses[1], losses[2])
    times = []

    def listening(x, t, cond):
        times.append(t)
        return ByScale(teacher)(x, t, cond)

    MatchGuided(teacher, NULL, RANGE, constant, levels=4)(listening, batch, draw_of(3, n))
    assert set(times[0].tolist()) == {0.25, 0.5, 0.75, 1.0}


def test_scales_are_uniform_and_one_a_sample():
    scales = random_scales(draw_of(0, 20_000), (2.0, 14.0))
    assert scales.shape == (20_000,) and 2 <= scales.min() < 2.01 and 13.99 < scales.max() <= 14
    assert abs(scales.mean() - 8) < 4 * 12 / (12 * 20_000) ** 0.5
    assert abs(scales.std() - 12 / 12**0.5) < 0.05


def test_both_branches_are_one_call_and_labels_are_not_dropped():
    inner = mixture_teacher(Cosine())
    calls = []
    inner.net.register_forward_pre_hook(lambda net, arguments: calls.append(arguments))
    batch = labelled(30)
    match = MatchGuided(inner, NULL, RANGE)
    student = Spy(ByScale(mixture_teacher(Cosine())))
    match(student, batch, draw_of(0, 30))
    [(x, _, cond)] = calls
    assert len(x) == 60 and match.forwards == 5
    assert torch.equal(cond.label[:30], batch.cond.label) and cond.label[30:].eq(NULL).all()
    assert cond.guidance_scale is None and torch.equal(student.conds[0].label, batch.cond.label)


def test_the_teacher_is_never_differentiated():
    class Hears(Wobbly):
        def forward(self, x, t, cond=None):
            more = 0 if cond.guidance_scale is None else 0.1 * cond.guidance_scale[:, None]
            return super().forward(x, t) + 0.2 * cond.label[:, None] + more

    teacher, student = (Denoiser(Hears(), Cosine(), V(), time=NetTime(scale=1.0)) for _ in "ab")
    loss = MatchGuided(teacher, NULL, RANGE)(student, labelled(9), draw_of(0, 9))
    loss.mean().backward()
    assert teacher.net.gain.grad is None and student.net.gain.grad.abs() > 0


def test_micro_batches_have_the_losses_of_the_batch():
    teacher, batch = mixture_teacher(Cosine()), labelled(7)
    student = ByScale(mixture_teacher(Cosine(), Mixture(stds=(0.3, 0.3, 0.3))))
    halve = AnyScale(Halve(ByScale(teacher), uniform(8)), RANGE)
    for objective in (MatchGuided(teacher, NULL, RANGE), halve):
        whole = objective(student, batch, draw_of(4, 7))
        for a, b in ((0, 2), (2, 7)):
            part = objective(student, batch[a:b], Draw(seeded(4), 7, slice(a, b)))
            torch.testing.assert_close(part, whole[a:b], rtol=1e-12, atol=0)


# --- the second stage: the scale is an input of teacher and student alike --------------------------


def test_teacher_and_student_are_told_the_same_scale():
    teacher = Spy(ByScale(mixture_teacher(Cosine())))
    student = Spy(ByScale(mixture_teacher(Cosine())))
    objective, batch = AnyScale(Halve(teacher, uniform(4)), (2.0, 3.0)), labelled(11)
    assert objective.forwards == 5
    objective(student, batch, draw_of(5, 11))
    scales = [cond.guidance_scale for cond in (*teacher.conds, *student.conds)]
    assert len(scales) == 3 and all(torch.equal(scale, scales[0]) for scale in scales)
    assert torch.equal(scales[0], random_scales(draw_of(5, 11), (2.0, 3.0)))
    assert all(cond.label is batch.cond.label for cond in (*teacher.conds, *student.conds))
    objective(lambda x, t, cond: student(x, t, replace(cond, label=batch.cond.label)),
              Batch(batch.x0, Cond(batch.cond.label)), draw_of(5, 11))  # fmt: skip


def test_data_without_conditions_is_told_the_scale_alone():
    def inner(student, batch, draw):
        return batch.cond

    cond = AnyScale(inner, (2.0, 3.0))(None, Batch(torch.zeros(3, 2)), draw_of(0, 3))
    assert (
        cond.label is None
        and cond.encoder_hidden_states is None
        and cond.guidance_scale.shape == (3,)
    )


@pytest.mark.parametrize("schedule", [Cosine(), BetaTable("scaled_linear", levels=2048)], ids=named)
@pytest.mark.parametrize("scale", [*SCALES, 14.0])
def test_exact_students_sample_what_the_guided_teacher_samples(scale, schedule):
    """Halved from 16 steps to 1, at every scale, to 1e-12 (of what guidance makes large)."""
    teacher, times, n = mixture_teacher(schedule), uniform(16), 12
    noise, label = torch.randn(n, 2, generator=seeded()), torch.arange(n) % 3
    expected = sample(Guided(teacher, scale, NULL), noise, times, cond=Cond(label))
    cond = Cond(label, guidance_scale=torch.full((n,), scale))
    student = ByScale(teacher)
    while len(times) > 2:
        student, halve = Composed(student, times), Halve(student, times)
        loss = AnyScale(halve, (scale, scale + 1))(student, labelled(6), draw_of(7, 6))
        assert loss.max() < 1e-20
        times = times[::2]
        actual = sample(student, noise, times, cond=cond)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    # and the same check tells one scale from another
    other = Cond(label, guidance_scale=torch.full((n,), scale + 0.1))
    assert (sample(student, noise, times, cond=other) - expected).abs().max() > 1e-3
