"""Guided students against the guided teacher: known answers, the cache of its samples, table and gate."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from halfstep.batch import Cond
from halfstep.data import Dataset
from halfstep.diffusion.analytic import Mixture, mixture_teacher
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.evaluation import (
    Candidates,
    Evaluation,
    Features,
    frechet_distance,
    Gate,
    SampleScorer,
)
from halfstep.evaluation.gate_meter import TeacherSource
from halfstep.evaluation.gate_metrics import GuidedTeacherRatio, Inputs
from halfstep.evaluation.guided_comparison import (
    GuidedCandidates,
    GuidedEvaluation,
    scales_of,
    slider_scales,
    table_scales,
)
from halfstep.evaluation.metrics.bootstrap import resampled_rows
from halfstep.evaluation.metrics.cost import calls_of
from halfstep.evaluation.metrics.distance_bootstrap import raw_frechet_interval, raw_frechet_ratio
from halfstep.evaluation.metrics.fidelity import paired_rmse
from halfstep.evaluation.report_data import GuidedTable
from halfstep.evaluation.report_rows import teacher_rows
from halfstep.evaluation.sample_cache import chunks, identity
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.report.words.guided_verdict import guided_verdict
from halfstep.schema import build as built, plain
from tests.support.denoisers import seeded
from tests.support.evidence import gather
from tests.support.progress import Ledger

FULL, RANGE, NULL, N = 8, (1.0, 4.0), 3, 300
# Many, so that the floor of a distance is little noise beside its mean: 2 numbers alone leave it all noise.
WAVES = 6 * torch.randn(2, 24, generator=seeded(4))
FEATURES = Features("waves", lambda x: torch.cos(x @ WAVES + WAVES[0]), digest="d" * 64)


class Exact(nn.Module):
    """The exact network of the mixture, which takes its guidance scale; `stuck` is one it never leaves."""

    def __init__(self, takes=False, stuck=0.0, narrow=1.0):
        super().__init__()
        data = Mixture(stds=tuple(narrow * std for std in Mixture.stds))
        self.exact, self.idle = mixture_teacher(Cosine(), data).net, nn.Parameter(torch.zeros(1))
        self.takes, self.stuck = takes, stuck

    def forward(self, x, t, cond=None):
        label = self.exact(x, t, cond)
        if not self.takes:
            return label
        null = self.exact(x, t, Cond(torch.full_like(cond.label, NULL)))
        scale = (
            torch.full_like(cond.guidance_scale, self.stuck) if self.stuck else cond.guidance_scale
        )
        return null + scale.to(x)[:, None] * (label - null)


def pipeline(**config):
    net = build("tests.evaluation.test_guided_evaluation:Exact", config)
    denoiser = Denoiser(net, Cosine(), V(), time=NetTime(scale=1.0)).freeze()
    return Pipeline(denoiser, (2,), class_names=("a", "b", "c"), null=NULL)


def student(steps=FULL, **config):
    made = pipeline(takes=True, **config)
    return replace(made, times=(uniform(steps),), guidance_range=RANGE)


@pytest.fixture(scope="module")
def real():
    return Mixture().draw(400, seeded(0), torch.float32)


def make_scorer(real, **options):
    return SampleScorer(FEATURES, real, **{"n": N, **options})


def make_candidates(*students, **options):
    return GuidedCandidates(pipeline(), students or [student()], FULL, **options)


@pytest.fixture(scope="module")
def table(real):
    exact, stuck = student(), student(4, stuck=1.0)
    return plain(
        GuidedEvaluation(make_candidates(exact, stuck), make_scorer(real), (3.0, 1.0)).table()
    )


def test_an_exact_student_is_as_far_from_the_teacher_as_the_teacher_from_itself(table):
    rows = [row for row in table["rows"] if row["steps"] == FULL and row["role"] == "student"]
    for row in rows:
        assert row["floor_ratio"]["low"] <= 1 <= row["floor_ratio"]["high"]
        assert row["floor_ratio"]["value"] == pytest.approx(1, abs=1e-3)
        assert row["rmse"]["value"] < 1e-5


def test_one_that_ignores_its_scale_is_far_at_another(table):
    at = {row["guidance_scale"]: row for row in table["rows"] if row["steps"] == 4}
    assert at[3.0]["floor_ratio"]["low"] > 2 * at[1.0]["floor_ratio"]["high"]
    assert at[3.0]["rmse"]["value"] > 0.1
    assert at[3.0]["data_distance"] < at[3.0]["distance"]["value"]  # it is the data that it is near


def test_rows_are_in_order_and_say_what_they_cost(table):
    assert table["scales"] == [1.0, 3.0]
    assert [(r["guidance_scale"], r["role"], r["steps"], r["calls"]) for r in table["rows"]] == [
        (1.0, "teacher", 8, 8), (1.0, "student", 8, 8), (1.0, "student", 4, 4),
        (3.0, "teacher", 8, 16), (3.0, "student", 8, 8), (3.0, "student", 4, 4),
    ]  # fmt: skip
    assert table["reference"] == {"samples": N, "steps": FULL, "sampler": "ddim", "seed": 1}
    first = table["rows"][0]
    assert first["name"] == "teacher, 8 steps" and first["inception_score"] is None
    assert first["floor_ratio"] is first["rmse"] is None
    assert guided_verdict(built(table, GuidedTable)).startswith(
        "At 8 calls instead of 16 the student is at most 1.00 ("
    )


def test_the_numbers_are_those_of_the_samples(table, real):
    """By hand: the reference is of other noise, pairs of the same, and all of one scale."""
    made = student(4, stuck=1.0).sample(N, guidance_scale=3.0)
    teacher_images = pipeline().sample(N, steps=FULL, guidance_scale=3.0)
    reference = FEATURES(pipeline().sample(N, steps=FULL, guidance_scale=3.0, seed=1))
    row, made_features = table["rows"][-1], FEATURES(made)
    assert row["distance"]["value"] == pytest.approx(frechet_distance(reference, made_features))
    ratio = raw_frechet_ratio(reference, made_features, FEATURES(teacher_images), strata=3)
    assert row["floor_ratio"] == pytest.approx(plain(ratio))
    assert row["rmse"] == pytest.approx(plain(paired_rmse(teacher_images, made)))
    assert row["data_distance"] == pytest.approx(frechet_distance(FEATURES(real), made_features))


def test_the_interval_of_the_floor_is_as_wide_as_floors_differ():
    """Labels go in turn, so that the classes' shares are no noise: resampled, they would be most of it."""
    classes = 20 * torch.eye(8, dtype=torch.float64)[torch.arange(301) % 3]
    sets = [
        classes + torch.randn(301, 8, generator=seeded(k), dtype=classes.dtype) for k in range(42)
    ]
    floors = torch.tensor([frechet_distance(sets[0], one) for one in sets[2:]])
    interval = raw_frechet_interval(sets[0], sets[1], strata=3)
    plain = raw_frechet_interval(sets[0], sets[1])
    spread = 4 * float(floors.std())
    assert spread < 1.2 * (interval.high - interval.low) < 3 * spread
    assert plain.high - plain.low > 2 * (interval.high - interval.low)
    for rows in resampled_rows([301, 16], 100, 0.95, 0, strata=3):
        assert [torch.equal(r % 3, torch.arange(len(r)) % 3) for r in rows] == [True, True]
        assert {len(r.unique()) < len(r) for r in rows[:1]} == {True} and int(rows[1].max()) <= 15


