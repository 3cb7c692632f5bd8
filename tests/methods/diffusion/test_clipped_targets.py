"""Targets of a teacher whose sampler clips x0 and leaves eps: one step lands where its two land."""

from dataclasses import replace

import pytest
import torch

from halfstep import distill
from halfstep.batch import Batch
from halfstep.diffusion.denoiser import Denoiser, level_of, NetTime
from halfstep.diffusion.prediction import Clip, V, X0
from halfstep.diffusion.samplers import sample
from halfstep.diffusion.schedules import Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.methods import (
    DenoiserOnly,
    GuidedDistillation,
    Progressive,
    Stochastic,
    two_step_target,
)
from halfstep.rng import Draw
from halfstep.training import TrainingConfig
from tests.support.denoisers import named, READS, SCHEDULES, seeded, Wobbly, wobbly_teacher
from tests.support.students import ExactRows, ExactStudent, random_pipeline

ALONE = Clip(0.3, "x0")
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=named)


def randn(*shape):
    return torch.randn(*shape, generator=seeded(), dtype=torch.float64)


def batch_of(n):
    return Batch(torch.randn(n, 2, 3, generator=seeded(), dtype=torch.float64))


def places(*times, rows=3):
    return tuple(torch.full((rows,), t, dtype=torch.float64) for t in times)


@every_schedule
@pytest.mark.parametrize("reads", READS, ids=named)
def test_one_step_lands_where_two_clipped_steps_land(schedule, reads):
    teacher, x = wobbly_teacher(schedule, reads), randn(3, 2, 5)
    level = schedule.at(torch.tensor(0.75, dtype=torch.float64))
    for times in ((0.75, 0.5, 0.25), (0.75, 0.3, 0.0), (0.75, 0.7495, 0.749)):
        start = x if schedule.variance_preserving else x * level.sigma
        target = two_step_target(teacher, start, *places(*times), clip=ALONE)
        torch.testing.assert_close(level.mix(target.x0, target.eps), start, rtol=1e-9, atol=1e-9)
        landed = sample(constantly(target, schedule), x, times[::2])
        expected = sample(teacher, x, times, clip=ALONE)
        torch.testing.assert_close(landed, expected, rtol=1e-9, atol=1e-9)
        assert (expected - sample(teacher, x, times)).abs().max() > 1e-5


def constantly(target, schedule):
    """A denoiser that predicts this."""

    class Constant:
        def __call__(self, x_t, t, cond=None):
            return target

    constant = Constant()
    constant.schedule = schedule
    return constant


@every_schedule
def test_exact_students_sample_what_the_clipping_sampler_does(schedule):
    """16 steps halved to 1: only the first teacher is sampled clipped."""
    student = teacher = wobbly_teacher(schedule, X0())
    times, clip, noise = uniform(16), ALONE, randn(3, 2, 5)
    expected = sample(teacher, noise, times, clip=ALONE)
    while len(times) > 2:
        student, times, clip = ExactStudent(student, times, clip=clip), times[::2], None
        torch.testing.assert_close(sample(student, noise, times), expected, rtol=1e-9, atol=1e-9)


@every_schedule
def test_the_target_is_that_of_algorithm_2(schedule):
    teacher, x = wobbly_teacher(schedule, V()), randn(3, 2, 5)
    t, mid, end = places(0.8, 0.6, 0.4)
    start, middle, last = (level_of(schedule, s, x) for s in (t, mid, end))
    first = ALONE(teacher(x, t), x, start)
    x_mid = middle.mix(first.x0, first.eps)
    second = ALONE(teacher(x_mid, mid), x_mid, middle)
    ratio = last.sigma / start.sigma
    x0 = (last.mix(second.x0, second.eps) - ratio * x) / (last.alpha - ratio * start.alpha)
    target = two_step_target(teacher, x, t, mid, end, clip=ALONE)
    torch.testing.assert_close(target.x0, x0, rtol=1e-9, atol=1e-9)
    eps = (x - start.alpha * x0) / start.sigma
    torch.testing.assert_close(target.eps, eps, rtol=1e-9, atol=1e-9)


def test_a_float32_target_of_short_steps_lands_to_its_rounding():
    """From 1024 steps a clipped x0 moves the target by hundreds of times its distance to the bound."""
    teacher, x = wobbly_teacher(Cosine(), V()), randn(64, 2, 5)
    times = uniform(1024)[500:503]
    exact = sample(teacher, x, times, clip=ALONE)
    target = two_step_target(teacher, x.float(), *places(*times, rows=64), clip=ALONE)
    end = Cosine().at(torch.tensor(times[-1], dtype=torch.float64))
    landed = end.mix(target.x0.double(), target.eps.double())
    assert target.x0.dtype == torch.float32 and target.x0.abs().max() > 100
    assert (landed - exact).abs().max() < 1e-4


