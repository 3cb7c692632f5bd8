"""The options, the result and the proof of an export: the same samples, drawn from what was written."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from halfstep.config.fields import POSITIONAL
from halfstep.config.validate import Count, Validated
from halfstep.errors import CheckpointError, ConfigError
from halfstep.pipeline import Pipeline
from halfstep.rng import sample_noise

DTYPES = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
COMPARED = 8
"""Samples of the written student that are compared with the original's."""

FORMATS_OF = {
    "source": ("diffusers", "lora", "comfyui"),
    "guidance_scale": ("diffusers", "comfyui"),
    "license": ("diffusers", "lora"),
    "push": ("diffusers", "lora"),
}
"""The formats of options that the others do not have."""

DType = Literal["float32", "float16", "bfloat16"]
Format = Literal["pipeline", "torch-export", "onnx", "diffusers", "lora", "comfyui"]


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
    """Type of the weights in the file: float16 and bfloat16 halve it, and are read back as float32; the
    network of torch-export computes in them."""
    format: Format | None = None
    """By default pipeline, for Pipeline.load; lora of a run with --lora-rank.  torch-export and onnx write
    one step of DDIM as a program: student.pt2, which needs only torch, or student.onnx, for ONNX Runtime.
    diffusers writes a folder for DiffusionPipeline.from_pretrained; lora one for load_lora_weights, and for
    ComfyUI; comfyui student.safetensors and workflow_api.json.  These three are kept if diffusers draws the
    same samples."""
    merge: bool = False
    """Of a run with --lora-rank: write the whole network, its LoRA merged. The default format is then
    diffusers, or pipeline for a network that is not of diffusers."""
    net: str | None = None
    """package.module:function, if the network is one of your own."""
    source: str | None = None
    """Of diffusers, lora and comfyui: folder or hub name of the teacher's pipeline, if that has moved."""
    guidance_scale: float | None = None
    """Of diffusers and comfyui: the one scale of a student whose input for it they do not have."""
    license: str = "other"
    """Of diffusers and lora: the licence in the model card's metadata, as the hub names it."""
    push: str | None = None
    """Of diffusers and lora: upload the folder to the hub under this name, OWNER/NAME."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.merge and self.format == "lora":
            raise ConfigError(
                "format='lora' writes a LoRA alone, and merge the whole network: leave one of them out"
            )
        if self.format is None:  # the run says which
            return
        for name, formats in FORMATS_OF.items():
            if self.format not in formats and getattr(self, name) != getattr(type(self), name):
                known = " or ".join(f"'{each}'" for each in formats)
                raise ConfigError(
                    f"{name} belongs to format={known}, and this is '{self.format}': leave it out"
                )


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A student that was written, read again and compared with the original.

    files       the files in the folder, by name
    compared    samples that both drew from the same noise; of a classifier, inputs that both read
    difference  root of the mean squared difference of these; 0 if they are equal to the bit
    relative    it is the largest difference instead, relative to the largest value: of diffusers, lora and
                comfyui
    pushed      the address of the folder on the hub, if it was uploaded
    """

    files: tuple[Path, ...]
    compared: int
    difference: float
    relative: bool = False
    pushed: str | None = None


Writer = Callable[[Pipeline, ExportConfig], Exported]
"""Writes a pipeline into config.out in one format, reads it again and compares the samples."""


def student_samples(pipeline: Pipeline, steps: int | None = None) -> Tensor:
    """Samples of a pipeline; of a student that encodes, the noise of some images."""
    if pipeline.direction == "invert":
        images = sample_noise(0, range(COMPARED), pipeline.shape).clamp(-1, 1)
        return replace(pipeline, codec=None).encode(images, guidance_scale=lowest_scale(pipeline))
    return pipeline.sample(
        COMPARED, steps=steps, guidance_scale=lowest_scale(pipeline), latents=True
    )


def lowest_scale(pipeline: Pipeline) -> float:
    """The guidance scale of the samples: the lowest that the student takes, else 1."""
    return 1.0 if pipeline.guidance_range is None else pipeline.guidance_range[0]


def compare(original: Tensor, written: Tensor, *, exact: bool) -> Exported:
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
