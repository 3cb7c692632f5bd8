"""Parallel decoding as a method: options, plans, runs, and what it refuses."""

import re
from dataclasses import replace

import pytest
import torch

from halfstep.data import NoData
from halfstep.data.sources.toy import two_moons
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.prediction import Eps, V
from halfstep.diffusion.samplers import InBlocks, sample
from halfstep.diffusion.schedules import BetaTable, Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.methods import DenoiserOnly, METHODS, ParallelDecoding
from halfstep.models import build, recipe
from halfstep.pipeline import Pipeline
from halfstep.rng import sample_noise
from halfstep.training import distill, TrainingConfig
from halfstep.training.lora_run import check_lora
from tests.support.runs import bits, halted, halve, teacher
from tests.support.students import random_pipeline

FEW = TrainingConfig(batch_size=8)
SMALL = ParallelDecoding(start=8, first=4, stop=1, updates=(3,))


def test_options():
    assert METHODS["parallel-decoding"] is ParallelDecoding
    method = ParallelDecoding(start=24, first=12, stop=3)
    assert method.counts == [12, 6, 3]
    assert method.summary() == "12, 6 and 3 steps in blocks of 24 heads"
    [plan] = SMALL.plan(random_pipeline())
    assert (plan.name, plan.updates, plan.forwards, plan.steps) == ("parallel-decoding", 3, 4, 1)
    assert plan.grids == (uniform(4), uniform(2), uniform(1)) and plan.teacher_times == uniform(8)


def test_updates_by_the_data_are_those_of_the_halvings():
    sized = ParallelDecoding().sized(random_pipeline(), 2_900)
    assert sized.updates == (6 * 190,)  # 8, 4, and twice 2 and 1
    assert replace(SMALL, updates=(5,)).sized(random_pipeline(), 2_900).updates == (5,)
    assert SMALL.with_updates(random_pipeline(), [7]).updates == (7,)
    [plan] = SMALL.with_budget(random_pipeline(), 64 * 4 * 1000, 64).plan(random_pipeline())
    assert plan.updates == 1000


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"start": 12, "first": 8}, "multiple"),
        ({"first": 8, "stop": 3}, "halve"),
        ({"updates": (3, 4, 5, 6)}, "one student"),
        ({"start": 2048, "first": 8}, "1024"),
        ({"weighting": "snr"}, "vanishes"),
        ({"solver": "heun"}, "solver"),
        ({"points": "walk"}, "points"),
        ({"times": (1.0, 0.0)}, "entries"),
    ],
)
def test_options_that_are_refused(options, word):
    with pytest.raises(ConfigError, match=re.escape(word)):
        ParallelDecoding(**options)


def test_the_student_is_its_teacher_with_heads():
    teacher = random_pipeline()
    [stage] = SMALL.stages(teacher)
    assert recipe(stage.student.net)[1]["output_heads"] == 8
    assert stage.sampler == "parallel-decoding" and stage.fine_times == uniform(8)
    noise = sample_noise(0, range(3), (2,))
    walk = sample(teacher.denoiser, noise, uniform(1))
    got = sample(InBlocks(stage.student, uniform(1), uniform(8)), noise, uniform(1))
    torch.testing.assert_close(got, walk, rtol=1e-5, atol=1e-5)


def test_teachers_that_are_refused():
    student = replace(random_pipeline(), times=(uniform(8),))
    SMALL.check(student)  # of as many DDIM steps as there are fine ones
    with pytest.raises(ConfigError, match="student of 8 steps"):
        replace(SMALL, solver="midpoint").check(student)
    with pytest.raises(ConfigError, match="its own grid"):
        replace(SMALL, start=16).check(student)
    with pytest.raises(ConfigError, match="sampler 'stochastic'"):
        SMALL.check(replace(student, sampler="stochastic"))
    clipped = replace(random_pipeline(), clip=1.0)
    with pytest.raises(ConfigError, match="target_clip"):
        replace(SMALL, target_clip=0.5).check(clipped)
    with pytest.raises(ConfigError, match="adapter"):
        check_lora(SMALL, random_pipeline())