# The cache.


@pytest.fixture
def draws(monkeypatch):
    """How many samples were drawn, of how many steps and at which scale."""
    draws, sample = [], Pipeline.sample

    def counted(self, n, **options):
        draws.append((options["steps"], options["guidance_scale"], options["seed"], n))
        return sample(self, n, **options)

    monkeypatch.setattr(Pipeline, "sample", counted)
    return draws


def test_the_teachers_samples_are_kept_and_change_nothing(real, tmp_path, draws):
    scorer = make_scorer(real, n=60)
    candidates = make_candidates(student(2), cache=tmp_path)
    uncached = plain(GuidedEvaluation(make_candidates(student(2)), scorer, (2.0,)).table())
    first, expected = (
        plain(GuidedEvaluation(candidates, scorer, (2.0,)).table()),
        [(8, 2.0, 1, 60), (8, 2.0, 0, 60)],
    )
    assert sorted(draws[3:]) == sorted([*expected, (2, 2.0, 0, 60)])
    draws.clear()
    assert plain(GuidedEvaluation(candidates, scorer, (2.0,)).table()) == first == uncached
    assert draws == [(2, 2.0, 0, 60)]
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert (
        plain(GuidedEvaluation(candidates, scorer, (2.0,)).table()) == first
    )  # damaged: drawn again


