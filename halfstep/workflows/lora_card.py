"""What the README.md of a LoRA says beside that of a folder for diffusers."""

from collections.abc import Sequence
from pathlib import Path

from halfstep.pipeline import Pipeline
from halfstep.pipeline.lora_file import LoraFile
from halfstep.pipeline.to_diffusers.target import Target
from halfstep.report.words.numbers import big
from halfstep.workflows.diffusers_card import is_hub_name
from halfstep.workflows.exported import ExportConfig


def lora_loading(pipeline: Pipeline, target: Target, config: ExportConfig) -> list[str]:
    """The code that loads the base, the LoRA and its scheduler."""
    place = base_of(pipeline, config)
    base = place if is_hub_name(place) else Path(place).name
    scheduler = target.scheduler.name
    return [
        f"from diffusers import DiffusionPipeline, {scheduler}",
        "",
        f'pipeline = DiffusionPipeline.from_pretrained("{base}")'
        + ("" if is_hub_name(place) else "  # the folder of the base"),
        'pipeline.load_lora_weights(".")',
        f'pipeline.scheduler = {scheduler}.from_pretrained(".", subfolder="scheduler")',
    ]


def base_of(pipeline: Pipeline, config: ExportConfig) -> str:
    """The folder or hub name of the pipeline that the LoRA is added to."""
    return config.source or (pipeline.origin.source if pipeline.origin else "")


def lora_details(lora: LoraFile, files: Sequence[Path], workflow: str) -> list[str]:
    """Lines on the rank and the files.

    files     the one by diffusers' names, and of a U-Net that by kohya's
    workflow  what the README says about ComfyUI
    """
    diffusers, *kohya = (file.name for file in files)
    size = sum(value.numel() for value in lora.tensors.values())
    lines = [
        f"- LoRA of rank {lora.rank}, alpha the same, in {len(lora.tensors) // 2} layers of the "
        f"{lora.component}: {big(size)} parameters",
        f"- {diffusers}: by diffusers' names",
    ]
    lines += [f"- {name}: the same by kohya's names, with the alphas" for name in kohya]
    return [*lines, f"- ComfyUI: {workflow}"]


def lora_metadata(pipeline: Pipeline) -> list[str]:
    """Lines of YAML for a LoRA on the hub."""
    source = pipeline.origin.source if pipeline.origin else ""
    return ["base_model_relation: adapter"] if is_hub_name(source) else []
