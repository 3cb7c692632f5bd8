"""Exact students sample what their teacher samples, with and without clipping."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from halfstep.batch import Batch
from halfstep.diffusion.analytic import gaussian_teacher
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import Clip, Eps, Prediction, V, X0
from halfstep.diffusion.samplers import heun, sample
from halfstep.diffusion.schedules import (
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
    Progressive,
    Stochastic,
)
from halfstep.methods.diffusion.few_steps import forgiven
from halfstep.rng import Draw
from tests.support.denoisers import Counted, named, READS, SCHEDULES, seeded, wobbly_teacher
from tests.support.students import (
    ExactRows,
    ExactStudent,
    halve_to_the_end,
    mid_point,
    right,
    without_last_step_rule,
)

pytestmark = pytest.mark.usefixtures("float64")
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
every_reading = pytest.mark.parametrize("reads", READS, ids=named)


@every_schedule
@every_reading
def test_exact_students_of_any_teacher_sample_what_it_samples(schedule, reads):
    """16 steps halved to 1, with a nonlinear network as teacher."""
    teacher, top = wobbly_teacher(schedule, reads), 0.9 if isinstance(reads, Eps) else 1.0
    times, noise = tuple(top * t for t in uniform(16)), torch.randn(3, 2, 5, generator=seeded())
    expected, student = sample(teacher, noise, times), teacher
    while len(times) > 2:
        student, times = ExactStudent(student, times), times[::2]
        torch.testing.assert_close(sample(student, noise, times), expected, rtol=1e-11, atol=1e-11)


@every_schedule
@every_reading
def test_exact_students_that_merge_more_steps_sample_what_it_samples(schedule, reads):
    """16 steps to 4 at once, then to 1; in each case the identity of as many steps."""
    teacher, top = wobbly_teacher(schedule, reads), 0.9 if isinstance(reads, Eps) else 1.0
    times, noise = tuple(top * t for t in uniform(16)), torch.randn(3, 2, 5, generator=seeded())
    expected, student = sample(teacher, noise, times), teacher
    for _ in range(2):
        student, times = ExactStudent(student, times, offsets=(1, 2, 3, 4)), times[::4]
        torch.testing.assert_close(sample(student, noise, times), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["x0-and-eps", "x0"])
def test_merged_clipped_steps_land_where_the_clipping_sampler_does(kind):
    teacher, times, clip = wobbly_teacher(Cosine(), X0()), uniform(8), Clip(0.3, kind)
    x = torch.randn(3, 2, 5, generator=seeded())
    student = ExactStudent(teacher, times, offsets=(1, 2, 3, 4), clip=clip)
    expected = sample(teacher, x, times, clip=clip)
    torch.testing.assert_close(sample(student, x, times[::4]), expected, rtol=1e-11, atol=1e-11)


@every_schedule
@every_reading
@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("merged", [2, 4])
def test_exact_students_of_heun_steps_sample_what_heun_samples(schedule, reads, clip, merged):
    """One DDIM step of theirs lands where so many of Heun's land, the last of which is DDIM."""
    teacher, top = wobbly_teacher(schedule, reads), 0.9 if isinstance(reads, Eps) else 1.0
    times, noise = tuple(top * t for t in uniform(8)), torch.randn(3, 2, 5, generator=seeded())
    expected = sample(teacher, noise, times, heun, clip=clip)
    offsets = tuple(range(1, merged + 1))
    student = ExactStudent(teacher, times, offsets=offsets, clip=clip, solver="heun")
    actual = sample(student, noise, times[::merged])
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
    assert (expected - sample(teacher, noise, times, clip=clip)).abs().max() > 1e-4


def test_only_the_first_student_has_heuns_targets():
    teacher = DenoiserOnly(wobbly_teacher(Cosine(), V()))
    method = Progressive(start=8, first=2, solver="heun", updates=(1,))
    stages, plan = list(method.stages(teacher)), method.plan(teacher)
    assert [s.objective.solver for s in stages] == ["heun", "ddim"]
    assert [p.forwards for p in plan] == [11, 5] == [s.objective.forwards for s in stages]
    exact = ExactRows(teacher.denoiser, uniform(8), offsets=(1, 2, 3, 4), solver="heun")
    batch, draw = Batch(torch.randn(5, 2, 3, generator=seeded())), Draw.all(seeded(1), 5)
    assert stages[0].objective(exact, batch, draw).max() < 1e-20


def test_heun_is_for_teachers_that_it_samples():
    heun = Progressive(start=4, solver="heun", target_clip=0.5)
    teacher = wobbly_teacher(Cosine(), V())
    with pytest.raises(ConfigError, match="only DDIM"):
        heun.check(DenoiserOnly(teacher, clip=0.5, clipping="x0"))
    with pytest.raises(ConfigError, match="leave solver out"):
        Progressive(start=4, solver="heun").check(DenoiserOnly(teacher, times=(uniform(4),)))


