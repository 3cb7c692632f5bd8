"""Distillation for the stochastic sampler: objective, stages, options and pipelines."""

import re

import pytest
import torch

from halfstep.batch import Batch, Cond
from halfstep.diffusion.denoiser import Denoiser, level_of, NetTime
from halfstep.diffusion.loss_weighting import constant, snr_plus_one, truncated_snr
from halfstep.diffusion.prediction import Clip, V, X0
from halfstep.diffusion.samplers import sample, stochastic
from halfstep.diffusion.schedules import Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import karras, uniform
from halfstep.errors import ConfigError
from halfstep.methods import (
    DenoiserOnly,
    METHODS,
    Progressive,
    Reparameterise,
    Stochastic,
)
from halfstep.methods.diffusion.stochastic import HalveJumps
from halfstep.pipeline import Pipeline
from halfstep.rng import Draw, sample_noise
from halfstep.training import distill, TrainingConfig
from tests.support.denoisers import Listening, named, SCHEDULES, seeded, wobbly_teacher
from tests.support.students import (
    draw_of,
    ExactRows,
    random_pipeline,
)

pytestmark = pytest.mark.usefixtures("float64")
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
SMOOTH = [Cosine(), VPLinear(), RectifiedFlow(), Karras()]


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
        level_t = level_of(Cosine(), t, x0[:1])
        x_t = level_t.mix(x0[row : row + 1], z[row : row + 1])
        first = teacher(x_t, t)
        if k + 2 == 2 * n:  # i = 1: one step of the teacher
            expected = first.x0
        else:
            mid, end = (torch.tensor([times[k + j]]) for j in (2, 4))
            middle, level_s = (level_of(Cosine(), s, x0[:1]) for s in (mid, end))
            x_mid = middle.mix(first.x0, first.eps)
            second = teacher(x_mid, mid)
            r = level_s.sigma / level_t.sigma
            x_end = level_s.mix(second.x0, second.eps)
            expected = (x_end - r * x_t) / (level_s.alpha - r * level_t.alpha)
            if k + 4 == 2 * n:  # i = 2
                expected = second.x0
        x_err = (student(x_t, t).x0 - expected).square().mean()
        snr = Cosine().at(t).logsnr.exp()
        weight = {constant: 1, truncated_snr: snr.clamp(min=1), snr_plus_one: snr + 1}[weighting]
        torch.testing.assert_close(loss[row], (weight * x_err).squeeze(), rtol=1e-9, atol=1e-12)


def test_times_that_are_drawn():
    """t in {1/N, ..., 1}, all equally often; the second call at t - 1/N, and at t itself for t = 1/N."""
    net = Listening()
    teacher = Denoiser(net, Cosine(), V(), time=NetTime(scale=1.0))
    n = 4000
    HalveJumps(teacher, uniform(8))(
        wobbly_teacher(Cosine(), V()), Batch(torch.zeros(n, 1)), draw_of(0, n)
    )
    first, second = net.times
    values, counts = first.unique(return_counts=True)
    assert values.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert bool(((counts / n - 0.25).abs() < 4 * (0.1875 / n) ** 0.5).all())
    expected = torch.where(first == 0.25, first, first - 0.25)
    torch.testing.assert_close(second, expected, rtol=0, atol=0)


@every_schedule
def test_the_objective_is_zero_for_the_exact_student_alone(schedule):
    teacher, times = wobbly_teacher(schedule, V()), uniform(8)

    batch = Batch(torch.rand(32, 3, generator=seeded()) * 2 - 1)
    assert (
        HalveJumps(teacher, times, constant)(
            ExactRows(teacher, times, (2, 4)), batch, draw_of(1, 32)
        ).max()
        < 1e-18
    )
    assert HalveJumps(teacher, times, constant)(teacher, batch, draw_of(1, 32)).mean() > 1e-4


def test_the_condition_goes_to_all_three_calls():
    spies = [Denoiser(Listening(), Cosine(), V()) for _ in range(2)]
    cond = Cond(label=torch.tensor([3, 1]))
    loss = HalveJumps(spies[0], uniform(4))(spies[1], Batch(torch.ones(2, 3), cond), draw_of(0, 2))
    heard = [c for spy in spies for c in spy.net.conditions]
    assert len(heard) == 3 and all(c is cond for c in heard)
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


@pytest.mark.parametrize("stop", [1, 2])
def test_stages_end_at_two_steps(stop):
    teacher, names = wobbly_teacher(Cosine(), V()), []
    method = Stochastic(start=16, stop=stop, updates=(10,))
    for stage in method.stages(DenoiserOnly(teacher)):
        assert stage.objective.teacher is teacher and stage.student is not teacher
        assert stage.times == stage.objective.times[::2] and stage.sampler == "stochastic"
        assert torch.equal(stage.student.net.gain, teacher.net.gain)
        assert not teacher.training and stage.student.training
        teacher = stage.student
        names.append((stage.name, stage.updates))
    assert names == [("0008-steps", 10), ("0004-steps", 10), ("0002-steps", 20)]
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
    grid_of_four = (0.9, 0.5, 0.44, 0.2, 0.0)
    [stage] = Stochastic(start=4, times=grid_of_four).stages(
        DenoiserOnly(wobbly_teacher(VPLinear(), V()))
    )
    assert stage.times == (0.9, 0.44, 0.0)