@pytest.mark.parametrize(
    "method",
    [
        SMALL,
        replace(SMALL, solver="midpoint"),
        replace(SMALL, points="noise"),
        replace(SMALL, target_clip=1.0),
    ],
    ids=["euler", "midpoint", "noise", "clip"],
)
def test_a_run_resumes_to_the_bit(tmp_path, method):
    made = {"method": replace(method, updates=(9,)), "save_every": 4}
    made["pipeline"] = replace(teacher(), clip=1.0 if method.target_clip else None)
    whole = halve(tmp_path / "a", **made)
    halted(tmp_path / "b", "parallel-decoding", 7, **made)
    halve(tmp_path / "b", **made)
    assert bits(tmp_path / "b") == bits(tmp_path / "a")
    assert whole.step_counts == (4, 2, 1) and whole.fine_times == uniform(8)
    loaded = Pipeline.load(tmp_path / "a" / "stages" / "parallel-decoding")
    for steps in (1, 2, 3, 4):
        assert torch.equal(loaded.sample(5, steps=steps), whole.sample(5, steps=steps))


def test_without_data_the_student_walks(tmp_path):
    student = distill(random_pipeline(), "none:student", tmp_path / "r", method=SMALL, training=FEW)
    assert len(student.sample(2, steps=4)) == 2
    # Data change nothing where the trajectory is the student's own.
    own = distill(
        random_pipeline(),
        "two-moons",
        tmp_path / "o",
        method=replace(SMALL, points="noise"),
        training=FEW,
    )
    assert torch.equal(own.sample(2), student.sample(2))
    with pytest.raises(ConfigError, match="none:student"):
        distill(random_pipeline(), NoData(), tmp_path / "t", method=SMALL, training=FEW)


def test_a_guided_teacher_is_folded_in(tmp_path):
    """Labels, and a teacher with guidance around it: two calls for one."""
    torch.manual_seed(0)
    net = build("mlp", {"width": 16, "depth": 1, "num_classes": 3})
    guided = Guided(Denoiser(net, Cosine(), V()), 2.0, 2)
    teacher = DenoiserOnly(guided, 2)
    [stage] = SMALL.stages(teacher)
    assert stage.objective.forwards == 5 and SMALL.plan(teacher)[0].forwards == 5


def test_a_teacher_that_takes_its_scale_has_such_a_student(tmp_path):
    torch.manual_seed(0)
    net = build("mlp", {"width": 16, "depth": 1, "num_classes": 3, "guidance_embed_dim": 8})
    teacher = Pipeline(
        Denoiser(net, Cosine(), V()).freeze(),
        (2,),
        class_names=("a", "b"),
        null=2,
        guidance_range=(1.0, 3.0),
    )
    student = distill(teacher, two_moons(64), tmp_path / "r", method=SMALL, training=FEW)
    assert student.guidance_range == (1.0, 3.0)
    one, three = (student.sample(4, steps=2, guidance_scale=s) for s in (1.0, 3.0))
    assert one.shape == three.shape == (4, 2) and not torch.equal(one, three)


def test_an_eps_teacher_becomes_a_v_teacher_first(tmp_path):
    teacher = random_pipeline(Eps())
    assert [stage.name for stage in SMALL.plan(teacher)] == ["v-teacher", "parallel-decoding"]
    student = distill(teacher, "two-moons", tmp_path / "r", method=SMALL, training=FEW)
    assert isinstance(student.denoiser.parameterisation, V)


def test_tables_and_their_gap():
    teacher = random_pipeline()
    table = BetaTable("scaled_linear", 1000, 0.00085, 0.012, zero_snr=True)
    old = teacher.denoiser
    teacher = replace(teacher, denoiser=Denoiser(old.net, table, V()).freeze())
    [stage] = ParallelDecoding(start=8, first=4, solver="midpoint", updates=(2,)).stages(teacher)
    assert stage.fine_times[0] == 1.0 and len(stage.grids) == 3
