"""The networks and data of an evaluation: the size at which held-out images are read."""

from types import SimpleNamespace

import pytest
import torch

from halfstep.errors import ConfigError
from halfstep.workflows import evaluation_inputs
from halfstep.workflows.evaluation_inputs import EvaluationInputs
from tests.support.latent_runs import latents


def inputs(held_out=None, against="data", **config):
    """Inputs of a run with these options."""
    run = SimpleNamespace(config=config, folder="r")
    return EvaluationInputs(
        run=run, data=None, teacher=None, held_out=held_out, against=against, beside=(), net=None,
        verify=False,
    )  # fmt: skip


@pytest.mark.parametrize("factor, size", [(None, 5), (4, 16)])
def test_held_out_images_have_the_size_that_the_codec_decodes_to(factor, size, monkeypatch):
    monkeypatch.setattr(evaluation_inputs, "load", lambda spec, **options: (spec, options))
    teacher = SimpleNamespace(codec=factor and SimpleNamespace(factor=factor), shape=(2, 4, 4))
    read = inputs("photos", data="l", size=5, channels=3).unseen(latents(), teacher)
    options = {"size": size, "channels": 3, "skip_bad": False}
    assert read == ("photos", {**options, "split": "train"})
    for source in ("fashion-mnist:f", "cifar10:f"):  # which have images that nothing is trained on
        read = inputs(source, data="l", size=5, channels=3).unseen(latents(), teacher)
        assert read == (source, {**options, "split": "test"})
    assert inputs(data="l").unseen(latents(), teacher) is None


def test_samples_are_compared_with_held_out_images_of_their_own_classes(monkeypatch):
    images = SimpleNamespace(labels=torch.tensor([0, 1]), names=("cat", "dog"))
    monkeypatch.setattr(evaluation_inputs, "load", lambda spec, **options: images)

    def read(against, *names, encode=False):
        teacher = SimpleNamespace(codec=None, shape=(2, 4, 4), class_names=names)
        return inputs("photos", against, data="l").unseen(images, teacher, encode=encode)

    assert (
        read("held-out", "cat", "dog") is read("held-out") is read("data", "dog", "cat") is images
    )
    with pytest.raises(ConfigError, match="the held-out data has the classes"):
        read("held-out", "dog", "cat")
    with pytest.raises(ConfigError, match="the held-out data has the classes"):
        read("data", "dog", "cat", encode=True)  # their labels are what they are encoded with


def test_distances_to_held_out_images_need_them():
    assert inputs("photos", "held-out", data="l").against == "held-out"
    with pytest.raises(ConfigError, match="write --held-out DATA"):
        inputs(None, "held-out", data="l")
    with pytest.raises(ConfigError, match="no choice of real images 'test'"):
        inputs("photos", "test", data="l")


def test_a_run_without_data_is_refused():
    with pytest.raises(ConfigError, match="--data DATA"):
        inputs()