@pytest.mark.parametrize(
    "change",
    [
        lambda s, j: (replace(s, teacher=pipeline(narrow=0.5)), j),
        lambda s, j: (replace(s, steps=4), j),
        lambda s, j: (s, replace(j, seed=5)),
        lambda s, j: (s, replace(j, n=61)),
        lambda s, j: (s, replace(j, features=replace(FEATURES, digest="e" * 64))),
        lambda s, j: (replace(s, sampler="heun"), j),
    ],
)
def test_whatever_decides_the_samples_misses_the_cache(change, real, tmp_path, draws):
    candidates, scorer = make_candidates(student(2), cache=tmp_path), make_scorer(real, n=60)
    plain(GuidedEvaluation(candidates, scorer, (2.0,)).table())
    draws.clear()
    candidates, scorer = change(candidates, scorer)
    plain(GuidedEvaluation(candidates, scorer, (2.0,)).table())
    assert len(draws) == 3


def test_another_weight_is_another_pipeline_and_a_network_without_a_recipe_has_no_name():
    one, other = pipeline(), pipeline()
    assert identity(one) == identity(other) != identity(replace(one, clip=1.0))
    with torch.no_grad():
        other.denoiser.net.idle += 1
    assert identity(one) != identity(other)
    assert identity(replace(one, denoiser=mixture_teacher(Cosine()))) is None


def test_samples_come_some_at_a_time_and_never_one_alone():
    assert [len(part) for part in chunks(2049)] == [1024, 1025]
    for n in (8, 1024, 1025, 2049, 2050, 3000):
        parts = list(chunks(n))
        assert [k for part in parts for k in part] == list(range(n))
        assert all(2 <= len(part) <= 1025 for part in parts)


def test_all_steps_are_expected_before_the_first(real, tmp_path):
    scorer, candidates = make_scorer(real, n=300), make_candidates(student(2), cache=tmp_path)
    steps = 2 * 2 * (FULL + FULL + 2)
    for calls in (steps, 2 * (1 + 1 + 2 * 2)):  # the second time what is kept is done at once
        evidence, ledger = GuidedEvaluation(candidates, scorer, (1.0, 2.0)), Ledger()
        table, pictures = evidence.measure(progress=ledger)
        assert ledger.steps == evidence.steps == steps and pictures == {}
        assert len(table.rows) == 4 and len(ledger.each) == calls


def test_all_rows_and_the_table_are_expected_together(real):
    scorer, made, ledger = make_scorer(real, n=60), student(2), Ledger()
    guided = GuidedEvaluation(make_candidates(made), scorer, (1.0, 2.0))
    config = Evaluation(samples=60, full=FULL, baselines=(), split_samples=0, cost_rounds=1)
    whole = Candidates(pipeline(), [made], Dataset(real.clamp(-1, 1)))
    result, _ = gather(whole, scorer, config, guided=guided, progress=ledger)
    assert ledger.steps == (FULL + 2) + 2 * 2 + guided.steps
    assert result["guided"] == plain(guided.table())


# Pictures.


class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t, cond=None):
        scale = (
            1.0 if cond.guidance_scale is None else cond.guidance_scale.to(x).reshape(-1, 1, 1, 1)
        )
        return self.gain * scale * x + cond.label.reshape(-1, 1, 1, 1) / 10


def test_pictures_are_of_every_scale_way_and_seed():
    net = build("tests.evaluation.test_guided_evaluation:Image", {})
    denoiser = Denoiser(net, Cosine(), V(), time=NetTime(scale=1.0)).freeze()
    teacher = Pipeline(denoiser, (3, 4, 6), class_names=("a", "b"), null=2)
    made = replace(teacher, times=(uniform(2),), guidance_range=RANGE)
    images = torch.rand(40, 3, 4, 6, generator=seeded(1)) * 2 - 1
    features = Features("five", lambda x: x.flatten(1)[:, :5], digest="f", head=lambda x: x)
    candidates = GuidedCandidates(teacher, [made], 4)
    ledger, scorer = Ledger(), SampleScorer(features, images, n=20, batch=3)
    evidence = GuidedEvaluation(candidates, scorer, (1.3, 2.0), shown=5)
    table, pictures = evidence.measure(progress=ledger)
    scales = slider_scales(RANGE, (1.3, 2.0))
    assert pictures["guided_scales"].tolist() == scales and {1.0, 1.3, 2.0, 4.0} <= set(scales)
    assert ledger.steps == 2 * 7 * (4 + 4 + 2) + len(scales) * 2 * (4 + 2)
    assert pictures["guided"].shape == (len(scales), 2, 5, 4, 6, 3)
    assert pictures["guided_labels"].tolist() == ["teacher, 4 steps", "2 steps"]
    k = scales.index(1.3)
    levels = ((made.sample(5, guidance_scale=1.3).permute(0, 2, 3, 1) + 1) * 127.5).clamp(0, 255)
    assert np.abs(pictures["guided"][k, 1] - levels.numpy()).max() <= 0.51
    assert all(row.inception_score >= 1 for row in table.rows)


