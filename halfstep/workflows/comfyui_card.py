"""The README.md of a student for ComfyUI: where its files belong, and the settings that are exact."""

from collections.abc import Sequence

from halfstep.pipeline import Pipeline
from halfstep.pipeline.to_comfyui.student import ComfyStudent
from halfstep.workflows.exported import ExportConfig
from halfstep.workflows.model_card import about, page


def comfyui_card(
    pipeline: Pipeline,
    student: ComfyStudent,
    config: ExportConfig,
    files: Sequence[str],
    difference: float,
) -> str:
    """The README of a folder for ComfyUI.

    files       the names of the file of weights and of the workflow
    difference  of the samples of the file that diffusers read back
    """
    file, graph = files
    place = "checkpoints" if student.model.encoders else "diffusion_models"
    lines = [
        *about(pipeline, config.run, student.sampling.steps),
        f"- Weights: {config.dtype}",
        f"- ComfyUI: copy {file} into models/{place}, then open {graph} (Workflow, Open)",
        f"- KSampler: steps {student.sampling.steps}, cfg 1, sampler euler, scheduler simple, denoise 1. "
        "These are the student's own steps; normal, karras and sgm_uniform take others",
        f"- {_said(student)}",
        *_scale(pipeline, student, config),
        f"- Read back by diffusers, it draws the same {difference:.1e} of the largest value apart",
    ]
    if not student.model.encoders:
        names = ", ".join(name for group in student.model.loaders.values() for name in group)
        lines.append(f"- It is the diffusion model alone: {names} are the original model's")
    return page(lines, [])


def _said(student: ComfyStudent) -> str:
    """What tells ComfyUI how the network is sampled."""
    sampling = student.sampling
    if not sampling.sampling:
        return f"The workflow's node sets the shift, {sampling.shift:g}"
    if student.model.markers and sampling.sampling != "x0":
        named = " and ".join(student.markers)
        return f"The file says that the network predicts {sampling.sampling}" + (
            f" ({named})" if named else ""
        )
    zero = ", zsnr" if sampling.zero_snr else ""
    node = f"ModelSamplingDiscrete ({sampling.sampling}{zero})"
    return f"Every workflow of this file needs the node {node}"


def _scale(pipeline: Pipeline, student: ComfyStudent, config: ExportConfig) -> list[str]:
    if pipeline.guidance_range is None:
        return []
    if student.pipeline.guidance_range is None:
        scale = (
            pipeline.guidance_range[0] if config.guidance_scale is None else config.guidance_scale
        )
        return [f"- The guidance scale {scale:g} is in the weights"]
    low, high = pipeline.guidance_range
    return [f"- The node FluxGuidance sets the guidance scale, {low:g} to {high:g}"]
