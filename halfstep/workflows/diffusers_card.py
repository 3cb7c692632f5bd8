"""The README.md of a folder for diffusers: metadata, what it is, and the snippet that samples it."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from halfstep.models import DiffusersNet
from halfstep.pipeline import Pipeline
from halfstep.pipeline.to_diffusers.folder import HEADS
from halfstep.pipeline.to_diffusers.target import call_arguments, Target
from halfstep.storage import write_text
from halfstep.workflows.diffusers_proof import DRAWN, heads_request, PROMPTS
from halfstep.workflows.exported import ExportConfig
from halfstep.workflows.model_card import about, page, plain, report_of
from halfstep.workflows.report_in_card import report_table, save_picture

HUB = re.compile(r"[\w.-]+/[\w.-]+")
"""A name on the hub."""


LOADING = (
    "from diffusers import DiffusionPipeline",
    "",
    'pipeline = DiffusionPipeline.from_pretrained(".")',
)
"""The code that loads a whole folder."""


def write_diffusers_card(
    pipeline: Pipeline,
    target: Target,
    config: ExportConfig,
    difference: float,
    *,
    loading: Sequence[str] = LOADING,
    details: Sequence[str] = (),
    metadata: Sequence[str] = (),
) -> None:
    """Write the README of a folder for diffusers, and its picture.

    difference  of diffusers' samples and the student's, relative to the largest value
    loading     the beginning of the snippet
    details     more lines on the folder
    metadata    lines of YAML beside those that every model has
    """
    lines = [
        *_teacher(pipeline),
        *about(pipeline, config.run, len(target.times) - 1),
        f"- {_sigmas(pipeline, target)}",
        f"- Scheduler: `{target.scheduler.name}` as configured here; with another scheduler, or another "
        "number of steps, it is not this student",
        "- `num_inference_steps` is an argument of the call, since no config of diffusers holds it; its "
        "default is another number",
        *_scale(target),
        f"- Weights: {config.dtype}"
        + ("" if config.dtype == "float32" else ", rounded after the check below"),
        f"- Checked when written: diffusers drew {DRAWN} samples of this folder that differ from halfstep's "
        f"by {difference:.1e} of the largest value",
        *details,
    ]
    lines += [
        "",
        "```python",
        *loading,
        *_heads(pipeline, config.out),
        *snippet(pipeline, target),
        "```",
    ]
    commands = [_command(config)]
    if (report := report_of(config.run)) is not None:
        commands = [report.provenance.command, *commands]
        lines += ["", *report_table(report), "", *save_picture(report, config.out)]
    text = _metadata(pipeline, config, metadata) + page(lines, [("bash", commands)])
    write_text(config.out / "README.md", text)


def _heads(pipeline: Pipeline, folder: Path) -> list[str]:
    """The code that gives each call the last layer of its step, of a student of parallel decoding."""
    request = heads_request(folder, cast(DiffusersNet, pipeline.denoiser.net))
    if request is None:
        return []
    return [
        "",
        "# Each step has a last layer of its own, in heads.safetensors.",
        "from itertools import cycle",
        "from safetensors.torch import load_file",
        "",
        f'heads, numbers = load_file("{HEADS}"), cycle(range({request["steps"]}))',
        "",
        "def next_head(layer, inputs):",
        "    k = next(numbers)",
        '    layer.load_state_dict({name: heads[f"{k}.{name}"] for name in layer.state_dict()})',
        "",
        f"layer = pipeline.{request['component']}.{request['layer']}",
        "layer.register_forward_pre_hook(next_head)",
        "",
    ]


def _metadata(pipeline: Pipeline, config: ExportConfig, more: Sequence[str]) -> str:
    """The YAML of a model on the hub."""
    tag = "unconditional-image-generation" if pipeline.empty is None else "text-to-image"
    lines = ["library_name: diffusers", f"pipeline_tag: {tag}", f"license: {config.license}"]
    source = pipeline.origin.source if pipeline.origin else ""
    if is_hub_name(source):
        lines.append(f"base_model: {source}")
    lines += [*more, "tags:", "- progressive-distillation", "- halfstep"]
    return "\n".join(["---", *lines, "---", "", ""])


def is_hub_name(source: str) -> bool:
    """Whether a source is OWNER/NAME on the hub, and no folder here."""
    return HUB.fullmatch(source) is not None and not Path(source).exists()


def _teacher(pipeline: Pipeline) -> list[str]:
    if pipeline.origin is None:
        return []
    source = pipeline.origin.source
    name = source if HUB.fullmatch(source) else Path(source).name
    return [f"- Teacher: {plain(name) or 'a pipeline in memory'}, a {pipeline.origin.pipeline}"]


def _sigmas(pipeline: Pipeline, target: Target) -> str:
    """The walk: timesteps of a table, or sigmas of flow matching."""
    import torch

    levels, times = target.scheduler.config["num_train_timesteps"], target.times[:-1]
    if "prediction_type" in target.scheduler.config:
        listed = ", ".join(str(round(t * levels) - 1) for t in times)
        return f"Timesteps: {listed}, then clean data (of {levels} levels, trailing)"
    sigma = pipeline.denoiser.schedule.at(torch.tensor(times, dtype=torch.float64)).sigma
    return f"Sigmas: {', '.join(f'{s:.4g}' for s in sigma.tolist())}, 0"


def _scale(target: Target) -> list[str]:
    if target.folded:
        return [f"- In this folder the guidance scale is {target.scale:g}, folded into the weights"]
    if target.scale is not None:
        return [
            "- `guidance_scale` is an input of the network: one call a step, no negative prompt"
        ]
    if "guidance_scale" in target.call or "true_cfg_scale" in target.call:
        return ["- A scale above 1 in the call would guide from outside, which doubles the work"]
    return []


def snippet(pipeline: Pipeline, target: Target) -> list[str]:
    """The code that draws an image with the loaded pipeline."""
    takes = call_arguments(target.pipeline)
    first = []
    if "prompt" in takes:
        first = [repr(PROMPTS[0])]
    elif "class_labels" in takes and (pipeline.class_names or target.pipeline == "DiTPipeline"):
        first = ["class_labels=[0]"]
    arguments = [*first, *(f"{name}={value!r}" for name, value in target.call.items())]
    return [
        "image = pipeline(",
        *(f"    {argument}," for argument in arguments),
        ").images[0]",
    ]


def _command(config: ExportConfig) -> str:
    """The command that made the folder, with the names alone of absolute paths."""
    words = ["halfstep", "export", Path(config.run).resolve().name]
    words += ["--format", str(config.format), "--out", config.out.resolve().name]
    for name, value in (
        ("--steps", config.steps),
        ("--net", config.net and _unplaced(config.net)),
        ("--source", config.source and _unplaced(config.source)),
        ("--guidance-scale", config.guidance_scale),
        ("--dtype", None if config.dtype == "float32" else config.dtype),
        ("--license", None if config.license == "other" else config.license),
    ):
        words += [] if value is None else [name, str(value)]
    return shlex.join(words)


def _unplaced(value: str) -> str:
    """The last part of an absolute path; anything else as it is, such as a name on the hub."""
    path = Path(value).expanduser()
    return path.name if path.is_absolute() else value
