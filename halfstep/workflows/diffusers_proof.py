"""The proof of a diffusers folder: a fresh process samples it, and its samples are the student's."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from halfstep import storage
from halfstep.config import JsonObject
from halfstep.errors import CheckpointError
from halfstep.models import DiffusersNet
from halfstep.models.codec import Texts
from halfstep.models.diffusers_net import unpack
from halfstep.pipeline import Pipeline
from halfstep.pipeline.from_diffusers.encoders import prompt_pipeline
from halfstep.pipeline.from_diffusers.families import FAMILIES
from halfstep.pipeline.from_diffusers.texts import PromptEncoder
from halfstep.pipeline.from_diffusers.weights import variant_of
from halfstep.pipeline.to_diffusers import draw
from halfstep.pipeline.to_diffusers.folder import HEADS, NETWORKS
from halfstep.pipeline.to_diffusers.target import call_arguments, Target
from halfstep.rng import sample_noise
from halfstep.workflows.exported import lowest_scale

DRAWN = 4
NEAR = 1e-4
"""The largest difference of samples that are the same, relative to the largest value."""
PROMPTS = ("a photo of a cat", "a red house", "a tree by a lake", "a blue bird")


def prove(pipeline: Pipeline, target: Target, folder: Path, loras: Sequence[Path] = ()) -> float:
    """The difference of the student's samples, as `measure` finds it; `CheckpointError` above 1e-4."""
    difference = measure(pipeline, target, folder, loras)
    if not difference <= NEAR:
        instead = "merge=True (--merge)" if loras else "format='torch-export'"
        raise CheckpointError(
            f"diffusers draws other samples from this folder than the student (largest difference "
            f"{difference:.1e} of the largest value, {NEAR:g} is allowed), so it was removed: write "
            f"{instead}, or distil to steps that divide the table"
        )
    return difference


def measure(pipeline: Pipeline, target: Target, folder: Path, loras: Sequence[Path] = ()) -> float:
    """The largest difference of four samples from the same noise, relative to the largest value of these.

    folder  of the whole pipeline, to which the LoRAs are added
    loras   files of one LoRA in the folder that has the scheduler; each is drawn with

    `CheckpointError` where diffusers cannot sample the folder.
    """
    inputs = _inputs(pipeline, target)
    noise = sample_noise(0, range(DRAWN), pipeline.shape)
    net = cast(DiffusersNet, pipeline.denoiser.net)
    drawn = _drawn(target, net, folder, loras, noise, inputs)
    ours = _own(pipeline, target, folder, noise, inputs)
    return max(_difference(pipeline, theirs, ours) for theirs in drawn)


def _difference(pipeline: Pipeline, theirs: Tensor, ours: Tensor) -> float:
    net = cast(DiffusersNet, pipeline.denoiser.net)
    if net.inputs.packed:
        theirs = unpack(theirs, net.inputs.packed, torch.Size(pipeline.shape[1:]))
    if theirs.shape != ours.shape:
        raise CheckpointError(
            f"diffusers draws samples of shape {list(theirs.shape[1:])} from this folder, and the student of "
            f"{list(ours.shape[1:])}, so it was removed: write format='torch-export'"
        )
    return float((theirs - ours).abs().max() / ours.abs().max())


def _inputs(pipeline: Pipeline, target: Target) -> JsonObject:
    """The prompts, labels or number of the samples, by diffusers' names."""
    takes = call_arguments(target.pipeline)
    classes = len(pipeline.class_names)
    labels = [k % classes for k in range(DRAWN)] if classes else [0] * DRAWN
    if "prompt" in takes:
        return {"prompt": list(PROMPTS)}
    if target.pipeline == "DiTPipeline":
        return {"class_labels": labels}
    return {"batch_size": DRAWN, **({"class_labels": labels} if classes else {})}


def _drawn(
    target: Target,
    net: DiffusersNet,
    folder: Path,
    loras: Sequence[Path],
    noise: Tensor,
    inputs: JsonObject,
) -> list[Tensor]:
    """What diffusers draws in a process of its own, with each LoRA, and the last layer of each step."""
    output = {"output_type": "latent" if "prompt" in inputs else "pt"}
    halves = (variant_of(part) for part in folder.iterdir() if part.is_dir())
    with tempfile.TemporaryDirectory() as place:
        files = {name: str(Path(place) / f"{name}.safetensors") for name in ("noise", "out")}
        storage.save_tensors(Path(files["noise"]), {"noise": noise})
        request = Path(place) / "request.json"
        content = {
            "folder": str(folder.resolve()),
            "variant": next(filter(None, halves), None),
            "loras": [str(file.resolve()) for file in loras],
            "scheduler": target.scheduler.name,
            "heads": heads_request(folder, net),
            "call": {**target.call, **inputs, **output},
        }
        storage.write_json(request, {**content, **files})
        done = subprocess.run(
            [sys.executable, "-P", draw.__file__, str(request)],
            capture_output=True, text=True, errors="replace",
        )  # fmt: skip
        if done.returncode or not Path(files["out"]).exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise CheckpointError(
                f"diffusers' {target.pipeline} cannot sample the written folder, so it was removed: "
                f"{lines[-1] if lines else f'its process ended with {done.returncode}'}"
            )
        return list(storage.read_state_dict(Path(files["out"])).values())


def heads_request(folder: Path, net: DiffusersNet) -> JsonObject | None:
    """The file of a student's heads and where they belong; None for a student without."""
    if not net.output_heads:
        return None
    return {
        "file": str((folder / HEADS).resolve()),
        "component": next(name for name in NETWORKS if (folder / name).is_dir()),
        "layer": net.inputs.last_layer,
        "steps": net.output_heads,
    }


def _own(
    pipeline: Pipeline, target: Target, folder: Path, noise: Tensor, inputs: JsonObject
) -> Tensor:
    """What the student draws."""
    conditions: dict[str, Any] = {}
    if "prompt" in inputs:
        pipeline = replace(pipeline, texts=pipeline.texts or _encoder(target, folder))
        conditions["prompts"] = inputs["prompt"]
    if pipeline.class_names:
        conditions["labels"] = inputs["class_labels"]
    samples: Tensor = pipeline.sample(
        DRAWN,
        noise=noise,
        steps=len(target.times) - 1,
        guidance_scale=lowest_scale(pipeline) if target.scale is None else target.scale,
        latents=True,
        **conditions,
    )
    return samples


def _encoder(target: Target, folder: Path) -> Texts:
    """The text encoder of the written folder."""
    if target.pipeline not in FAMILIES:
        raise CheckpointError(
            f"halfstep does not know how a {target.pipeline} encodes its prompts, which the proof needs, so "
            "the folder was removed: export from Python with the pipeline's texts"
        )
    family = FAMILIES[target.pipeline]
    return PromptEncoder(
        family, lambda: prompt_pipeline(folder, target.pipeline, family), lambda: str(folder)
    )
