"""The sampling of each row: baselines at not more calls, samplers with a grid of their own, refusals."""

from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import BetaTable, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.evaluation import Candidates, Evaluation
from halfstep.evaluation.report_rows import teacher_rows as measured_rows
from halfstep.evaluation.sample_sets import SampleSet
from halfstep.evaluation.setups import chosen_counts, most_steps, refuse_sampler, TIMED
from halfstep.pipeline import Pipeline
from halfstep.schema import plain
from tests.support.evaluation import (
    BRIEF,
    CONFIG,
    FEATURES,
    image_scorer,
    pipeline,
    rows_with,
    SHAPE,
)
from tests.support.evidence import gather
from tests.support.progress import Ledger


def teacher_rows(*arguments):
    """The teacher's rows, as tables."""
    return [plain(row) for row in measured_rows(*arguments).rows]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 16, 33])
def test_most_steps_that_cost_no_more(count):
    for sampler in ("ddim", "dpmpp-2m", "ancestral"):
        assert most_steps(sampler, count) == count
    steps = most_steps("heun", count)
    assert 2 * steps - 1 <= count < 2 * (steps + 1) - 1


def test_a_sampler_that_costs_more_even_in_one_step_is_left_out(monkeypatch, candidates, data):
    from halfstep.evaluation import setups

    monkeypatch.setattr(setups, "calls", lambda name, n: 3 * n if name == "heun" else n)
    assert [most_steps("heun", k) for k in (1, 2, 3, 5, 6)] == [None, None, 1, 1, 2]
    config = replace(BRIEF, counts=(2, 1))
    rows = teacher_rows(candidates.teacher, (2, 1), image_scorer(data), config)
    assert [row["sampler"] for row in rows] == ["ddim"] * 3


OWN_GRIDS = ("dpmpp-3s", "dpm-fast", "euler-maruyama")


def test_a_published_sampler_is_a_row_on_its_own_grid(data):
    teacher = pipeline(schedule=VPLinear())
    scorer = image_scorer(data)
    config = replace(BRIEF, full=6, baselines=OWN_GRIDS)
    rows = teacher_rows(teacher, (10, 8), scorer, config)
    assert [row["name"] for row in rows] == ["teacher, 6 steps"] + [
        f"teacher, {name}, {k} steps" for k in (10, 8) for name in OWN_GRIDS
    ]
    for row in rows[1:]:
        images = teacher.sample(40, steps=row["steps"], sampler=row["sampler"])
        samples = SampleSet(images, FEATURES(images), 0.0)
        distance = row["distances"]["frechet_distance"]["value"]
        assert distance == pytest.approx(scorer.distance(samples), rel=1e-9)
        assert row["calls"] == row["steps"]
    values = [row["distances"]["frechet_distance"]["value"] for row in rows]
    assert np.diff(sorted(values)).min() > 1e-4  # so that none was taken for another


def test_the_teacher_at_full_steps_by_another_sampler(data):
    teacher, scorer = pipeline(schedule=VPLinear()), image_scorer(data)
    config = replace(CONFIG, full=7, full_sampler="dpm-fast", baselines=("ddim", "dpmpp-3s"))
    candidates = Candidates(teacher, [pipeline(1.1, (uniform(4),), schedule=VPLinear())], data)
    result, pictures = gather(candidates, scorer, config)
    full = result["rows"][0]
    assert (full["name"], full["sampler"], full["calls"]) == (
        "teacher, dpm-fast, 7 steps", "dpm-fast", 7,
    )  # fmt: skip
    images = teacher.sample(40, steps=7, sampler="dpm-fast")
    full_samples = SampleSet(images, FEATURES(images), 0.0)
    distance = full["distances"]["frechet_distance"]["value"]
    assert distance == pytest.approx(scorer.distance(full_samples), rel=1e-9)
    student = result["rows"][-1]
    other = scorer.sample(candidates.students[0], "ddim", 4)
    assert student["ratio"] == plain(scorer.ratio(other, full_samples))
    assert all(row["cost"]["calls"] == row["steps"] for row in result["rows"])
    assert pictures["grid_labels"][0] == full["name"]


@pytest.mark.parametrize(
    "schedule, words",
    [
        (
            RectifiedFlow(),
            {"dpmpp-3s": "cannot start at t = 1", "dpm-fast": "log-SNR at t = 1 or 0.0001 is infinite",
             "euler-maruyama": "cannot start at t = 1"},
        ),
        (BetaTable("scaled_linear"), {"euler-maruyama": "a table of betas has corners"}),
        (VPLinear(), {}),
    ],
)  # fmt: skip
def test_a_baseline_that_the_schedule_refuses_is_left_out_with_a_sentence(schedule, words, data):
    config = replace(BRIEF, full=5, baselines=("ddim", *OWN_GRIDS))
    student = pipeline(1.1, (uniform(8),), schedule=schedule)
    candidates, ledger = Candidates(pipeline(schedule=schedule), [student], data), Ledger()
    result = gather(candidates, image_scorer(data), config, progress=ledger)
    baselines = [row["sampler"] for row in rows_with(result, "baseline")]
    assert baselines == [name for name in config.baselines if name not in words]
    left_out = result[0]["measure"]["left_out"]
    assert left_out == candidates.left_out(config) and len(left_out) == len(words)
    for sentence, (name, why) in zip(left_out, words.items(), strict=True):
        assert sentence.startswith(f"no baseline {name}: ") and why in sentence
    rows = result[0]["rows"]
    assert ledger.steps == sum(row["steps"] + config.cost_rounds * len(TIMED) for row in rows)


