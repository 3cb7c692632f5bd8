"""The metrics of one row: which sample set is compared with which."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from halfstep.data.latents.dataset import Latents
from halfstep.data.latents.shards import Shards
from halfstep.evaluation import Features, SampleScorer, scorer as scorer_module
from halfstep.evaluation.metrics.floor import sampling_floor
from halfstep.evaluation.metrics.precision_recall_bootstrap import precision_recall_intervals
from halfstep.evaluation.row_metrics import drift_of, row as row_of, sheets
from halfstep.evaluation.sample_sets import SampleSet
from halfstep.evaluation.setups import Setup
from halfstep.schema import plain
from tests.support.denoisers import seeded
from tests.support.evaluation import CONFIG, FEATURES, few, image_scorer, pipeline, SHAPE


def sample_set(images, seconds=1.0):
    return SampleSet(images, few(images), seconds)


def images(n, seed):
    return torch.rand(n, *SHAPE, generator=seeded(seed)) * 2 - 1


def test_drift_is_the_students_against_the_teachers():
    dark = images(20, 1) / 2 - 0.5  # pixels from 0 to a half
    changes = {
        drift.measure: drift.change.value
        for drift in drift_of(sample_set(dark), sample_set(dark + 0.2))
    }
    for k, colour in enumerate(("red", "green", "blue")):
        level = float((dark[:, k].double() + 1).mean() / 2)
        assert changes[f"brightness of {colour}"] == pytest.approx(0.1 / level, rel=1e-5)


def test_a_row_is_the_students_over_the_teachers(data):
    full, other = sample_set(images(40, 1)), sample_set(images(40, 2) * 0.7 + 0.2)
    scorer = image_scorer(data)
    setup = Setup("student", "name", (pipeline(), "heun", 3))
    row = plain(row_of(setup, other, scorer, ("precision-recall",), full))
    assert (row["steps"], row["calls"], row["sampler"]) == (3, 5, "heun")
    over = scorer.distance(other) / scorer.distance(full)
    assert row["ratio"]["value"] == pytest.approx(over) and not 0.99 < over < 1.01
    assert row["distances"]["frechet_distance"]["value"] == pytest.approx(scorer.distance(other))
    rms = [float(x.square().mean().sqrt()) for x in (full.features - other.features, full.features)]
    assert row["fidelity"]["feature_rmse"]["value"] == pytest.approx(rms[0] / rms[1])
    both = precision_recall_intervals(scorer.real_few, other.features)
    assert [row["distances"][name] for name in ("precision", "recall")] == plain(both)
    assert both[0].value != both[1].value


def test_pictures_stand_in_their_rows_and_pairs():
    """Row by row as given, seeds across; the worst pairs, the teacher left of the student of fewest steps."""
    full, middle = images(9, 1), images(9, 2)
    last = full.clone()
    last[7] -= 0.5
    last[2] += 0.25
    pictures = sheets([("teacher", full), ("4 steps", middle), ("1 step", last)], 5)
    levels = [
        ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        for x in (full, middle, last)
    ]
    assert pictures["grid_labels"].tolist() == ["teacher", "4 steps", "1 step"]
    assert (pictures["grid"] == np.stack([x[:5] for x in levels])).all()
    assert pictures["worst_labels"][:2].tolist() == ["1 step, seed 7", "1 step, seed 2"]
    for k, number in enumerate((7, 2)):
        assert (pictures["worst"][k, 0] == levels[0][number]).all()
        assert (pictures["worst"][k, 1] == levels[2][number]).all()
    assert "grid_classes" not in pictures
    named = sheets([("teacher", full), ("1 step", last)], 5, ("cat", "dog", "owl"))
    assert named["grid_classes"].tolist() == ["cat", "dog", "owl", "cat", "dog"]
    assert named["worst_labels"][:2].tolist() == ["1 step, seed 7, dog", "1 step, seed 2, owl"]


def test_the_few_real_images_are_drawn_from_all_of_them():
    """Data that lies class by class: the first n would be of one class."""
    values = torch.arange(100.0).reshape(100, 1, 1, 1) / 100
    scorer = SampleScorer(Features("itself", lambda x: x.flatten(1).double()), values, n=20)
    few_of_it = (100 * scorer.real_few[:, 0]).round().int().tolist()
    assert len(set(few_of_it)) == 20 and max(few_of_it) > 75 and min(few_of_it) < 25
    assert torch.equal(scorer.real_few, scorer.real_few)
    assert torch.equal(
        replace(scorer, n=100, known_features=scorer.real_features).real_few, scorer.real_features
    )


def test_seconds_go_with_the_samples(data):
    some = sample_set(images(8, 1), seconds=4.0)
    assert some.first(2).seconds == 1.0 and len(some.first(2)) == 2
    assert torch.equal(some.first(2).images, some.images[:2])
    row = image_scorer(data)._row((pipeline(), "heun", 3), some, sample_set(images(8, 2)))
    assert (row.seconds_per_sample, row.calls, row.steps) == (0.5, 5, 3)


def test_the_floor_is_that_of_as_many_samples(data):
    few_samples, many = (SampleScorer(FEATURES, data.values, n=n).floor for n in (20, 60))
    assert few_samples == sampling_floor(few(data.values), 20) > many


def test_the_floor_is_of_the_scorers_classes(data):
    labels = torch.arange(len(data)) % 3
    scorer = image_scorer(data, classes=2, labels=labels)
    floor = sampling_floor(few(data.values), scorer.n, labels=labels, classes=2)
    assert (scorer.floor, scorer.floor_note) == (floor, "")
    chance = image_scorer(data, classes=2)
    assert chance.floor == sampling_floor(few(data.values), scorer.n) != floor
    assert "by chance" in chance.floor_note and not image_scorer(data).floor_note
    missing = image_scorer(data, classes=4, labels=labels)
    assert missing.floor == 0 and missing.floor_note.startswith("unknown: 1 of the 4 classes")


def test_the_labels_of_latents_as_real_rows_are_of_all_of_them(monkeypatch):
    """Only decoded ones are cut to 10,000."""
    monkeypatch.setattr(scorer_module, "MOST_DECODED", 5)
    moments = torch.randn(12, 6, 4, 6, generator=seeded(1))
    latents = Latents(Shards((moments,)), 1, 1.0, torch.arange(12) % 3)
    monkeypatch.setattr(scorer_module, "data_features", lambda *_, **__: moments.flatten(1)[:, :5])
    scorer = scorer_module.scorer_for(FEATURES, latents, CONFIG)
    assert torch.equal(scorer.labels, latents.labels) and len(scorer.real) == 12
