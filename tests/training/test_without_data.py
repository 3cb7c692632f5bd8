"""Runs without data: resumed to the bit, in micro-batches and on two processes what one process does."""

import dataclasses

import pytest
import torch

import halfstep
from halfstep.batch import Batch
from halfstep.data import load, NoData
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import Eps, V
from halfstep.diffusion.schedules import Cosine
from halfstep.errors import ConfigError
from halfstep.methods import Encoder, GuidedDistillation, Progressive, Reparameterise, Stochastic
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.training.run_folder import RunFolder
from tests.support.runs import (
    bits,
    double_teacher,
    furthest,
    halted,
    halve,
    job,
    logged_lines,
    losses,
    teacher,
    TRAINING,
    weights_of,
)

WALKERS = ["teacher", "student"]
SMALL = dict(img_size=4, patch_size=2, in_chans=1, embed_dim=8, depth=2, num_heads=2)


class DoubleNoData(NoData):
    """Walks in float64, for what has to agree to more than seven digits."""

    def batch(self, rows):
        plain = super().batch(rows)
        return Batch(plain.x0.double(), plain.cond, plain.ids)


def labelled(parameterisation=None, classes=3):
    """A small network of classes with a null class."""
    torch.manual_seed(0)
    net = build("uvit", {**SMALL, "num_classes": classes + 1})
    names = tuple("abc"[:classes])
    denoiser = Denoiser(net, Cosine(), parameterisation or V())
    return Pipeline(denoiser, (1, 4, 4), class_names=names, null=classes)


@pytest.mark.parametrize("walk", WALKERS)
@pytest.mark.parametrize("update", [1, 4, 6])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, walk, update):
    data = NoData(walk=walk)
    halve(tmp_path / "whole", data=data)
    halted(tmp_path / "killed", "0004-steps", update, data=data)
    halve(tmp_path / "killed", data=data)
    assert bits(tmp_path / "killed") == bits(tmp_path / "whole")
    assert logged_lines(tmp_path / "killed") == logged_lines(tmp_path / "whole")


@pytest.mark.parametrize("walk", WALKERS)
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_micro_batches_walk_as_one(tmp_path, walk, micro):
    data = DoubleNoData(walk=walk)
    one = halve(tmp_path / "one", data=data, pipeline=double_teacher())
    two = halve(tmp_path / "two", data=data, pipeline=double_teacher(), micro_batch_size=micro)
    assert furthest(weights_of(one), weights_of(two)) < 1e-9


def test_by_name_and_as_an_object_it_is_one_run(tmp_path):
    halve(tmp_path / "a", data="none")
    halve(tmp_path / "b", data=NoData())
    halve(tmp_path / "c", data="none:student")
    assert bits(tmp_path / "a") == bits(tmp_path / "b") != bits(tmp_path / "c")
    for name, spec in (("a", "none"), ("b", "none"), ("c", "none:student")):
        assert RunFolder(tmp_path / name).config["data"] == spec
    about = RunFolder(tmp_path / "a").about
    assert about["options"]["data"] == NoData().fingerprint()[:16]
    with pytest.raises(ConfigError, match="data = "):
        halve(tmp_path / "a", data="none:student")


def test_training_lowers_the_loss(tmp_path):
    method = Progressive(start=4, stop=2, updates=(120,))
    halve(tmp_path / "r", data="none", method=method, batch_size=32, learning_rate=3e-3)
    first, *_, last = losses(tmp_path / "r")
    assert last < 0.5 * first


def test_the_cost_is_told(tmp_path):
    for name, walk in (("t", "teacher"), ("s", "student")):
        halve(tmp_path / name, data=NoData(walk=walk))
    [first, second] = [RunFolder(tmp_path / "t").finished(f"000{n}-steps") for n in (4, 2)]
    assert first["forwards"] == 6 * (7 * 5 + 3 * 2) and second["forwards"] == 6 * (14 * 5 + 2)
    [first, second] = [RunFolder(tmp_path / "s").finished(f"000{n}-steps") for n in (4, 2)]
    assert first["forwards"] == 7 * (6 * 5 + 2 * 3) and second["forwards"] == 14 * (6 * 5 + 3 * 1)


@pytest.mark.parametrize("walk", WALKERS)
@pytest.mark.parametrize(
    "method",
    [
        Stochastic(start=8, stop=4, updates=(2,)),
        GuidedDistillation(updates=2, halving=Progressive(start=4, stop=2, updates=(2,))),
        Reparameterise(updates=2),
    ],
    ids=lambda m: type(m).__name__,
)
def test_every_method_that_walks(tmp_path, method, walk):
    """Of classes; an eps teacher becomes a v teacher first, without data as well."""
    predicts = Eps() if isinstance(method, GuidedDistillation | Reparameterise) else V()
    training = dataclasses.replace(TRAINING, batch_size=3, ema=0.0)
    for out in ("a", "b"):
        student = halfstep.distill(
            labelled(predicts), NoData(walk=walk), tmp_path / out,
            method=method, training=training, job=job(),
        )  # fmt: skip
    assert all(p.isfinite().all() for p in student.denoiser.parameters())
    assert bits(tmp_path / "a") == bits(tmp_path / "b")


def test_labels_are_the_teachers():
    training = dataclasses.replace(TRAINING, batch_size=3)
    for data, message in (
        (NoData(labels=(0, 3)), "3 classes"),
        (NoData(prompts=("a cat",)), "reads texts"),
    ):
        with pytest.raises(ConfigError, match=message):
            halfstep.distill(
                labelled(),
                data,
                "unused",
                method=Progressive(start=2),
                training=training,
                job=job(),
            )
    with pytest.raises(ConfigError, match="teacher of classes"):
        halve("unused", data=NoData(labels=(0,)))
    for labels in ((), (-1,), (0.5,), ((1,),)):
        with pytest.raises(ConfigError, match="whole numbers"):
            NoData(labels=labels)
    with pytest.raises(ConfigError, match="walk="):
        NoData(walk="noise")


def test_what_needs_data_is_refused_before_there_is_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="Encoder"):
        halve(tmp_path / "r", data="none", method=Encoder(start=4, stop=2))
    with pytest.raises(ConfigError, match="compares with data"):
        halfstep.distill(
            teacher(), "none", tmp_path / "r", method=Progressive(start=4, updates=(1,)),
            training=TRAINING, gate=halfstep.QualityGate(), job=job(),
        )  # fmt: skip
    with pytest.raises(ConfigError, match="name some"):
        load("none")
    assert not (tmp_path / "r").exists()