def test_a_baseline_that_would_lead_nowhere_is_left_out_of_those_steps(data):
    pndm, heun = "diffusers:PNDMScheduler", "diffusers:HeunDiscreteScheduler"
    teacher = pipeline(schedule=VPLinear())
    students = [pipeline(1.1, (uniform(k),), schedule=VPLinear()) for k in (4, 2)]
    config = replace(BRIEF, full=16, baselines=("ddim", "dpm-fast", "euler-maruyama", pndm, heun))
    candidates = Candidates(teacher, students, data)
    result = gather(candidates, image_scorer(data), config)
    baselines = [(row["sampler"], row["steps"]) for row in rows_with(result, "baseline")]
    assert baselines == [
        ("ddim", 4), ("dpm-fast", 4), (pndm, 3), (heun, 2), ("ddim", 2), (pndm, 1), (heun, 1),
    ]  # fmt: skip
    drawn, fast = candidates.left_out(config)
    assert fast.startswith("no baseline dpm-fast in 2 steps: dpm_fast cannot go")
    assert drawn.startswith("no baseline euler-maruyama: euler-maruyama cannot step")
    three = replace(candidates, students=[pipeline(1.1, (uniform(3),), schedule=VPLinear())])
    (combined,) = three.left_out(replace(config, baselines=(pndm,)))
    assert combined.startswith(f"no baseline {pndm}: ") and "diverges" in combined
    with pytest.raises(ConfigError, match="there is no diffusers scheduler"):
        candidates.left_out(replace(config, baselines=("diffusers:PNDMSchedule",)))
    with pytest.raises(ConfigError, match="diverges"):
        refuse_sampler(pipeline(), heun, 4)
    refuse_sampler(pipeline(), heun, 64)


def test_every_baseline_that_is_left_out_has_its_sentence(data):
    names = ("diffusers:PNDMScheduler", "diffusers:HeunDiscreteScheduler", "euler-maruyama")
    students = [pipeline(1.1, (uniform(k),)) for k in (8, 3)]
    config = replace(BRIEF, full=16, baselines=names)
    sentences = Candidates(pipeline(), students, data).left_out(config)
    assert [sentence.split(" ")[2] for sentence in sentences] == [f"{name}:" for name in names]
    served = [pipeline(1.1, (uniform(k),), schedule=VPLinear()) for k in (8, 5, 3)]
    teacher = pipeline(schedule=VPLinear())
    [sentence] = Candidates(teacher, served, data).left_out(replace(config, baselines=names[:1]))
    assert sentence.startswith(f"no baseline {names[0]} in 2 steps: ")


def test_a_teacher_that_is_a_student_has_no_sampler_with_another_grid(data):
    candidates = Candidates(
        pipeline(times=(uniform(4),), schedule=VPLinear()),
        [pipeline(1.1, (uniform(2),), schedule=VPLinear())],
        data,
    )
    config = replace(BRIEF, full=4, baselines=("ddim", "dpm-fast"))
    (sentence,) = candidates.left_out(config)
    assert sentence.startswith("no baseline dpm-fast: 'dpm-fast' has a grid of its own")


def test_full_steps_that_cannot_be_are_refused_without_a_network_call(data):
    class Never(nn.Module):
        def forward(self, x, t, cond=None):
            raise AssertionError("asked")

    teacher = Pipeline(Denoiser(Never(), RectifiedFlow(), V()), SHAPE)
    for sampler in OWN_GRIDS:
        with pytest.raises(ConfigError, match="t = 1"):
            refuse_sampler(teacher, sampler, 5)
        with pytest.raises(ConfigError, match="t = 1"):
            teacher_rows(teacher, (), image_scorer(data), replace(BRIEF, full_sampler=sampler))
    refuse_sampler(teacher, "ddim", 5)
    with pytest.raises(ConfigError, match="steps"):
        refuse_sampler(teacher, "ddim", 0)


def test_counts_are_sorted_and_there():
    assert chosen_counts([1, 4, 2], CONFIG) == [4, 2, 1]
    assert chosen_counts([1, 4, 2], replace(CONFIG, counts=(1, 4))) == [4, 1]
    with pytest.raises(ConfigError, match="no student takes 3 or 8 steps"):
        chosen_counts([4, 2], replace(CONFIG, counts=(8, 4, 3)))
    with pytest.raises(ConfigError, match="there are students of none"):
        chosen_counts([], replace(CONFIG, counts=(8,)))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"samples": 7}, "samples must be at least 8"),
        ({"full": -1}, "full must be at"),
        ({"shown": 0}, "shown must be at least 1"),
        ({"split_samples": -1}, "split_samples must be at least 0"),
        ({"cost_rounds": -2}, "cost_rounds must be at least 0"),
        ({"metrics": ("frechet", "kernl")}, "perhaps you meant 'kernel'"),
        ({"baselines": ("ddim", "huen")}, "perhaps you meant 'heun'"),
        ({"baselines": ("dpm-fats",)}, "perhaps you meant 'dpm-fast'"),
        ({"full_sampler": "dpmpp-3m"}, "perhaps you meant 'dpmpp-3s'"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(options, words):
    with pytest.raises(ConfigError, match=words):
        Evaluation(**options)
