"""A program is kept only if it draws the student's samples."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

import halfstep
from halfstep.errors import CheckpointError, ConfigError
from halfstep.identity import digest_of
from halfstep.workflows import program_files
from halfstep.workflows.export import WRITERS
from halfstep.workflows.exported import ExportConfig, Format
from tests.support.programs import exported_student


@pytest.fixture
def student(tmp_path):
    exported_student("mlp").save(tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture(scope="module")
def programs():
    """Programs that are traced already, by the weights, times and steps of their student."""
    return {}


@pytest.fixture
def traced_once(programs, monkeypatch):
    """The student's program is traced in the first of these tests alone: that takes most of their time."""

    def export(pipeline, steps):
        key = digest_of(pipeline.denoiser), pipeline.times, steps
        if key not in programs:
            programs[key] = export_program(pipeline, steps)
        return programs[key]

    export_program = program_files.export_program
    monkeypatch.setattr(program_files, "export_program", export)


@pytest.mark.parametrize(
    "dtype, least, most", [("float32", 0, 1e-6), ("float16", 1e-5, 1e-2), ("bfloat16", 1e-4, 0.1)]
)
def test_the_difference_is_from_the_student_in_float32(student, traced_once, dtype, least, most):
    exported = halfstep.export(student, student.parent / "out", format="torch-export", dtype=dtype)
    assert [path.name for path in exported.files] == ["README.md", "student.pt2"]
    assert least <= exported.difference < most and exported.compared == 8
    assert f"network in {dtype}" in (student.parent / "out" / "README.md").read_text()


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("wrong", [2e-5, float("nan")])
def test_a_program_of_other_samples_is_removed(student, traced_once, monkeypatch, alone, wrong):
    def off(program, noise, conditions):
        drawn = run_program(program, noise, conditions)
        return drawn + wrong if (len(noise) == 1) is alone else drawn

    run_program = program_files.run_program
    monkeypatch.setattr(program_files, "run_program", off)
    with pytest.raises(CheckpointError, match=f"{1 if alone else 8} at once differ by"):
        halfstep.export(student, student.parent / "out", format="torch-export")
    assert not (student.parent / "out").exists()


def test_values_beyond_one_are_compared_relatively(student, traced_once, monkeypatch):
    samples, run_program = program_files.student_samples, program_files.run_program
    monkeypatch.setattr(program_files, "student_samples", lambda *args: 100 * samples(*args))
    monkeypatch.setattr(program_files, "run_program", lambda *args: 100 * run_program(*args) + 2e-4)
    exported = halfstep.export(student, student.parent / "out", format="torch-export")
    assert exported.difference == pytest.approx(2e-4, rel=0.1)


@pytest.mark.parametrize("format", ["torch-export", "onnx"])
def test_what_no_program_holds_is_refused(format, tmp_path):
    config = ExportConfig(run=tmp_path, out=tmp_path / "out", format=format)
    stochastic = replace(exported_student("mlp"), sampler="stochastic")
    with pytest.raises(ConfigError, match="a program is a step of DDIM"):
        WRITERS[format](stochastic, config)
    int8 = exported_student("mlp")
    int8.denoiser.net.quantised = {"kind": "int8-dynamic"}
    with pytest.raises(ConfigError, match="int8"):
        WRITERS[format](int8, config)
    assert not config.out.exists()


def test_every_format_has_a_writer():
    assert {*WRITERS, "lora"} == set(get_args(Format))


@pytest.mark.parametrize("format", ["torch-export", "onnx"])
def test_weights_beyond_float16_are_refused(format, tmp_path):
    pipeline = exported_student("mlp")
    with torch.no_grad():
        next(pipeline.denoiser.parameters()).fill_(7e4)
    pipeline.save(tmp_path / "a")
    with pytest.raises(ConfigError, match="float16"):
        halfstep.export(tmp_path / "a", tmp_path / "out", format=format, dtype="float16")
    assert not (tmp_path / "out").exists()


def test_without_onnx_one_sentence(student, monkeypatch):
    from halfstep.pipeline import onnx_export

    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'halfstep\[onnx\]'"):
        halfstep.export(student, student.parent / "out", format="onnx")
    assert not (student.parent / "out").exists()
