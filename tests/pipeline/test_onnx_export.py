"""ONNX models of students: the samples of halfstep's own in ONNX Runtime, to 1e-5, in every batch."""

from functools import partial

import pytest
import torch

from halfstep.errors import ConfigError
from halfstep.pipeline import onnx_export
from halfstep.pipeline.onnx_export import check_packages, onnx_model, run_onnx, save_onnx
from halfstep.pipeline.torch_export import export_program, rounded_student
from tests.support.programs import exported_student, largest_difference

slow = pytest.mark.slow


def written(pipeline, path, dtype=torch.float32):
    """The function that draws samples with the pipeline's model in this file."""
    program = export_program(pipeline)
    save_onnx(onnx_model(program, dtype), path)
    return partial(run_onnx, path, program)


@pytest.mark.parametrize(
    "name",
    ["mlp", *(pytest.param(n, marks=slow) for n in ("uvit", "unet", "unet-condition", "dit"))],
)
def test_batches_of_any_size(name, tmp_path):
    pipeline = exported_student(name)
    draw = written(pipeline, tmp_path / "student.onnx")
    assert largest_difference(pipeline, draw) < 1e-5


@slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["mlp", "uvit", "unet"])
def test_weights_in_half_precision(name, dtype, tmp_path):
    student = rounded_student(exported_student(name), dtype)
    draw = written(student, tmp_path / "half.onnx", dtype)
    assert largest_difference(student, draw) < 1e-5
    written(student, tmp_path / "whole.onnx")
    saved = (tmp_path / "whole.onnx").stat().st_size - (tmp_path / "half.onnx").stat().st_size
    weights = sum(p.numel() for p in student.denoiser.parameters() if p.ndim > 1)
    # Two bytes a weight are saved, less the casts.
    assert saved > 2 * weights - 150 * len(list(student.denoiser.parameters()))


def test_weights_in_two_bytes_each():
    import onnx_ir

    five = exported_student("mlp", times=(1.0, 0.8, 0.6, 0.4, 0.2, 0.0))
    student = rounded_student(five, torch.bfloat16)
    model = onnx_model(export_program(student), torch.bfloat16)
    tensors = [value.const_value for value in model.graph.initializers.values()]
    matrices = [p for p in student.denoiser.parameters() if p.ndim > 1]
    stored = [one for one in tensors if one.dtype == onnx_ir.DataType.BFLOAT16]
    assert sum(len(one.shape) > 1 for one in stored) == len(matrices)
    tables = [one for one in tensors if list(one.shape) == [5]]  # one value a step
    assert {one.dtype for one in tables} == {onnx_ir.DataType.FLOAT}
    assert {v.name for v in model.graph.inputs} == {"x", "step", "label", "guidance_scale"}
    for node in model.graph:
        assert (
            not node.metadata_props and not node.doc_string
        )  # stack traces hold paths of this machine


def test_large_weights_go_to_a_second_file(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "ONE_FILE", 1000)
    monkeypatch.setattr(onnx_export, "SMALL", 512)
    pipeline = exported_student("mlp")
    draw = written(pipeline, tmp_path / "student.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["student.onnx", "student.onnx.data"]
    assert (tmp_path / "student.onnx.data").stat().st_size > 2000
    assert largest_difference(pipeline, draw, (1, 3)) < 1e-5


def test_a_weight_that_is_not_rounded_stays_whole():
    import onnx_ir

    model = onnx_model(export_program(exported_student("mlp")), torch.bfloat16)
    tensors = [value.const_value for value in model.graph.initializers.values()]
    matrices = [one for one in tensors if len(one.shape) > 1]
    assert matrices and {one.dtype for one in matrices} == {onnx_ir.DataType.FLOAT}


@pytest.mark.parametrize("missing, be", [(("onnxruntime",), "is"), (("onnx", "onnxscript"), "are")])
def test_without_the_packages(missing, be, monkeypatch):
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name in missing else name)
    with pytest.raises(ConfigError, match=rf"{missing[0]}.* {be} not installed.*halfstep\[onnx\]"):
        check_packages()
