"""Write a student as a program of one DDIM step, which other software runs."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from halfstep import files
from halfstep.batch import Cond
from halfstep.errors import CheckpointError
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import condition
from halfstep.pipeline.onnx_export import check_packages, onnx_model, run_onnx, save_onnx
from halfstep.pipeline.torch_export import (
    conditions_of,
    export_program,
    in_dtype,
    Program,
    refuse_unexportable,
    rounded_student,
    run_program,
)
from halfstep.rng import sample_noise
from halfstep.storage import write_text
from halfstep.workflows.exported import (
    compare,
    COMPARED,
    DTYPES,
    ExportConfig,
    Exported,
    lowest_scale,
    student_samples,
)
from halfstep.workflows.model_card import onnx_card, program_card

TORCH_PROGRAM = "student.pt2"
ONNX_MODEL = "student.onnx"
BOUND = 1e-5
"""The largest difference between a program's samples and the student's, relative to values beyond 1."""
ROUNDINGS = 4
"""The same of a network that computes in half precision, in roundings of that type."""


def write_torch_export(pipeline: Pipeline, config: ExportConfig) -> Exported:
    """Write student.pt2, which `torch.export.load` reads; its network computes in the dtype."""
    refuse_unexportable(pipeline)
    dtype = DTYPES[config.dtype]
    student = pipeline if dtype is None else in_dtype(pipeline, dtype)
    program = export_program(student, _steps(config, pipeline))
    buffer = io.BytesIO()  # torch's own writer ends the process where the disk is full
    torch.export.save(program.exported, buffer)
    path = files.make_folder(config.out) / TORCH_PROGRAM
    with files.replacing(path) as (part,):
        files.fill(part, buffer.getbuffer())
    again = replace(program, exported=torch.export.load(path))
    bound = BOUND if dtype is None else ROUNDINGS * torch.finfo(dtype).eps
    exported = _prove(pipeline, student, program, partial(run_program, again), bound)
    write_text(config.out / "README.md", program_card(pipeline, config.run, program, config.dtype))
    return exported


def write_onnx(pipeline: Pipeline, config: ExportConfig) -> Exported:
    """Write student.onnx, which ONNX Runtime runs in float32, with weights of the dtype."""
    check_packages()
    refuse_unexportable(pipeline)
    dtype = DTYPES[config.dtype]
    student = pipeline if dtype is None else rounded_student(pipeline, dtype)
    program = export_program(student, _steps(config, pipeline))
    path = files.make_folder(config.out) / ONNX_MODEL
    save_onnx(onnx_model(program, dtype or torch.float32), path)
    exported = _prove(pipeline, student, program, partial(run_onnx, path, program), BOUND)
    write_text(config.out / "README.md", onnx_card(pipeline, config.run, program, config.dtype))
    return exported


Draw = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""Draws samples from noise and conditions with the program that was written."""


def _steps(config: ExportConfig, pipeline: Pipeline) -> int | None:
    return None if pipeline.times else config.steps


def _prove(
    pipeline: Pipeline, student: Pipeline, program: Program, draw: Draw, bound: float
) -> Exported:
    """Compare the program's samples with the pipeline's; `CheckpointError` unless they are the student's.

    student  the pipeline with its weights in the type of the file
    bound    the largest difference from the student's samples, where their largest value is 1 or less

    Eight samples are drawn at once, and the first alone: a trace takes the batch for larger than 1.
    """
    own = student_samples(student, program.steps)
    drawn = {}
    for n in (COMPARED, 1):
        noise = sample_noise(0, range(n), student.shape)
        drawn[n] = draw(noise, _conditions(student, n))
        largest = float((drawn[n] - own[:n]).abs().max() / own.abs().max().clamp(min=1))
        if not largest <= bound:  # NaN too
            raise CheckpointError(
                f"the program does not draw the student's samples: {n} at once differ by {largest:.2g}, "
                f"and {bound:.2g} is allowed, so it was removed: leave --format out, or write another dtype"
            )
    original = own if student is pipeline else student_samples(pipeline, program.steps)
    return compare(original, drawn[COMPARED], exact=False)


def _conditions(pipeline: Pipeline, n: int) -> list[Tensor]:
    """The inputs that `Pipeline.sample` gives the network by default."""
    scale = lowest_scale(pipeline) if pipeline.takes_scale else None
    named = (condition(pipeline, n, guidance_scale=scale) or Cond()).named()
    values = [named[name] for name in conditions_of(pipeline)]
    return [value.float() if value.is_floating_point() else value for value in values]
