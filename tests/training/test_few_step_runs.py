"""Runs of the few-step methods: resumed to the bit, in micro-batches, with every kind of teacher."""

import dataclasses

import pytest

import halfstep
from halfstep.data import NoData
from halfstep.diffusion.prediction import Eps
from halfstep.methods import MultistepConsistency, Progressive
from halfstep.models.lora import Lora
from halfstep.training.run_folder import RunFolder
from tests.support.runs import (
    bits,
    double_teacher,
    furthest,
    halted,
    halve,
    job,
    logged_lines,
    TRAINING,
    weights_of,
)
from tests.training.test_without_data import DoubleNoData, labelled

METHODS = {
    "multistep consistency": MultistepConsistency(start=8, first=2, updates=(5,)),
    "adjusted": MultistepConsistency(start=8, first=2, addim=0.1, updates=(5,)),
    "of heun": MultistepConsistency(start=8, first=2, solver="heun", updates=(5,)),
    "by four": Progressive(start=8, first=2, updates=(5,)),
}
RAMP = MultistepConsistency(start=8, first=2, ramp_from=2, addim=0.1, updates=(5,))
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
every_data = pytest.mark.parametrize(
    "data", [None, NoData(), NoData(walk="student")], ids=["data", "none", "none:student"]
)


@every_method
@every_data
@pytest.mark.parametrize("stage, update", [("0002-steps", 4), ("0001-steps", 2)])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, method, data, stage, update):
    _goes_on(tmp_path, method, data, stage, update)


@pytest.mark.parametrize("update", [1, 4])
def test_a_killed_ramp_goes_on_to_the_same_bits(tmp_path, update):
    _goes_on(tmp_path, RAMP, None, "0002-steps", update)
    halve(tmp_path / "even", method=dataclasses.replace(RAMP, ramp_from=None))
    assert bits(tmp_path / "even") != bits(tmp_path / "whole")


def _goes_on(tmp_path, method, data, stage, update):
    halve(tmp_path / "whole", data=data, method=method)
    halted(tmp_path / "killed", stage, update, data=data, method=method)
    halve(tmp_path / "killed", data=data, method=method)
    assert bits(tmp_path / "killed") == bits(tmp_path / "whole")
    assert logged_lines(tmp_path / "killed") == logged_lines(tmp_path / "whole")


@every_method
@pytest.mark.parametrize("walk", ["teacher", "student"])
def test_micro_batches_are_one_batch(tmp_path, method, walk):
    data = DoubleNoData(walk=walk)
    one = halve(tmp_path / "one", data=data, pipeline=double_teacher(), method=method)
    two = halve(
        tmp_path / "two", data=data, pipeline=double_teacher(), method=method, micro_batch_size=2
    )
    assert furthest(weights_of(one), weights_of(two)) < 1e-9


@every_method
def test_an_eps_teacher_of_classes(tmp_path, method):
    """It becomes a v teacher first; labels reach every call."""
    training = dataclasses.replace(TRAINING, batch_size=3, ema=0.0)
    student = halfstep.distill(
        labelled(Eps()), "none", tmp_path / "r", method=method, training=training, job=job()
    )
    assert student.times and all(p.isfinite().all() for p in student.denoiser.parameters())


@every_method
def test_a_lora(tmp_path, method):
    training = dataclasses.replace(TRAINING, batch_size=3, ema=0.0)
    student = halfstep.distill(
        labelled(), "none", tmp_path / "r", method=method, training=training, job=job(),
        lora=Lora(rank=2),
    )  # fmt: skip
    again = RunFolder(tmp_path / "r").student(steps=1)
    assert (student.sample(2, seed=1) - again.sample(2, seed=1)).abs().max() < 1e-5


@every_method
def test_a_teacher_that_takes_the_scale(tmp_path, method):
    """guided first, then any of these: the scale reaches teacher and student."""
    training = dataclasses.replace(TRAINING, batch_size=3, ema=0.0)
    guided = halfstep.GuidedDistillation(updates=2, halving=None, guidance_embed_dim=8)
    teacher = halfstep.distill(
        labelled(), "none", tmp_path / "g", method=guided, training=training, job=job()
    )
    student = halfstep.distill(
        teacher, "none", tmp_path / "r", method=method, training=training, job=job()
    )
    assert student.guidance_range == (1.0, 5.0)
    assert student.sample(2, guidance_scale=3.0).isfinite().all()
