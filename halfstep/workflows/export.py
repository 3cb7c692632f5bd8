"""Export a student alone: no run, no optimiser, no teacher."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from halfstep import files
from halfstep.errors import ConfigError
from halfstep.models.classifiers.checkpoint import classifier_in, load_classifier, save_classifier
from halfstep.models.classifiers.registry import example_shape
from halfstep.pipeline import Pipeline
from halfstep.pipeline.fused import fused, has_heads
from halfstep.pipeline.lora_file import is_lora, LoraFile, read_lora
from halfstep.rng import sample_noise
from halfstep.storage import write_text
from halfstep.workflows.export_comfyui import write_comfyui
from halfstep.workflows.export_diffusers import write_diffusers
from halfstep.workflows.export_lora import write_lora
from halfstep.workflows.exported import (
    compare,
    COMPARED,
    DType,
    DTYPES,
    ExportConfig,
    Exported,
    Format,
    student_samples,
    Writer,
)
from halfstep.workflows.locate import locate_folder, locate_pipeline
from halfstep.workflows.model_card import classifier_card, pipeline_card
from halfstep.workflows.program_files import write_onnx, write_torch_export
from halfstep.workflows.push import check_name, upload


def export(
    run: Path | str,
    out: Path | str,
    *,
    steps: int | None = None,
    dtype: DType = "float32",
    format: Format | None = None,
    merge: bool = False,
    net: str | None = None,
    source: str | None = None,
    guidance_scale: float | None = None,
    license: str = "other",
    push: str | None = None,
) -> Exported:
    """Write a student into a folder of its own: its weights, its description and a README.

    The folder is read again and draws eight samples, which in float32 are the student's own to the bit;
    of diffusers, lora and comfyui four, equal to 1e-4 of the largest value.

    Args:
        run: a run, one of its stages, a pipeline's folder, or a classifier's.
        out: a new folder.
        steps: of the student of a run; by default the one that passed its gate, or of the fewest steps.
        dtype: type of the weights in the file: float16 and bfloat16 halve it, and are read back as
            float32; the network of torch-export computes in them.
        format: pipeline, for `Pipeline.load`, which is the default; torch-export: student.pt2, which
            needs only torch; onnx: student.onnx, for ONNX Runtime; diffusers: a folder for
            `DiffusionPipeline.from_pretrained`; comfyui: student.safetensors under the original names,
            and a workflow; or lora, the default of a LoRA run: a folder for `load_lora_weights`, without
            the base.
        merge: of a LoRA run the whole network, its LoRA merged; the default format is then diffusers, or
            pipeline for a network that is not of diffusers.
        net: package.module:function that builds a network of your own.
        source: folder or hub name of the diffusers pipeline that the teacher came from, by default the
            recorded one; of diffusers, lora and comfyui.
        guidance_scale: the one scale of a student that takes its scale as an input, where diffusers or
            comfyui has no input for it.
        license: the licence in the model card's metadata; of diffusers and lora.
        push: a name on the hub, OWNER/NAME, under which the folder is uploaded; of diffusers and lora.

    Raises:
        ConfigError: a folder that is not new, or a student that the format cannot hold; after any error
            the folder is as before.
        CheckpointError: a damaged run.
    """
    run, out = Path(run), Path(out)
    config = ExportConfig(
        run=run, out=out, steps=steps, dtype=dtype, format=format, merge=merge, net=net,
        source=source, guidance_scale=guidance_scale, license=license, push=push,
    )  # fmt: skip
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"'{out}' is there already: give a new folder as out")
    files.check_writable(out, "choose another out")
    if push is not None:
        check_name(push)
    with _emptied_on_error(out):
        written = _write(config)
    pushed = None if push is None else upload(out, push)
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    return replace(written, files=tuple(paths), pushed=pushed)


@contextmanager
def _emptied_on_error(folder: Path) -> Iterator[None]:
    """Around filling a new folder: after an error it is empty, or removed, as before."""
    existed = folder.exists()
    try:
        yield
    except BaseException:
        for path in list(folder.iterdir()) if existed else [folder]:
            files.remove(path)
        raise


def _write(config: ExportConfig) -> Exported:
    classifier = classifier_in(config.run)
    if classifier is not None:
        return _write_classifier(classifier, config)
    folder = locate_folder(config.run, config.steps)
    lora = read_lora(folder) if folder is not None and is_lora(folder) else None
    config = with_format(config, lora)
    pipeline = locate_pipeline(config.run, steps=config.steps, net=config.net, base=config.source)
    if has_heads(pipeline) and (config.format != "pipeline" or config.steps is not None):
        pipeline = fused(pipeline, config.steps)
    if lora is not None and config.format == "lora":
        return write_lora(pipeline, config, lora)
    return WRITERS[cast(Format, config.format)](pipeline, config)


def with_format(config: ExportConfig, lora: LoraFile | None) -> ExportConfig:
    """The options with their format, which depends on the run; `ConfigError` for one that it has not."""
    if lora is None:
        if config.merge:
            raise ConfigError(f"'{config.run}' has no LoRA to merge: leave merge out (--merge)")
        if config.format == "lora":
            raise ConfigError(
                f"'{config.run}' was distilled without a LoRA: write format='diffusers', or distil with "
                "--lora-rank"
            )
        return replace(config, format=config.format or "pipeline")
    whole: Format = "pipeline" if lora.component == "net" else "diffusers"
    config = replace(config, format=config.format or (whole if config.merge else "lora"))
    if config.format == "lora" and lora.component == "net":
        raise ConfigError(
            "diffusers and ComfyUI load LoRAs of networks of diffusers, and this network is none: write it "
            "whole, merge=True (--merge)"
        )
    return config


def write_pipeline(pipeline: Pipeline, config: ExportConfig) -> Exported:
    """Write a folder that `Pipeline.load` reads."""
    out, dtype = config.out, DTYPES[config.dtype]
    _refuse_int8(pipeline.denoiser.net, dtype)
    pipeline.save(out, dtype=dtype)
    again = Pipeline.load(out, net=config.net)
    exported = compare(student_samples(pipeline), student_samples(again), exact=dtype is None)
    write_text(out / "README.md", pipeline_card(pipeline, config.run, config.dtype))
    return exported


def _refuse_int8(net: nn.Module, dtype: torch.dtype | None) -> None:
    if dtype is not None and getattr(net, "quantised", None):
        raise ConfigError("this student is int8: leave dtype out")


def _write_classifier(folder: Path, config: ExportConfig) -> Exported:
    if config.format not in (None, "pipeline") or config.merge or config.steps is not None:
        raise ConfigError("this is a classifier: leave format, merge and steps out")
    out, dtype = config.out, DTYPES[config.dtype]
    classifier = load_classifier(folder, net=config.net)
    _refuse_int8(classifier, dtype)
    save_classifier(classifier, out, dtype=dtype)
    again = load_classifier(out, net=config.net)
    with torch.no_grad():
        x = sample_noise(0, range(COMPARED), example_shape(classifier))
        exported = compare(classifier(x), again(x), exact=dtype is None)
    write_text(out / "README.md", classifier_card(classifier, config.dtype))
    return exported


WRITERS: dict[Format, Writer] = {
    "pipeline": write_pipeline,
    "torch-export": write_torch_export,
    "onnx": write_onnx,
    "diffusers": write_diffusers,
    "comfyui": write_comfyui,
}
"""The writer of each format."""
