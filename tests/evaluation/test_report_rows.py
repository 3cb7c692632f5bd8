"""The rows of a report: complete, of the same noise, and as configured."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from halfstep.batch import Cond
from halfstep.data import Dataset
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.samplers import calls
from halfstep.diffusion.schedules import Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.evaluation import Candidates, Features, SampleScorer
from halfstep.evaluation.metrics.distance_bootstrap import kernel_interval, raw_frechet_ratio
from halfstep.evaluation.metrics.fidelity import grid_cost, learning_error, worst_pairs
from halfstep.evaluation.metrics.memorisation import TrainingImages
from halfstep.evaluation.metrics.precision_recall_bootstrap import precision_recall_intervals
from halfstep.evaluation.report_rows import Comparison, teacher_rows
from halfstep.evaluation.row_metrics import not_negative
from halfstep.evaluation.setups import most_steps, TIMED
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.report.page import render
from halfstep.schema import plain
from tests.support.denoisers import seeded
from tests.support.evaluation import (
    BRIEF,
    CONFIG,
    FEATURES,
    image_scorer,
    pipeline,
    rows_with,
    SHAPE,
    students,
)
from tests.support.evidence import evidence, gather, typed
from tests.support.progress import Ledger

INTERVALS = ("value", "low", "high")


@pytest.fixture(scope="module")
def measured(candidates, data):
    return gather(candidates, image_scorer(data), CONFIG)


def test_every_row_has_every_number(measured):
    rows = measured[0]["rows"]
    assert [row["role"] for row in rows[:1]] == ["teacher"]
    names = {"frechet_distance", "kernel_distance", "inception_score", "precision", "recall"}
    for row in rows:
        assert row.keys() == {
            "role", "name", "sampler", "steps", "calls", "distances", "ratio", "fidelity", "split",
            "memorisation", "drift", "cost", "compressed", "network", "student_ratio",
            "baseline",
        }  # fmt: skip
        assert all(row["distances"][name] for name in names)
        for interval in filter(None, row["distances"].values()):
            assert tuple(interval) == INTERVALS
            assert interval["low"] <= interval["high"] and all(map(np.isfinite, interval.values()))
        assert row["cost"]["calls"] == row["calls"] == calls(row["sampler"], row["steps"])
        assert row["cost"]["seconds_per_sample"].keys() == {"1", "64"}
        assert (
            row["cost"]["parameters"] == 13 and row["cost"]["multiply_adds"] == row["calls"] * 216
        )
        for part in ("ratio", "fidelity"):
            assert (row[part] is None) == (row["role"] == "teacher")
        for part in ("split", "drift"):
            assert (row[part] is None) == (row["role"] != "student")
    for row in rows_with(measured, "student"):
        assert [*row["fidelity"]] == ["rmse", "psnr", "feature_rmse"]
        assert [*row["split"]] == ["grid", "learning"]
        assert {interval["measure"] for interval in row["drift"]} >= {
            "contrast",
            "saturation",
            "fine detail",
        }


def test_the_names_of_the_rows(measured):
    assert [row["name"] for row in measured[0]["rows"]] == [
        "teacher, 16 steps",
        "teacher, ddim, 4 steps",
        "teacher, heun, 2 steps",
        "teacher, ddim, 2 steps",
        "teacher, heun, 1 step",
        "teacher, ddim, 1 step",
        "student, 4 steps",
        "student, 2 steps",
        "student, 1 step",
    ]


def test_it_says_how_it_measured(measured, data):
    measure = measured[0]["measure"]
    assert (measure["features"], measure["preprocessing"]) == ("five pixels", "as they are")
    assert (measure["samples"], measure["real"], measure["seed"]) == (40, 60, 0)
    assert measure["digest"] == "d" * 64 and len(measure["data"]) == 64
    assert measure["floor"] == image_scorer(data).floor > measure["floor_at_2000"] > 0
    assert measure["floor_at_2000"] == replace(image_scorer(data), n=2000).floor


def test_it_goes_through_json_onto_the_page(measured):
    tables, pictures = measured
    report = typed(evidence() | json.loads(json.dumps(tables, allow_nan=False)), pictures)
    page = render(report)
    assert report.verdict.split(":")[0][:20] in page
    for row in report.rows:
        assert row.name in page


def test_every_student_has_baselines_that_cost_no_more(measured):
    for student in rows_with(measured, "student"):
        for sampler in CONFIG.baselines:
            rows = [row for row in rows_with(measured, "baseline") if row["sampler"] == sampler]
            fewer = [row["calls"] for row in rows if row["calls"] <= student["calls"]]
            assert fewer and max(fewer) == calls(sampler, most_steps(sampler, student["calls"]))
    most = max(row["calls"] for row in rows_with(measured, "student"))
    assert all(row["calls"] <= most for row in rows_with(measured, "baseline"))


def test_all_steps_are_expected_before_the_first(candidates, data):
    all_changes = (
        {"counts": (2, 1)},
        {"samples": 300, "baselines": ()},
        {"counts": (1,), "cost_rounds": 1},
    )
    for changes in all_changes:
        config, ledger = replace(BRIEF, **changes), Ledger()
        scorer = image_scorer(data)
        scorer.n = config.samples
        result, _ = gather(candidates, scorer, config, progress=ledger)
        rows, batches = result["rows"], -(-config.samples // scorer.batch)
        sampled = sum(row["steps"] for row in rows) * batches
        assert ledger.steps == sampled + len(rows) * config.cost_rounds * len(TIMED)


def test_what_the_teacher_does_can_be_measured_before(measured, candidates, data):
    scorer = image_scorer(data)
    config = replace(CONFIG, cost_rounds=0, metrics=("frechet", "kernel"))
    before = teacher_rows(candidates.teacher, (4, 2, 1), scorer, config)
    ledger = Ledger()
    again, pictures = gather(candidates, scorer, config, teacher_rows=before, progress=ledger)
    assert ledger.steps == 4 + 2 + 1  # the teacher is not sampled again
    for name in pictures:
        assert np.array_equal(pictures[name], measured[1][name])
    for first, second in zip(measured[0]["rows"], again["rows"], strict=True):
        assert (
            first["distances"] | {k: v for k, v in second["distances"].items() if v}
            == first["distances"]
        )
        for part in ("ratio", "fidelity", "split", "drift"):
            assert first[part] == second[part]


def test_a_student_that_is_the_teacher_keeps_everything(data):
    same = Candidates(pipeline(), [pipeline(times=(uniform(16),))], data, uniform(32))
    row = rows_with(gather(same, image_scorer(data), replace(BRIEF, baselines=())), "student")[0]
    equal = {"value": 1.0, "low": 1.0, "high": 1.0}
    assert row["ratio"] == equal and row["fidelity"]["rmse"]["value"] == 0
    assert all(each["change"]["value"] == 0 and not each["alarm"] for each in row["drift"])


def test_a_student_that_differs_loses(measured):
    rows = rows_with(measured, "student")
    errors = [row["fidelity"]["rmse"]["value"] for row in rows]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_the_split_is_that_of_the_student_before(measured, candidates, data):
    batch = data.batch(torch.arange(24))
    makers = [candidates.teacher, *candidates.students]
    grids = [uniform(8), *(student.times[0] for student in candidates.students)]
    for k, row in enumerate(rows_with(measured, "student")):
        grid = grid_cost(candidates.teacher, grids[k], n=24)
        learning = learning_error(
            candidates.students[k].denoiser, makers[k].denoiser, grids[k], batch.x0
        )
        assert row["split"] == {"grid": plain(grid), "learning": plain(learning)}


def test_without_the_student_before_there_is_no_split(data):
    config = replace(BRIEF, baselines=())
    gap = Candidates(pipeline(), students(4, 1), data, uniform(8))
    rows = rows_with(gather(gap, image_scorer(data), config), "student")
    assert [row["split"] is None for row in rows] == [False, True]
    jumps = [replace(student, sampler="stochastic") for student in students(4)]
    rows = rows_with(
        gather(Candidates(pipeline(), jumps, data, uniform(8)), image_scorer(data), config),
        "student",
    )
    assert [row["split"] for row in rows] == [None]  # its calls span two steps of the grid
    unknown = Candidates(pipeline(), students(4, 2), data)  # the teacher's grid is not known
    rows = rows_with(gather(unknown, image_scorer(data), config), "student")
    assert [row["split"] is None for row in rows] == [True, False]


def test_labels_go_only_to_a_teacher_that_takes_them(data, monkeypatch):
    from halfstep.evaluation import report_rows

    conds = []

    def recorded(*args, cond, **options):
        conds.append(cond)
        return learning_error(*args, cond=cond, **options)

    monkeypatch.setattr(report_rows, "learning_error", recorded)
    config = replace(BRIEF, counts=(4,), baselines=())
    for class_names in ((), ("even", "odd")):
        labelled = Candidates(
            pipeline(class_names=class_names),
            [pipeline(1.1, (uniform(4),), class_names)],
            data,
            uniform(8),
        )
        gather(labelled, image_scorer(data), config)
    assert conds[0] == Cond() and conds[1].label.tolist() == [0, 1] * 12


def test_memorisation_needs_data_that_was_held_out(candidates, data):
    held_out = torch.rand(30, *SHAPE, generator=seeded(9)) * 2 - 1
    config = replace(BRIEF, counts=(4,), split_samples=0)
    training = TrainingImages.beside(FEATURES(data.values), FEATURES(held_out))
    rows = gather(replace(candidates, training=training), image_scorer(data), config)[0]["rows"]
    assert [row["memorisation"] is None for row in rows] == [False, True, True, False]
    result = rows[-1]["memorisation"]
    assert result.keys() == {"train", "held_out", "ratio", "copies", "flag"}


def test_what_costs_n_squared_sees_as_many_real_images_as_samples(data):
    scorer = SampleScorer(FEATURES, data.values, n=25)
    assert len(scorer.real_features) == 60 and len(scorer.real_few) == 25
    assert torch.equal(scorer.real_few, SampleScorer(FEATURES, data.values, n=25).real_few)
    rows = {tuple(row.tolist()) for row in scorer.real_features}
    assert all(tuple(row.tolist()) in rows for row in scorer.real_few)
    assert torch.equal(SampleScorer(FEATURES, data.values, n=60).real_few, scorer.real_features)
    samples = scorer.sample(pipeline(), "ddim", 2)
    candidates = Candidates(pipeline(), [], data)
    config = replace(CONFIG, samples=25, full=2, cost_rounds=0)
    row = gather(candidates, scorer, config)[0]["rows"][0]["distances"]
    assert row["kernel_distance"] == plain(
        not_negative(kernel_interval(scorer.real_few, samples.features))
    )
    both = precision_recall_intervals(scorer.real_few, samples.features)
    assert [row["precision"], row["recall"]] == [plain(interval) for interval in both]


def test_the_pictures_are_of_the_same_seeds(measured, candidates):
    pictures = measured[1]
    assert pictures["grid_labels"].tolist() == ["teacher, 16 steps", "4 steps", "2 steps", "1 step"]
    assert pictures["grid"].shape == (4, 3, 4, 6, 3) and pictures["grid"].dtype == np.uint8
    drawn = candidates.students[1].sample(3)
    levels = ((drawn.numpy().transpose(0, 2, 3, 1) + 1) * 127.5).clip(0, 255)
    assert np.abs(pictures["grid"][2] - levels).max() <= 0.51


def test_the_worst_pairs_are_those_of_the_fewest_steps(measured, candidates):
    pictures, full = measured[1], candidates.teacher.sample(40, steps=16)
    worst = worst_pairs(full, candidates.students[-1].sample(40), count=6)
    assert pictures["worst_labels"].tolist() == [f"1 step, seed {k}" for k in worst]
    assert pictures["worst"].shape == (6, 2, 4, 6, 3)
    levels = ((full[worst[0]].permute(1, 2, 0) + 1) * 127.5).clip(0, 255).numpy()
    assert np.abs(pictures["worst"][0, 0] - levels).max() <= 0.51


def test_a_run_without_students_is_its_teacher_alone(data):
    result, pictures = gather(Candidates(pipeline(), [], data), image_scorer(data), BRIEF)
    assert [row["role"] for row in result["rows"]] == ["teacher"]
    assert pictures.keys() == {"grid", "grid_labels"}


def test_points_have_neither_pictures_nor_drift():
    net = build("mlp", {"dim": 3, "width": 8, "depth": 1})
    teacher = Pipeline(Denoiser(net, Cosine(), V()).freeze(), (3,))
    values = torch.randn(50, 3, generator=seeded(2)).tanh()
    candidates = Candidates(
        teacher, [replace(teacher, times=(uniform(2),))], Dataset(values), uniform(4)
    )
    scorer = SampleScorer(Features("points", lambda x: x), values, n=30)
    result, pictures = gather(candidates, scorer, replace(CONFIG, samples=30, cost_rounds=0))
    assert pictures == {}
    row = result["rows"][-1]
    assert row["drift"] is None and row["split"] and not row["distances"]["inception_score"]
    assert row["cost"] is None


def test_metrics_can_be_left_out(candidates, data):
    config = replace(CONFIG, metrics=("kernel",), counts=(2,), split_samples=0, cost_rounds=0)
    rows = gather(candidates, image_scorer(data), config)[0]["rows"]
    for row in rows:
        assert row["distances"]["frechet_distance"] and row["distances"]["kernel_distance"]
        assert not any(row["distances"][k] for k in ("precision", "recall", "inception_score"))
        assert row["split"] is row["cost"] is None
    assert [row["steps"] for row in rows if row["role"] == "student"] == [2]


def test_a_student_is_compared_with_the_best_baseline_of_the_same_noise(data):
    """By hand: the baseline of the lowest distance in not more calls, in pairs."""
    scorer, config = image_scorer(data), replace(BRIEF, counts=(4, 2))
    candidates = Candidates(pipeline(), students(4, 2), data)
    parts = Comparison(candidates, scorer, config).measure()
    baselines = [row for row in parts.rows if row.role == "baseline"]
    for row in (row for row in parts.rows if row.role == "student"):
        fitting = [other for other in baselines if other.calls <= row.calls]
        least = min(other.distances.frechet_distance.value for other in fitting)
        tied = [other for other in fitting if other.distances.frechet_distance.value == least]
        assert set(row.baseline.names) == {other.name for other in tied}
        student = next(s for s in candidates.students if len(s.times[0]) - 1 == row.steps)
        made = scorer.sample(student, "ddim", row.steps)
        best = scorer.sample(pipeline(), tied[0].sampler, tied[0].steps)
        expected = raw_frechet_ratio(scorer.real_features, made.features, best.features)
        assert row.baseline.ratio == expected
    [alone] = [row.baseline for row in parts.rows if row.role == "teacher"]
    assert alone is None
