"""Export a student alone: no run, no optimiser, no teacher."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import nn, Tensor

from halfstep import files
from halfstep.config.fields import POSITIONAL
from halfstep.config.validate import Count, Validated
from halfstep.errors import CheckpointError, ConfigError
from halfstep.models.classifiers.checkpoint import classifier_in, load_classifier, save_classifier
from halfstep.models.classifiers.registry import example_shape
from halfstep.pipeline import Pipeline
from halfstep.pipeline.torch_export import (
    conditions_of,
    export_program,
    refuse_unexportable,
    run_program,
)
from halfstep.rng import sample_noise
from halfstep.storage import write_text
from halfstep.workflows.locate import locate_pipeline
from halfstep.workflows.model_card import batch_sizes, classifier_card, pipeline_card, program_card

DTYPES = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
COMPARED = 8
"""Samples of the written student that are compared with the original's."""
PROGRAM = "student.pt2"

DType = Literal["float32", "float16", "bfloat16"]
Format = Literal["pipeline", "torch-export"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Validated):
    """Write a student alone into a folder: its weights, how it is sampled, and a README."""

    run: Annotated[Path, POSITIONAL]
    """A run, one of its stages, a student's folder, or a classifier's."""
    out: Path
    """A new folder."""
    steps: Count | None = None
    """Steps of the student of a run; by default the one that passed its gate, or of the fewest steps."""
    dtype: DType = "float32"
    """Type of the weights in the file: float16 and bfloat16 halve it, and are read back as float32."""
    format: Format = "pipeline"
    """torch-export writes student.pt2: one step of DDIM as a program that needs only torch."""
    net: str | None = None
    """package.module:function, if the network is one of your own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format == "torch-export" and self.dtype != "float32":
            raise ConfigError(f"student.pt2 is written in float32: leave dtype {self.dtype} out")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A student that was written, read again and compared with the original.

    files       the files in the folder, by name
    compared    samples that both drew from the same noise; of a classifier, inputs that both read
    difference  root of the mean squared difference of these; 0 if they are equal to the bit
    batch       batch sizes of a program, in words; None of other formats
    """

    files: tuple[Path, ...]
    compared: int
    difference: float
    batch: str | None = None


def export(
    run: Path | str,
    out: Path | str,
    *,
    steps: int | None = None,
    dtype: DType = "float32",
    format: Format = "pipeline",
    net: str | None = None,
) -> Exported:
    """Write a student into a folder of its own: its weights, its description and a README.

    run     a run, one of its stages, a pipeline's folder, or a classifier's
    out     a new folder
    steps   of the student of a run; by default the one that passed its gate, or of the fewest steps
    dtype   type of the weights in the file: float16 and bfloat16 halve it, and are read back as float32
    format  pipeline, for `Pipeline.load`, or torch-export: student.pt2, which needs only torch
    net     package.module:function that builds a network of your own

    The folder is read again and draws eight samples, which in float32 are the student's own to the bit.
    `ConfigError` for a folder that is not new, and for a student that the format cannot hold; after any
    error the folder is as before.
    """
    run, out = Path(run), Path(out)
    config = ExportConfig(run=run, out=out, steps=steps, dtype=dtype, format=format, net=net)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"'{out}' is there already: give a new folder as out")
    files.check_writable(out, "choose another out")
    with _emptied_on_error(out):
        written = _write(config)
    return replace(written, files=tuple(sorted(out.iterdir())))


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
    if config.format == "torch-export":
        return _write_program(pipeline, config)
    return _write_pipeline(pipeline, config)


def _write_pipeline(pipeline: Pipeline, config: ExportConfig) -> Exported:
    out, dtype = config.out, DTYPES[config.dtype]
    _refuse_int8(pipeline.denoiser.net, dtype)
    pipeline.save(out, dtype=dtype)
    again = Pipeline.load(out, net=config.net)
    exported = _compare(_samples(pipeline), _samples(again), exact=dtype is None)
    write_text(out / "README.md", pipeline_card(pipeline, config.run, config.dtype))
    return exported


def _refuse_int8(net: nn.Module, dtype: torch.dtype | None) -> None:
    if dtype is not None and getattr(net, "quantised", None):
        raise ConfigError("this student is int8: leave dtype out")


def _write_classifier(folder: Path, config: ExportConfig) -> Exported:
    if config.format == "torch-export" or config.steps is not None:
        raise ConfigError("this is a classifier: leave format and steps out")
    out, dtype = config.out, DTYPES[config.dtype]
    classifier = load_classifier(folder, net=config.net)
    _refuse_int8(classifier, dtype)
    save_classifier(classifier, out, dtype=dtype)
    again = load_classifier(out, net=config.net)
    with torch.no_grad():
        x = sample_noise(0, range(COMPARED), example_shape(classifier))
        exported = _compare(classifier(x), again(x), exact=dtype is None)
    write_text(out / "README.md", classifier_card(classifier, config.dtype))
    return exported


def _write_program(pipeline: Pipeline, config: ExportConfig) -> Exported:
    out = config.out
    refuse_unexportable(pipeline)
    program = export_program(pipeline, config.steps if not pipeline.times else None)
    buffer = io.BytesIO()  # torch's own writer ends the process where the disk is full
    torch.export.save(program.exported, buffer)
    with files.replacing(files.make_folder(out) / PROGRAM) as (part,):
        files.fill(part, buffer.getbuffer())
    again = replace(program, exported=torch.export.load(out / PROGRAM))
    n = min(COMPARED, program.batch[1] or COMPARED)
    noise = sample_noise(0, range(n), pipeline.shape)
    samples = run_program(again, noise, _conditions(pipeline, n))
    exported = _compare(_samples(pipeline, program.steps)[:n], samples, exact=False)
    write_text(out / "README.md", program_card(pipeline, config.run, program))
    return replace(exported, batch=batch_sizes(program))


def _conditions(pipeline: Pipeline, n: int) -> list[Tensor]:
    """The inputs that `Pipeline.sample` gives the network by default."""
    values = {"label": torch.arange(n) % max(len(pipeline.class_names), 1)}
    if pipeline.empty is not None:
        values["encoder_hidden_states"] = pipeline.empty.expand(n, *pipeline.empty.shape)
    if pipeline.guidance_range is not None:
        values["guidance_scale"] = torch.full((n,), _scale(pipeline))
    return [values[name] for name in conditions_of(pipeline)]


def _scale(pipeline: Pipeline) -> float:
    return 1.0 if pipeline.guidance_range is None else pipeline.guidance_range[0]


def _samples(pipeline: Pipeline, steps: int | None = None) -> Tensor:
    """Samples of a pipeline; of a student that encodes, the noise of some images."""
    if pipeline.direction == "invert":
        images = sample_noise(0, range(COMPARED), pipeline.shape).clamp(-1, 1)
        return replace(pipeline, codec=None).encode(images, guidance_scale=_scale(pipeline))
    return pipeline.sample(COMPARED, steps=steps, guidance_scale=_scale(pipeline), latents=True)


def _compare(original: Tensor, written: Tensor, *, exact: bool) -> Exported:
    """Compare with the original; `CheckpointError` for any difference if they should be `exact`."""
    if torch.equal(original, written):
        difference = 0.0
    elif exact:
        raise CheckpointError(
            "what was written and read again gives other numbers than the student, so it was removed: the "
            "disk or the network's own code changes them"
        )
    else:
        difference = float((original - written).double().square().mean().sqrt())
    return Exported(files=(), compared=len(original), difference=difference)
