"""Write a student as a program of one DDIM step, which other software runs."""

import io
from dataclasses import replace

import torch
from torch import Tensor

from halfstep import files
from halfstep.batch import Cond
from halfstep.errors import ConfigError
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import condition
from halfstep.pipeline.torch_export import (
    conditions_of,
    export_program,
    refuse_unexportable,
    run_program,
)
from halfstep.rng import sample_noise
from halfstep.storage import write_text
from halfstep.workflows.exported import (
    compare,
    COMPARED,
    ExportConfig,
    Exported,
    lowest_scale,
    student_samples,
)
from halfstep.workflows.model_card import batch_sizes, program_card

TORCH_PROGRAM = "student.pt2"


def write_torch_export(pipeline: Pipeline, config: ExportConfig) -> Exported:
    """Write student.pt2, which `torch.export.load` reads."""
    if config.dtype != "float32":
        raise ConfigError(f"student.pt2 is written in float32: leave dtype {config.dtype} out")
    out = config.out
    refuse_unexportable(pipeline)
    program = export_program(pipeline, config.steps if not pipeline.times else None)
    buffer = io.BytesIO()  # torch's own writer ends the process where the disk is full
    torch.export.save(program.exported, buffer)
    with files.replacing(files.make_folder(out) / TORCH_PROGRAM) as (part,):
        files.fill(part, buffer.getbuffer())
    again = replace(program, exported=torch.export.load(out / TORCH_PROGRAM))
    n = min(COMPARED, program.batch[1] or COMPARED)
    noise = sample_noise(0, range(n), pipeline.shape)
    samples = run_program(again, noise, _conditions(pipeline, n))
    exported = compare(student_samples(pipeline, program.steps)[:n], samples, exact=False)
    write_text(out / "README.md", program_card(pipeline, config.run, program))
    return replace(exported, batch=batch_sizes(program))


def _conditions(pipeline: Pipeline, n: int) -> list[Tensor]:
    """The inputs that `Pipeline.sample` gives the network by default."""
    scale = None if pipeline.guidance_range is None else lowest_scale(pipeline)
    cond = condition(pipeline, n, guidance_scale=scale) or Cond()
    return [cond.named()[name] for name in conditions_of(pipeline)]