@pytest.mark.parametrize("first", [8, 4, 2, 1])
def test_the_first_student_may_merge_more_steps(first):
    """Its loss is that of an exact student, and the plan has its cost."""
    teacher = wobbly_teacher(Cosine(), V())
    method = Progressive(start=16, first=first, updates=(3,))
    stage, *others = method.stages(DenoiserOnly(teacher))
    merged = 16 // first
    assert stage.name == f"{first:04d}-steps" and stage.times == uniform(first)
    assert method.plan(DenoiserOnly(teacher))[0].forwards == stage.objective.forwards == 3 + merged
    batch, draw = Batch(torch.randn(5, 2, 3, generator=seeded())), Draw.all(seeded(1), 5)
    exact = ExactRows(teacher, uniform(16), offsets=tuple(range(1, merged + 1)))
    assert stage.objective(exact, batch, draw).max() < 1e-20
    counted = Counted(teacher)
    replace(stage.objective, teacher=counted)(stage.student, batch, Draw.all(seeded(1), 5))
    assert counted.calls == merged
    assert [other.objective.forwards for other in others] == [5] * len(others)


def test_a_first_student_that_halving_does_not_reach_is_refused():
    for first in (3, 16, 32):
        with pytest.raises(ConfigError, match="8 or 4 or 2"):
            Progressive(start=16, stop=2, first=first)


@every_schedule
def test_exact_students_of_clipped_targets_sample_what_the_clipping_sampler_does(schedule):
    """Without clipping anything themselves; the bound is such that the teacher meets it everywhere."""
    teacher, times, bound = wobbly_teacher(schedule, X0()), uniform(16), 0.3
    noise = torch.randn(3, 2, 5, generator=seeded())
    expected, student = sample(teacher, noise, times, clip=bound), teacher
    assert (expected - sample(teacher, noise, times).clamp(-bound, bound)).abs().max() > 1e-3
    while len(times) > 2:
        student, times = ExactStudent(student, times, clip=bound), times[::2]
        torch.testing.assert_close(sample(student, noise, times), expected, rtol=1e-11, atol=1e-11)


def test_halving_learns_clipped_targets_where_it_is_told_to():
    teacher, bound = wobbly_teacher(Cosine(), V()), 0.3
    batch, losses = Batch(torch.randn(5, 2, 3, generator=seeded())), {}
    for target_clip in (0.0, bound):
        (stage,) = Progressive(start=4, stop=2, target_clip=target_clip).stages(
            DenoiserOnly(teacher)
        )
        exact = ExactRows(teacher, uniform(4), clip=bound)
        losses[target_clip] = stage.objective(exact, batch, Draw.all(seeded(1), 5))
    assert losses[bound].max() < 1e-20 < 1e-3 < losses[0.0].max()


def test_errors_that_a_clipping_sampler_never_sees_cost_nothing():
    """Pixel by pixel: target on the bound or within it, guess within, on or behind it."""
    target, guess = (0.5, -0.5, 0.5, -0.5, 0.2), (0.9, -0.9, -0.9, -0.2, 0.9)
    x_t, level = torch.full((1, 5), 0.1), Level(torch.tensor(0.6), torch.tensor(0.8))
    guess, target = (Prediction.from_x0(torch.tensor([x]), x_t, level) for x in (guess, target))
    guess.x0.requires_grad_()
    result = forgiven(guess, target, 0.5)
    missed = (result.x0 - target.x0)[0].tolist()
    assert missed == pytest.approx([0, 0, -1.4, 0.3, 0.7])
    assert (result.eps - target.eps)[0].tolist() == pytest.approx([-0.75 * miss for miss in missed])
    result.x0.sum().backward()
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


@pytest.mark.parametrize("target_clip", [-1.0, float("inf"), float("nan")])
def test_a_clipping_that_is_none_is_refused(target_clip):
    with pytest.raises(ConfigError, match="target_clip"):
        Progressive(start=4, stop=1, target_clip=target_clip)


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
    expected = sample(teacher, noise, times)
    samples = halve_to_the_end(teacher, times, noise, right)
    assert list(samples) == [steps // 2**k for k in range(1, steps.bit_length())]
    for actual in samples.values():
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    # and the same check rejects the wrong target
    for n, actual in halve_to_the_end(teacher, times, noise, mid_point).items():
        assert (actual - expected).abs().max() > 1e-5, n


@pytest.mark.parametrize("steps, expected", [(1024, 0.499247552), (16, 0.453926567)])
def test_invariant_of_the_official_code(steps, expected):
    teacher, one = gaussian_teacher(Cosine(), 0.0, 0.5), torch.ones(1, 1)
    for actual in halve_to_the_end(teacher, uniform(steps), one, right).values():
        assert actual.item() == pytest.approx(expected, abs=6e-10)


def test_without_the_last_step_rule():
    """distillation-checks.md 38: what an implementation without the rule at i = 0 would give."""
    teacher, one = gaussian_teacher(Cosine(), 0.0, 0.5), torch.ones(1, 1)
    actual = halve_to_the_end(teacher, uniform(16), one, without_last_step_rule)
    expected = {8: 0.453922692, 4: 0.453915782, 2: 0.453905230, 1: 0.453889291}
    assert {n: x.item() for n, x in actual.items()} == pytest.approx(expected, abs=6e-10)


def test_wrong_target_detector():
    """distillation-checks.md 39: the mid-point mistake is seen, with the numbers it is known by."""
    teacher, one = gaussian_teacher(Cosine(), 0.0, 0.5), torch.ones(1, 1)
    actual = halve_to_the_end(teacher, uniform(1024), one, mid_point)
    expected = {512: 0.499974952, 64: 0.509288, 8: 0.558574, 4: 0.588851, 1: 0.615418}
    for n, value in expected.items():
        assert actual[n].item() == pytest.approx(value, abs=6e-7)
        assert abs(actual[n].item() - 0.499247552) > 1e-4
