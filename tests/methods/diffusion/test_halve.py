"""The objective of a halving, and trained students with a known optimum."""

import pytest
import torch

from halfstep.batch import Batch, Cond
from halfstep.diffusion.analytic import gaussian_teacher
from halfstep.diffusion.denoiser import Denoiser, level_of, NetTime
from halfstep.diffusion.loss_weighting import constant, snr_plus_one, truncated_snr
from halfstep.diffusion.prediction import V, X0
from halfstep.diffusion.samplers import sample
from halfstep.diffusion.schedules import (
    Cosine,
    Karras,
    RectifiedFlow,
    VPLinear,
)
from halfstep.diffusion.time_grids import uniform
from halfstep.methods import (
    DenoiserOnly,
    Progressive,
)
from halfstep.methods.diffusion.matching import on_grid
from halfstep.methods.diffusion.progressive import Halve
from halfstep.rng import Draw
from tests.support.denoisers import (
    Listening,
    named,
    READS,
    SCHEDULES,
    seeded,
    wobbly_teacher,
)
from tests.support.students import (
    draw_of,
    gaussian_data,
    halved,
    mid_point,
    right,
    train,
    without_last_step_rule,
    zero_student,
)

pytestmark = pytest.mark.usefixtures("float64")
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
every_reading = pytest.mark.parametrize("reads", READS, ids=named)


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
    expected = without_last_step_rule(teacher, x_t, t, mid, end)
    expected = torch.where(
        (end == 0).reshape(-1, 1, 1, 1), mid_point(teacher, x_t, t, mid, end), expected
    )
    x_err = (student(x_t, t).x0 - expected).square().mean((1, 2, 3))
    snr = Cosine().at(t).logsnr.exp()
    weight = {constant: 1, truncated_snr: snr.clamp(min=1), snr_plus_one: snr + 1}[weighting]
    assert loss.shape == (b,)
    torch.testing.assert_close(loss, weight * x_err, rtol=1e-9, atol=1e-12)


def test_halve_draws_every_time_of_the_student_and_no_other():
    """distillation-checks.md 50: t in {1/N, ..., 1}, never 0, all equally often."""
    net = Listening()
    teacher = Denoiser(net, Cosine(), V(), time=NetTime(scale=1.0))
    student = wobbly_teacher(Cosine(), V())
    n = 4000
    Halve(teacher, uniform(8))(student, Batch(torch.zeros(n, 1)), draw_of(0, n))
    first, second = net.times
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
    spies = [Denoiser(Listening(), Cosine(), V()) for _ in range(2)]
    cond = Cond(label=torch.tensor([3, 1]))
    Halve(spies[0], uniform(2))(spies[1], Batch(torch.ones(2, 3), cond), draw_of(0, 2))
    heard = [c for spy in spies for c in spy.net.conditions]
    assert len(heard) == 3 and all(c is cond for c in heard)


def test_forwards():
    """Two teacher forwards, and a forward and backward, which cost three."""
    assert Halve(wobbly_teacher(Cosine(), V()), uniform(2)).forwards == 5


def test_on_grid():
    t, other = on_grid((1.0, 0.4, 0.0), torch.tensor([0, 2]), torch.tensor([1, 1]))
    assert t.tolist() == [1.0, 0.0] and other.tolist() == [0.4, 0.4]
    assert t.dtype == torch.float64


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), VPLinear(), Karras()], ids=named)
def test_student_reaches_the_closed_form(schedule):
    """The best 4-step student of an analytic teacher is known: it equals 8 teacher steps."""
    teacher = gaussian_teacher(schedule).freeze()
    student = zero_student(uniform(4), schedule)
    noise = torch.randn(512, 2, generator=seeded(7))
    expected = sample(teacher, noise, uniform(8))
    assert (sample(student, noise, uniform(4)) - expected).abs().max() > 0.1
    if schedule == Karras():  # x is 80 wide at t = 1: start where the answer is, up to a nudge
        exact = halved(teacher, uniform(8), right)
        with torch.no_grad():
            student.net.a.copy_(exact.net.a * 1.01)
            student.net.b.copy_(exact.net.b + 0.02)
        assert (sample(student, noise, uniform(4)) - expected).abs().max() > 0.01
        train(student, Halve(teacher, uniform(8), constant), gaussian_data, 600, 2e-3)
    else:
        train(student, Halve(teacher, uniform(8)), gaussian_data, 500, 0.05)
    torch.testing.assert_close(sample(student, noise, uniform(4)), expected, rtol=0, atol=1e-3)


def test_sixteen_steps_to_one():
    """The whole method: each stage's student, trained, is the next one's teacher."""
    teacher = zero_student(uniform(16), Cosine())
    exact = halved(gaussian_teacher(Cosine()), uniform(32), right)
    teacher.load_state_dict(exact.state_dict())
    noise = torch.randn(300, 2, generator=seeded(7))
    expected = sample(teacher, noise, uniform(16))
    untrained = sample(teacher, noise, uniform(1))
    assert (untrained - expected).abs().max() > 0.3
    names = []
    for stage in Progressive(start=16, stop=1, updates=(250,)).stages(DenoiserOnly(teacher)):
        train(stage.student, stage.objective, gaussian_data, stage.updates, 0.05)
        actual = sample(stage.student, noise, stage.times)
        torch.testing.assert_close(actual, expected, rtol=0, atol=5e-3)
        names.append(stage.name)
    assert names == ["0008-steps", "0004-steps", "0002-steps", "0001-steps"]
