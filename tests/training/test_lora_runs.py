"""Runs whose students are LoRAs: the adapter alone is trained, saved and read; the base is there once."""

import shutil
from dataclasses import replace

import pytest
import torch

from halfstep import Pipeline
from halfstep.errors import ConfigError
from halfstep.methods import Progressive, Shrink
from halfstep.models.lora import Lora
from halfstep.training import distill
from halfstep.training.run_folder import RunFolder
from tests.support.runs import double_teacher, doubled, points, teacher, TRAINING

HALVE = Progressive(start=4, stop=1, updates=(6,))
LORA = Lora(rank=2)


def run(out, teacher_, *, method=HALVE, data=None, lora=LORA, **options):
    return distill(
        teacher_, data or points(), out, method=method, training=TRAINING, lora=lora, **options
    )


def test_the_teacher_is_left_as_it_was_and_the_students_differ(tmp_path):
    given = teacher()
    before = given.sample(4, seed=1, steps=4)
    student = run(tmp_path, given)
    assert torch.equal(before, given.sample(4, seed=1, steps=4))
    assert all(p.requires_grad for p in given.denoiser.parameters())
    assert not torch.allclose(student.sample(4, seed=1), given.sample(4, seed=1, steps=1))


def test_a_stage_is_small_and_the_loaded_student_is_the_one_in_memory(tmp_path):
    student = run(tmp_path / "run", teacher())
    shutil.move(tmp_path / "run", tmp_path / "moved")
    folder = RunFolder.open(tmp_path / "moved")
    loaded = folder.student()
    assert (loaded.sample(5) - student.sample(5)).abs().max() < 1e-5
    student.save(tmp_path / "whole")
    assert torch.equal(Pipeline.load(tmp_path / "whole").sample(5), loaded.sample(5))


def test_the_same_call_returns_the_same_bits_and_another_rank_is_refused(tmp_path):
    first = run(tmp_path, teacher())
    assert torch.equal(first.sample(3), run(tmp_path, teacher()).sample(3))
    with pytest.raises(ConfigError, match="lora_rank = 2"):
        run(tmp_path, teacher(), lora=Lora(rank=3))
    with pytest.raises(ConfigError, match="lora_rank = 2"):
        run(tmp_path, teacher(), lora=None)


def test_a_student_of_a_lora_run_is_a_teacher_again(tmp_path):
    student = run(tmp_path / "a", teacher(), method=Progressive(start=4, stop=2, updates=(3,)))
    again = Progressive(start=2, stop=1, updates=(3,))
    from_memory = run(tmp_path / "b", student, method=again)
    loaded = RunFolder.open(tmp_path / "a").student()
    from_disk = run(tmp_path / "c", loaded, method=again)
    assert torch.equal(from_memory.sample(3), from_disk.sample(3))


def test_in_float64_the_adapter_is_too(tmp_path):
    student = run(tmp_path, double_teacher(), data=doubled())
    assert {p.dtype for p in student.denoiser.parameters()} == {torch.float64}


@pytest.mark.parametrize("method", [Shrink(student={"width": "4"})])
def test_a_smaller_network_is_no_lora(method, tmp_path):
    with pytest.raises(ConfigError, match="another network"):
        run(tmp_path, teacher(), method=method)
    assert not list(tmp_path.iterdir())


def test_rank_0_is_refused():
    with pytest.raises(ConfigError, match="rank must be at least 1, got 0"):
        Lora(rank=0)


def test_in_bf16_the_base_is_stored_so_and_the_stage_has_it_in_float32(tmp_path):
    given = teacher()
    before = given.sample(3)
    training = replace(TRAINING, precision="bf16")
    student = distill(given, points(), tmp_path, method=HALVE, training=training, lora=LORA)
    base = student.denoiser.net.base
    assert {p.dtype for p in base.weights} == {torch.bfloat16, torch.float32}
    assert {p.dtype for p in student.denoiser.parameters()} == {torch.float32}
    loaded = RunFolder.open(tmp_path).student()
    assert (student.sample(4) - loaded.sample(4)).abs().max() < 0.05
    assert torch.equal(given.sample(3), before)
    with pytest.raises(ConfigError, match="load the stage"):
        student.save(tmp_path / "whole")