def test_a_bound_that_nothing_meets_changes_no_bit():
    teacher, x = wobbly_teacher(Cosine(), V()), randn(3, 2, 5)
    free = two_step_target(teacher, x, *places(0.8, 0.6, 0.4))
    wide = two_step_target(teacher, x, *places(0.8, 0.6, 0.4), clip=Clip(99.0, "x0"))
    assert torch.equal(free.x0, wide.x0) and torch.equal(free.eps, wide.eps)


@every_schedule
def test_a_first_step_without_length_moves_nothing(schedule):
    """The last jump of the stochastic student is one step."""
    teacher, x = wobbly_teacher(schedule, V()), randn(3, 2, 5)
    for end in (0.2, 0.0):
        target = two_step_target(teacher, x, *places(0.5, 0.5, end), clip=ALONE)
        start = x if schedule.variance_preserving else x / schedule.at(places(0.5)[0][0]).sigma
        landed = sample(constantly(target, schedule), start, (0.5, end))
        expected = sample(teacher, start, (0.5, end), clip=ALONE)
        torch.testing.assert_close(landed, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method, offsets", [(Progressive, (1, 2)), (Stochastic, (2, 4))])
def test_halvings_clip_their_first_teacher_alone(method, offsets):
    """Its students are sampled unclipped, as their x0 may lie beyond the bound."""
    teacher = wobbly_teacher(Cosine(), V())
    like = DenoiserOnly(teacher, clip=0.3, clipping="x0")
    four = method(start=8, stop=2, target_clip=0.3)
    clips = [(stage.objective.clip, stage.clips) for stage in four.stages(like)]
    assert clips == [(ALONE, False), (None, False)]
    assert [stage.clips for stage in four.plan(like)] == [False, False]
    both = replace(like, clipping="x0-and-eps")
    clips = [(stage.objective.clip, stage.clips) for stage in four.stages(both)]
    assert clips == [(Clip(0.3), True)] * 2
    free = method(start=8, stop=2)
    assert all(stage.clips and stage.objective.clip is None for stage in free.stages(like))


def test_an_error_beyond_the_bound_counts():
    """The student's sampler clips nothing."""
    teacher, method = wobbly_teacher(Cosine(), V()), Progressive(start=4, stop=2, target_clip=0.3)
    [stage] = method.stages(DenoiserOnly(teacher, clip=0.3, clipping="x0"))
    draw = Draw.all(seeded(1), 5)
    exact = ExactRows(teacher, uniform(4), clip=ALONE)
    assert stage.objective(exact, batch_of(5), draw).max() < 1e-18
    beyond, clip = Denoiser(Beyond(), Cosine(), X0(), time=NetTime(scale=1.0)), Clip(0.25, "x0")
    times = (0.5, 0.25, 0.0)
    target = two_step_target(beyond, batch_of(5).x0, *places(*times, rows=5), clip=clip)
    assert (target.x0 == 0.25).all()  # to the bit, or it would not be forgiven in any case
    objective = replace(stage.objective, teacher=beyond, times=times, clip=clip)
    assert objective(beyond, batch_of(5), draw).min() > 0.01


class Beyond(Wobbly):
    """x0 is beyond the bound everywhere."""

    def forward(self, x, t, cond=None):
        return torch.ones_like(x)


def test_a_guided_distillation_clips_its_halvings_so():
    teacher = random_pipeline(class_names=("a", "b"), null=2, clip=0.3, clipping="x0")
    halving = Progressive(start=4, stop=2, updates=(1,), target_clip=0.3)
    method = GuidedDistillation(halving=halving, guidance_embed_dim=4)
    first, second = method.stages(teacher)
    assert first.clips and not second.clips and second.objective.objective.clip == ALONE


def test_a_student_of_such_targets_is_saved_and_sampled_unclipped(tmp_path):
    teacher = random_pipeline(clip=0.3, clipping="x0")
    few = TrainingConfig(batch_size=4)
    method = Progressive(start=4, stop=2, updates=(1,), target_clip=0.3)
    student = distill(teacher, "two-moons", tmp_path / "run", method=method, training=few)
    assert student.clip is None and student.clipping == "x0-and-eps"
    with pytest.raises(ConfigError, match="clips nothing: write target_clip=0"):
        Progressive(start=2, updates=(1,), target_clip=0.3).check(student)