@pytest.mark.parametrize("stop", [1, 2])
def test_from_two_steps_there_is_nothing_to_halve(stop):
    with pytest.raises(ConfigError, match="write start=4"):
        Stochastic(start=2, stop=stop)
    assert Stochastic(start=4, stop=stop).counts == [2]


def test_updates_are_those_of_the_halvings_there_are():
    assert Stochastic(start=8, stop=1, updates=(1, 2)).counts == [4, 2]
    with pytest.raises(ConfigError, match="3 numbers for 2 students"):
        Stochastic(start=8, stop=1, updates=(1, 2, 3))


def test_other_refusals_are_progressives():
    with pytest.raises(ConfigError, match="power of two"):
        Stochastic(start=12, stop=4)
    with pytest.raises(ConfigError, match="vanishes"):
        Stochastic(weighting="snr")


def test_a_student_of_ddim_is_refused_by_the_stochastic_sampler():
    with pytest.raises(ConfigError, match=r"too little variance.*sampler='ddim'") as refusal:
        random_pipeline(times=(uniform(4),)).sample(1, sampler="stochastic")
    verb, name = re.search(r"halfstep (\w+) (\w+)\)", str(refusal.value)).groups()
    assert verb == "distill" and name in METHODS


@pytest.mark.parametrize(
    "sampler", ["ddim", "heun", "dpmpp-2m", "ancestral", "dpm-fast", "diffusers:DDIMScheduler"]
)
def test_a_stochastic_student_is_refused_by_every_other_sampler(sampler):
    made = random_pipeline(times=(uniform(4),), sampler="stochastic")
    with pytest.raises(ConfigError, match=f"'{sampler}' would.*='stochastic'"):
        made.sample(1, sampler=sampler)


def test_a_teacher_takes_both():
    made = random_pipeline()
    a, b = (made.sample(2, steps=4, sampler=name) for name in ("ddim", "stochastic"))
    assert not torch.equal(a, b) and bool(b.isfinite().all())
    assert made.sampler == "ddim" and made.grid(4, "stochastic") == uniform(4)


@pytest.mark.parametrize("batch, first", [(256, 0), (2, 0), (1, 3)])
def test_a_pipeline_samples_by_it(batch, first):
    made = random_pipeline(times=(uniform(4),), sampler="stochastic")
    ids = range(first, 5)

    def fresh(like, step):
        return sample_noise(6, ids, (2,), step=step)

    z = sample_noise(6, ids, (2,))
    expected = sample(made.denoiser, z, uniform(4), stochastic(uniform(4), Cosine(), fresh))
    actual = made.sample(5 - first, seed=6, batch=batch, first=first)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)
    assert torch.equal(
        actual, made.sample(5 - first, seed=6, batch=batch, first=first, sampler="stochastic")
    )


def test_the_student_of_two_steps_is_the_student_of_one():
    made = random_pipeline(times=(uniform(4), uniform(2)), sampler="stochastic")
    assert made.grid() == uniform(2) and made.grid(1) == (1.0, 0.0)
    z = sample_noise(0, range(3), (2,))
    torch.testing.assert_close(made.sample(3, steps=1), made.denoiser(z, torch.ones(3)).x0)
    with pytest.raises(ConfigError, match="it can take 4"):
        random_pipeline(times=(uniform(4),), sampler="stochastic").grid(1)
    with pytest.raises(ConfigError, match="not distilled"):
        random_pipeline(times=(uniform(2),)).grid(1)


def test_what_it_is_made_for_is_saved_where_it_is_unusual(tmp_path):
    made = random_pipeline(times=(uniform(4),), sampler="stochastic")
    assert made.describe()["sampler"] == "stochastic"
    made.save(tmp_path)
    back = Pipeline.load(tmp_path)
    assert back.sampler == "stochastic" and back.grid() == uniform(4)
    torch.testing.assert_close(back.sample(2), made.sample(2), rtol=0, atol=2e-5)
    assert "sampler" not in random_pipeline(times=(uniform(4),)).describe()


def test_a_run_marks_its_students_and_no_other_method_takes_them(tmp_path):
    few = TrainingConfig(batch_size=8, save_every=2, log_every=2)
    method = Stochastic(start=8, stop=1, updates=(2,))
    student = distill(random_pipeline(), "two-moons", tmp_path / "s", method=method, training=few)
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
        words = r"student for sampler 'stochastic'.*'ddim'|would be asked at every time"
        with pytest.raises(ConfigError, match=words):
            distill(four, "two-moons", tmp_path / "u", method=other, training=few)
    with pytest.raises(ConfigError, match=r"'ddim'.*'stochastic'"):
        plain = random_pipeline(times=(uniform(4),))
        distill(plain, "two-moons", tmp_path / "u", method=method, training=few)
    assert not (tmp_path / "u").exists()


@pytest.mark.parametrize("target_clip, clip", [(0.0, None), (0.3, Clip(0.3))])
def test_targets_are_clipped_where_it_is_told_to(target_clip, clip):
    (stage,) = Stochastic(start=4, stop=2, target_clip=target_clip).stages(
        DenoiserOnly(wobbly_teacher(Cosine(), V()))
    )
    assert stage.objective.clip == clip