# Scales.


def test_the_scales_of_the_table_lie_in_the_range():
    assert table_scales((1.0, 5.0)) == (1.0, 1.3, 2.0, 3.0)
    assert table_scales((1.5, 2.5)) == (2.0,) and table_scales((4.0, 6.0)) == (4.0, 6.0)
    assert table_scales((1.0, 5.0), (4.0, 2.0, 4.0)) == (2.0, 4.0)
    with pytest.raises(ConfigError, match="from 1 to 5, got 6"):
        table_scales((1.0, 5.0), (2.0, 6.0))


def test_others_are_evaluated_at_one_scale_by_a_teacher_with_a_null_class():
    teacher, plain = pipeline(), replace(pipeline(), null=None)
    config = Evaluation(guidance_scales=(2.0,))
    unguided = replace(teacher, times=(uniform(2),))
    assert (
        scales_of(config, teacher, [unguided]) == (2.0,)
        and scales_of(Evaluation(), plain, []) == ()
    )
    assert scales_of(Evaluation(), teacher, [student()]) == (1.0, 1.3, 2.0, 3.0)
    with pytest.raises(ConfigError, match="one scale, got 2"):
        scales_of(replace(config, guidance_scales=(1.0, 2.0)), teacher, [unguided])
    with pytest.raises(ConfigError, match="no null class"):
        scales_of(config, plain, [])
    with pytest.raises(ConfigError, match="guidance"):
        Evaluation(guidance_scales=(-1.0,))


def test_a_teacher_guided_from_outside_costs_two_calls_a_step_in_all_rows(real):
    assert calls_of(pipeline(), "heun", 4, 2.0) == 14 and calls_of(student(), "ddim", 8, 2.0) == 8
    config = Evaluation(samples=40, full=4, guidance_scales=(2.0,), baselines=("ddim",))
    scorer = make_scorer(real, n=40, guidance_scale=2.0)
    rows = teacher_rows(pipeline(), (4, 1), scorer, config).rows
    assert [(row.steps, row.calls) for row in rows] == [(4, 8), (2, 4)]
    features = FEATURES(pipeline().sample(40, steps=2, guidance_scale=2.0))
    distance = rows[1].distances.frechet_distance.value
    assert distance == pytest.approx(frechet_distance(FEATURES(real), features))


# The gate.


def meter(cache, *scales):
    teacher = pipeline()
    source = TeacherSource(teacher, load=lambda: teacher)
    inputs = Inputs(
        teacher, source, Dataset(torch.zeros(1, 2)), FEATURES, RANGE, "uniform", FULL, samples=200, seed=0
    )  # fmt: skip
    return GuidedTeacherRatio(guidance_scales=scales).meter(inputs, cache=cache)


@pytest.fixture
def looks(tmp_path):
    return meter(tmp_path, 1.0, 3.0)


def test_the_gate_takes_the_worst_scale_and_the_first_stage_never_ends_a_run(looks, tmp_path):
    first_stage = replace(student(stuck=1.0), times=())  # the first stage has no grid
    gate = Gate(looks.student, 2.0, samples=200, most=400, full=FULL)
    assert (
        gate(first_stage)
        and gate.decisions[0].stage == "guided"
        and gate.decisions[0].verdict == "broken"
    )
    assert gate(student()) and gate.best.steps == FULL
    assert not gate(student(2, stuck=1.0)) and gate.best.steps == FULL
    assert [decision.stage for decision in gate.decisions] == ["guided", "0008-steps", "0002-steps"]
    alone = meter(tmp_path, 3.0)
    assert alone.student(student(2, stuck=1.0), 200).value == gate.decisions[2].ratio.value


def test_the_gate_draws_the_teacher_once(looks, draws, tmp_path):
    ledger = Ledger()
    looks.showing = lambda title: nullcontext(ledger)
    exact = looks.student(student(), 200)
    assert ledger.steps == 2 * 3 * FULL and exact.value == pytest.approx(1, abs=1e-3)
    draws.clear()
    looks.student(student(2), 200)
    assert {steps for steps, *_ in draws} == {2} and ledger.done == 2 * 3 * FULL + 2 * 2
    fresh = meter(tmp_path, 1.0, 3.0)
    draws.clear()
    assert fresh.student(student(), 200) == exact and len(draws) == 2
