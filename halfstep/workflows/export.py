"""Export a student alone: no run, no optimiser, no teacher."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from halfstep import files
from halfstep.errors import ConfigError
from halfstep.models.classifiers.checkpoint import classifier_in, load_classifier, save_classifier
from halfstep.models.classifiers.registry import example_shape
from halfstep.pipeline import Pipeline
from halfstep.rng import sample_noise
from halfstep.storage import write_text
from halfstep.workflows.export_comfyui import write_comfyui
from halfstep.workflows.export_diffusers import write_diffusers
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
from halfstep.workflows.locate import locate_pipeline
from halfstep.workflows.model_card import classifier_card, pipeline_card
from halfstep.workflows.program_files import write_onnx, write_torch_export
from halfstep.workflows.push import check_name, upload


def export(
    run: Path | str,
    out: Path | str,
    *,
    steps: int | None = None,
    dtype: DType = "float32",
    format: Format = "pipeline",
    net: str | None = None,
    source: str | None = None,
    guidance_scale: float | None = None,
    license: str = "other",
    push: str | None = None,
) -> Exported:
    """Write a student into a folder of its own: its weights, its description and a README.

    run     a run, one of its stages, a pipeline's folder, or a classifier's
    out     a new folder
    steps   of the student of a run; by default the one that passed its gate, or of the fewest steps
    dtype   type of the weights in the file: float16 and bfloat16 halve it, and are read back as float32; the
            network of torch-export computes in them
    format  pipeline, for `Pipeline.load`; torch-export: student.pt2, which needs only torch; onnx:
            student.onnx, for ONNX Runtime; diffusers: a folder for `DiffusionPipeline.from_pretrained`; or
            comfyui: student.safetensors under the original names, and a workflow
    net     package.module:function that builds a network of your own
    source  folder or hub name of the diffusers pipeline that the teacher came from, by default the recorded
            one; of diffusers and comfyui
    guidance_scale  the one scale of a student that takes its scale as an input, where diffusers or comfyui
            has no input for it
    license  the licence in the model card's metadata; of diffusers
    push    a name on the hub, OWNER/NAME, under which the folder is uploaded; of diffusers

    The folder is read again and draws eight samples, which in float32 are the student's own to the bit; of
    diffusers and comfyui four, equal to 1e-4 of the largest value.
    `ConfigError` for a folder that is not new, and for a student that the format cannot hold; after any
    error the folder is as before.
    """
    run, out = Path(run), Path(out)
    config = ExportConfig(
        run=run, out=out, steps=steps, dtype=dtype, format=format, net=net, source=source,
        guidance_scale=guidance_scale, license=license, push=push,
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
    pipeline = locate_pipeline(config.run, steps=config.steps, net=config.net)
    return WRITERS[config.format](pipeline, config)


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
    if config.format != "pipeline" or config.steps is not None:
        raise ConfigError("this is a classifier: leave format and steps out")
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
