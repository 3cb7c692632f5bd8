"""Runs of flow maps: resumed to the bit, in micro-batches, gated at every number of steps."""

import dataclasses
from dataclasses import replace

import pytest
import torch

import halfstep
from halfstep import RunFolder
from halfstep.data import NoData
from halfstep.diffusion.prediction import Eps
from halfstep.errors import ConfigError
from halfstep.evaluation import Gate, Interval
from halfstep.methods import FlowMap
from halfstep.models import recipe
from halfstep.models.lora import Lora
from halfstep.pipeline import Pipeline
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

METHOD = FlowMap(start=8, first=4, updates=(5,), t_end_embed_dim=8)
every_data = pytest.mark.parametrize(
    "data", [None, NoData(), NoData(walk="student")], ids=["data", "none", "none:student"]
)


@every_data
@pytest.mark.parametrize("update", [2, 4])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, data, update):
    halve(tmp_path / "whole", data=data, method=METHOD)
    halted(tmp_path / "killed", "flow-map", update, data=data, method=METHOD)
    halve(tmp_path / "killed", data=data, method=METHOD)
    assert bits(tmp_path / "killed") == bits(tmp_path / "whole")
    assert logged_lines(tmp_path / "killed") == logged_lines(tmp_path / "whole")


@pytest.mark.parametrize("walk", ["teacher", "student", None])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_are_one_batch(tmp_path, walk, size):
    """Also such that have rows of one kind alone."""
    from tests.support.runs import doubled

    data = doubled() if walk is None else DoubleNoData(walk=walk)
    one = halve(tmp_path / "one", data=data, pipeline=double_teacher(), method=METHOD)
    many = halve(
        tmp_path / "many",
        data=data,
        pipeline=double_teacher(),
        method=METHOD,
        micro_batch_size=size,
    )
    assert furthest(weights_of(one), weights_of(many)) < 1e-9


def test_the_student_is_saved_with_all_that_it_serves(tmp_path):
    student = halve(tmp_path / "r", method=METHOD)
    loaded = RunFolder(tmp_path / "r").student(3)
    assert recipe(loaded.denoiser.net)[1]["t_end_embed_dim"] == 8
    assert (loaded.sampler, loaded.fine_times) == ("flow-map", student.fine_times)
    assert [len(times) - 1 for times in loaded.times] == [4, 2, 1]
    for steps in range(1, 9):
        assert torch.equal(loaded.sample(2, steps=steps), student.sample(2, steps=steps))
    assert torch.equal(loaded.sample(2), student.sample(2, steps=3))
    cost = RunFolder(tmp_path / "r").cost
    assert cost["forwards"] == 5 * 6 * 3 + 15 + 15 * 2  # of 30 rows 15 are fine


def test_the_gate_judges_every_number_and_stops_nothing(tmp_path):
    measured = []

    def measure(student, n):
        assert student.sample(2).isfinite().all()
        measured.append(student.step_counts)
        return Interval(1.0 / measured[-1][0] + 0.9, 0.0, 9.0)

    gate = Gate(measure, 1.2, file=tmp_path / "gate.json", samples=10, most=10)
    halve(tmp_path / "r", method=METHOD, job=job(gate=gate))
    assert measured == [(4,), (2,), (1,)]
    assert gate.best.steps == 4 and gate.best.stage == "flow-map"


def test_a_lora_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="lora"):
        halve(tmp_path / "r", method=METHOD, lora=Lora(rank=2))
    assert not (tmp_path / "r").exists()


def test_an_eps_teacher_of_classes(tmp_path):
    """It becomes a v teacher first; labels reach every call."""
    training = dataclasses.replace(TRAINING, batch_size=3, ema=0.0)
    student = halfstep.distill(
        labelled(Eps()), "none", tmp_path / "r", method=METHOD, training=training, job=job()
    )
    assert len(student.times) == 3
    assert all(p.isfinite().all() for p in student.denoiser.parameters())


def test_a_teacher_that_takes_the_scale(tmp_path):
    """guided first, then a flow map: scale and end are both inputs."""
    training = dataclasses.replace(TRAINING, batch_size=3, ema=0.0)
    guided = halfstep.GuidedDistillation(updates=2, halving=None, guidance_embed_dim=8)
    teacher = halfstep.distill(
        labelled(), "none", tmp_path / "g", method=guided, training=training, job=job()
    )
    student = halfstep.distill(
        teacher, "none", tmp_path / "r", method=METHOD, training=training, job=job()
    )
    assert student.guidance_range == (1.0, 5.0)
    assert student.sample(2, guidance_scale=3.0, steps=3).isfinite().all()
    assert Pipeline.load(RunFolder(tmp_path / "r").stages[0]).guidance_range == (1.0, 5.0)


def test_a_flow_map_of_a_flow_map_and_of_its_halvings_is_refused(tmp_path):
    student = halve(tmp_path / "r", method=METHOD)
    for method in (METHOD, halfstep.Progressive(start=4, stop=2, updates=(1,))):
        with pytest.raises(ConfigError, match="flow-map"):
            halve(tmp_path / "again", method=method, pipeline=student)


def test_a_students_grid_is_its_fine_grid(tmp_path):
    """Of a student of 8 steps, as teacher: its own grid, and no other."""
    first = halve(tmp_path / "h", method=halfstep.Progressive(start=16, stop=8, updates=(1,)))
    student = halve(tmp_path / "r", method=METHOD, pipeline=first)
    assert student.fine_times == first.times[0]
    with pytest.raises(ConfigError, match="8 steps"):
        halve(tmp_path / "s", method=replace(METHOD, start=16), pipeline=first)
