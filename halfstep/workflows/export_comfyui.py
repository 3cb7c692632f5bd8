"""Write a student as a file and a workflow for ComfyUI, kept only if diffusers reads the same student."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn, Tensor

from halfstep import files
from halfstep.errors import CheckpointError
from halfstep.models import wrap_diffusers
from halfstep.models.diffusers_net import diffusers_class
from halfstep.pipeline import Pipeline
from halfstep.pipeline.from_diffusers.folder import reading
from halfstep.pipeline.from_diffusers.source import single_file
from halfstep.pipeline.to_comfyui.student import comfy_student, ComfyStudent, with_net
from halfstep.pipeline.to_comfyui.workflow import workflow
from halfstep.storage import save_tensors, write_text
from halfstep.workflows.comfyui_card import comfyui_card
from halfstep.workflows.exported import DTYPES, ExportConfig, Exported

FILE, WORKFLOW = "student.safetensors", "workflow_api.json"
DRAWN = 4
NEAR = 1e-4
"""The largest difference of samples that are the same, relative to the largest value."""


def write_comfyui(pipeline: Pipeline, config: ExportConfig) -> Exported:
    """Write student.safetensors, and workflow_api.json with the nodes that sample it.

    The file is read back by diffusers, tensor by tensor, and draws four samples with the scheduler that takes
    ComfyUI's steps: those of the student, in the precision of the file.

    `ConfigError` where ComfyUI would draw other samples than the student, `CheckpointError` where the file
    that is read back does.
    """
    student = comfy_student(
        pipeline,
        steps=config.steps,
        source=config.source,
        guidance_scale=config.guidance_scale,
        dtype=DTYPES[config.dtype],
    )
    out = files.make_folder(config.out)
    save_tensors(out / FILE, student.tensors())
    again = read_back(student, out / FILE)
    difference = _difference(_drawn(student, student.pipeline), _drawn(student, again))
    graph = workflow(
        FILE,
        student.model,
        student.sampling,
        student.size,
        None if student.pipeline.guidance_range is None else student.scale,
    )
    write_text(out / WORKFLOW, json.dumps(graph, indent=2) + "\n")
    write_text(
        out / "README.md", comfyui_card(pipeline, student, config, (FILE, WORKFLOW), difference)
    )
    return Exported(files=(), compared=DRAWN, difference=difference, relative=True)


def read_back(student: ComfyStudent, path: Path) -> Pipeline:
    """The student with the network in the file, to be sampled by diffusers' scheduler.

    `CheckpointError` unless diffusers reads every tensor of the file as it was before it was renamed.
    """
    parts: dict[str, Any] = {}
    if student.model.encoders:
        pipeline = single_file(path, student.folder)
        network, parts = pipeline.unet, {name: getattr(pipeline, name) for name in student.parts}
    else:
        cls = diffusers_class(student.model.network)
        with reading(f"'{path}'"):
            network = cls.from_single_file(
                str(path),
                config=str(student.folder),
                subfolder="transformer",
                local_files_only=True,
            )
    _refuse_other_tensors(student.network, network, student.dtype)
    for name, part in student.parts.items():
        _refuse_other_tensors(part, parts[name], student.dtype)
    again = with_net(student.pipeline, wrap_diffusers(network.float()))
    scheduler = student.sampling.scheduler()
    return replace(again, times=(), sampler="scheduler", scheduler=scheduler)


def _drawn(student: ComfyStudent, pipeline: Pipeline) -> Tensor:
    return pipeline.sample(
        DRAWN, steps=student.sampling.steps, guidance_scale=student.scale, latents=True
    )


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value; `CheckpointError` above the bound."""
    difference = float((theirs - ours).abs().max() / ours.abs().max())
    if not difference <= NEAR:
        raise CheckpointError(
            f"the file that was read back draws samples that differ by {difference:.1e} of the largest "
            f"value, {NEAR:g} is allowed, so it was removed: write format='pipeline'"
        )
    return difference


def _refuse_other_tensors(written: nn.Module, read: nn.Module, dtype: torch.dtype | None) -> None:
    """`CheckpointError` unless the module that was read has the tensors of the other.

    dtype  of the file; None for float32
    """
    ours, theirs = written.state_dict(), read.state_dict()
    wrong = [
        name
        for name in ours.keys() | theirs.keys()
        if name not in ours or name not in theirs or not _same(ours[name], theirs[name], dtype)
    ]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"diffusers reads '{min(wrong)}'{more} of the {type(written).__name__} in another way than it "
            "was written, so the file was removed: write format='pipeline'"
        )


def _same(ours: Tensor, theirs: Tensor, dtype: torch.dtype | None) -> bool:
    if dtype is not None and ours.is_floating_point():
        ours = ours.to(dtype)
    return torch.equal(ours.cpu().to(theirs.dtype), theirs.cpu())
