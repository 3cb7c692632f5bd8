"""The digits classifier that comes with halfstep, and classifiers on disk."""

from pathlib import Path

import pytest
import torch

import halfstep
from halfstep import storage
from halfstep.data import load
from halfstep.errors import CheckpointError
from halfstep.evaluation import (
    classifier_features,
    digits_features,
    frechet_distance,
)
from halfstep.evaluation.features.registry import load_classifier, save_classifier
from halfstep.models import Classifier
from tests.support.denoisers import seeded


def test_a_classifier_comes_back(tmp_path):
    torch.manual_seed(0)
    made = Classifier(channels=3, num_classes=7)
    save_classifier(made, tmp_path / "c")
    back, images = load_classifier(tmp_path / "c"), torch.randn(5, 3, 8, 10, generator=seeded())
    assert torch.equal(made.eval()(images), back.eval()(images))
    features = classifier_features(tmp_path / "c")
    assert features.name == "classifier c"
    assert torch.equal(features(images), made.features(images).double())


def test_a_folder_without_a_classifier_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no classifier"):
        load_classifier(tmp_path)


def test_a_damaged_or_other_classifier_is_refused(tmp_path):
    save_classifier(Classifier(channels=1, num_classes=3), tmp_path)
    tensors, about = storage.load(tmp_path / "classifier")
    del tensors["head.bias"]
    storage.save(tmp_path / "classifier", tensors, about)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors \(head\.bias\)"):
        load_classifier(tmp_path)


@pytest.fixture(scope="module")
def digits():
    data = load("digits")
    return data.batch(torch.arange(len(data)))


def test_the_shipped_classifier_knows_its_digits(digits):
    shipped = load_classifier(Path(halfstep.__file__).parent / "assets" / "digits-classifier")
    with torch.no_grad():
        guess = shipped.eval()(digits.x0).argmax(1)
    assert (guess == digits.cond.label).double().mean() > 0.97


def test_features_are_the_same_every_time_and_in_any_batch(digits):
    features, images = digits_features(), digits.x0[:70]
    whole = features(images)
    assert whole.shape == (70, 32) and whole.dtype == torch.float64
    assert torch.equal(whole, digits_features()(images))
    for batch in (1, 9, 70):
        torch.testing.assert_close(features(images, batch=batch), whole, rtol=0, atol=1e-5)


def test_the_digits_tell_noise_from_digits(digits):
    features = digits_features()
    half, rest = features(digits.x0[:900]), features(digits.x0[900:])
    noise = features(torch.rand(900, 1, 8, 8, generator=seeded()) * 2 - 1)
    assert frechet_distance(half, noise) > 20 * frechet_distance(half, rest)
