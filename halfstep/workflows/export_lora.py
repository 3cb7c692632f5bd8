"""Write a student as a LoRA, and keep it only if diffusers draws the student's samples with it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from halfstep import files
from halfstep.errors import ConfigError
from halfstep.models import DiffusersNet
from halfstep.pipeline import Pipeline
from halfstep.pipeline.from_diffusers.folder import pipeline_kind
from halfstep.pipeline.lora_file import LoraFile
from halfstep.pipeline.to_comfyui.student import comfy_model
from halfstep.pipeline.to_comfyui.workflow import workflow
from halfstep.pipeline.to_diffusers.folder import find_source, write_scheduler
from halfstep.pipeline.to_diffusers.lora import (
    diffusers_metadata,
    diffusers_tensors,
    kohya_metadata,
    kohya_tensors,
)
from halfstep.pipeline.to_diffusers.target import Target, target_of
from halfstep.storage import rounded, save_tensors, write_text
from halfstep.workflows.diffusers_card import write_diffusers_card
from halfstep.workflows.diffusers_proof import DRAWN, measure, prove
from halfstep.workflows.exported import DTYPES, ExportConfig, Exported
from halfstep.workflows.lora_card import lora_details, lora_loading, lora_metadata

WEIGHTS, KOHYA = "pytorch_lora_weights.safetensors", "student_lora.safetensors"
WORKFLOW = "workflow_api.json"
BASE = "base.safetensors"
"""The name of the base's file in the workflow, to be chosen there."""


def write_lora(pipeline: Pipeline, config: ExportConfig, lora: LoraFile) -> Exported:
    """Write a folder that `load_lora_weights` reads, and prove it in a fresh process.

    pipeline  the student with its LoRA merged
    lora      that of its network

    The base comes from where the student's teacher came from, or from `config.source`; it is not written.
    Other types than float32 are written after the proof; the result then has what rounding changes.

    `ConfigError` where diffusers loads no LoRA, `CheckpointError` where the samples differ by more than 1e-4
    of the largest value.
    """
    target = target_of(pipeline, steps=config.steps, scale=None)
    refuse_no_loader(target)
    base = cast(Path, find_source(pipeline, target, config.source))
    if config.source is not None:  # the text encoders too
        pipeline = replace(pipeline, texts=None)
    out = files.make_folder(config.out)
    model, dtype = cast(DiffusersNet, pipeline.denoiser.net).model, DTYPES[config.dtype]
    written = _write_files(lora, model, out)
    write_scheduler(target, out)
    difference = proved = prove(pipeline, target, base, written)
    if dtype is not None:
        _write_files(lora, model, out, dtype)
        difference = measure(pipeline, target, base, written)
    comfyui = _write_workflow(pipeline, target, written[-1].name, config)
    write_diffusers_card(
        pipeline, target, config, proved,
        loading=lora_loading(pipeline, target, config),
        details=lora_details(lora, written, comfyui),
        metadata=lora_metadata(pipeline),
    )  # fmt: skip
    return Exported(files=(), compared=DRAWN, difference=difference, relative=True)


def refuse_no_loader(target: Target) -> None:
    """`ConfigError` unless the pipeline of diffusers loads LoRAs."""
    if not hasattr(pipeline_kind(target.pipeline), "load_lora_weights"):
        raise ConfigError(
            f"diffusers' {target.pipeline} has no load_lora_weights: write the whole network, merge=True "
            "(--merge)"
        )


def _write_files(
    lora: LoraFile, model: nn.Module, out: Path, dtype: torch.dtype | None = None
) -> list[Path]:
    """Write the LoRA by diffusers' names and, of a U-Net, by kohya's, which ComfyUI reads."""
    contents = {WEIGHTS: (diffusers_tensors(lora), diffusers_metadata(lora, model))}
    if lora.component == "unet":
        contents[KOHYA] = kohya_tensors(lora), kohya_metadata(lora)
    for name, (tensors, metadata) in contents.items():
        saved = tensors if dtype is None else rounded(tensors, dtype)
        save_tensors(out / name, saved, metadata)
    return [out / name for name in contents]


def _write_workflow(pipeline: Pipeline, target: Target, name: str, config: ExportConfig) -> str:
    """Write the workflow for ComfyUI, if ComfyUI samples as the student does; what the README says of it.

    name  of the file that ComfyUI reads
    """
    try:
        model, sampling = comfy_model(pipeline, config.steps)
    except ConfigError as reason:
        return f"no workflow, since {str(reason).rpartition(': ')[0]}"
    factor = cast(Any, pipeline.codec).factor
    height, width = (side * factor for side in pipeline.shape[1:])
    scale = None if target.folded else target.scale
    graph = workflow(BASE, model, sampling, (height, width), scale, lora=name)
    write_text(config.out / WORKFLOW, json.dumps(graph, indent=2) + "\n")
    return (
        f"copy {name} into models/loras, open {WORKFLOW} (Workflow, Open) and choose the base's file; the "
        "student's steps are those of euler and simple, with cfg 1"
    )
