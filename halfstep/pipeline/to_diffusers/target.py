"""The pipeline of diffusers that runs a student, and the arguments of its call."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

from halfstep.config import JsonObject
from halfstep.diffusion.time_grids import Times
from halfstep.errors import ConfigError
from halfstep.models import DiffusersNet
from halfstep.pipeline.base import PipelineFields
from halfstep.pipeline.from_diffusers.families import FAMILIES
from halfstep.pipeline.from_diffusers.folder import pipeline_kind
from halfstep.pipeline.samplers import FLOW_MAP, PARALLEL_DECODING
from halfstep.pipeline.to_diffusers.scheduler import DDIM, student_scheduler, StudentScheduler

NEEDS_NO_FOLDER = ("DDIMPipeline", "DDPMPipeline", "ConsistencyModelPipeline", "DiTPipeline")
"""Pipelines without text encoders: all of their parts are the student's own."""


@dataclass(frozen=True)
class Target:
    """What samples a student in diffusers.

    pipeline   the class of the pipeline
    scheduler  with its config
    times      the student's grid
    scale      the guidance scale of the call: embedded in the network, or 1
    folded     whether that scale is folded into the weights, so that the call has 1
    call       arguments of the pipeline's call, without prompts and labels
    """

    pipeline: str
    scheduler: StudentScheduler
    times: Times
    scale: float | None
    folded: bool
    call: JsonObject


def target_of(pipeline: PipelineFields, *, steps: int | None, scale: float | None) -> Target:
    """The pipeline class, the scheduler and the call for a student.

    steps  of one of its grids, by default the fewest
    scale  the one guidance scale, where diffusers has no input for it

    `ConfigError` in one sentence where diffusers has nothing that samples so.
    """
    net = _net(pipeline)
    times = pipeline.grid(steps)
    folded = net.guidance is not None
    scale = _scale(pipeline, scale, folded)
    name = pipeline_class(pipeline, net)
    known = FAMILIES.get(name)
    published = pipeline.scheduler
    uniform = known.uniform_sigmas if known else bool(published and published.uniform_sigmas)
    made = student_scheduler(
        pipeline, times, uniform_sigmas=uniform, corrects_eps=name == "DDIMPipeline"
    )
    if name == "DDIMPipeline" and made.name != DDIM:  # which makes DDIM of any scheduler
        name = "DDPMPipeline"
    target = Target(name, made, times, scale, folded, {})
    return replace(target, call=_call(pipeline, net, target))


def _net(pipeline: PipelineFields) -> DiffusersNet:
    net = pipeline.denoiser.net
    if not pipeline.times:
        raise ConfigError(
            "this is a teacher, and format='diffusers' writes students: give the run of halfstep distill"
        )
    if pipeline.sampler == FLOW_MAP:
        raise ConfigError(
            "diffusers steps flow maps of transformers with an input for the target time (Flux3 with "
            "flow_map), and halfstep's second time is another layer: write format='torch-export'"
        )
    if pipeline.sampler not in ("ddim", PARALLEL_DECODING) or pipeline.direction != "denoise":
        raise ConfigError(
            f"diffusers' schedulers take DDIM steps from noise to data, and this student is for "
            f"'{pipeline.sampler}' in the direction '{pipeline.direction}': write format='pipeline'"
        )
    if not isinstance(net, DiffusersNet):
        raise ConfigError(
            f"diffusers has no class for a {type(net).__name__}: write format='torch-export', or distil a "
            "network of diffusers (--net unet)"
        )
    if getattr(net, "quantised", None):
        raise ConfigError(
            "this student is int8, which diffusers' folders do not hold: give the float one"
        )
    return net


def pipeline_class(pipeline: PipelineFields, net: DiffusersNet) -> str:
    """The class of diffusers' pipeline for a network: its teacher's, or the one for networks of its kind."""
    kind = type(net.model).__name__
    if kind == "UNet2DModel" and pipeline.codec is None:
        return "DDIMPipeline" if net.num_classes is None else "ConsistencyModelPipeline"
    if pipeline.origin is not None:
        return pipeline.origin.pipeline
    if kind == "DiTTransformer2DModel" and pipeline.codec is not None:
        return "DiTPipeline"
    latents = "latents" if pipeline.codec is not None else "pixels"
    raise ConfigError(
        f"diffusers has no pipeline for a {kind} of {latents} whose teacher was no pipeline of diffusers: "
        "write format='torch-export'"
    )


def _scale(pipeline: PipelineFields, scale: float | None, folded: bool) -> float | None:
    """The guidance scale: of a slider the middle of its range, folded the one that is asked for."""
    if pipeline.guidance_range is None or not folded:
        if scale is not None:
            why = "takes any in its call" if pipeline.takes_scale else "takes none"
            raise ConfigError(
                f"guidance_scale is folded into a student that takes the scale where diffusers does not, and "
                f"this one {why}: leave it out"
            )
        return pipeline.middle_scale
    low, high = pipeline.guidance_range
    if scale is None and low == high:
        return low
    if scale is None or not low <= scale <= high:
        asked = "" if scale is None else f", got {scale:g}"
        raise ConfigError(
            f"diffusers' pipeline has no input for this student's guidance scale, which is exported at one "
            f"scale: write guidance_scale (--guidance-scale) from {low:g} to {high:g}{asked}"
        )
    return scale


def _call(pipeline: PipelineFields, net: DiffusersNet, target: Target) -> JsonObject:
    """The arguments with which the pipeline samples as the student does, in the order of a snippet."""
    takes = call_arguments(target.pipeline)
    family = FAMILIES.get(target.pipeline)
    call: JsonObject = {"num_inference_steps": len(target.times) - 1}
    embedded = target.scale is not None and not target.folded
    if "true_cfg_scale" in takes:
        call["true_cfg_scale"] = 1.0
    elif "guidance_scale" in takes:
        call["guidance_scale"] = 1.0
    if embedded:
        call["guidance_scale"] = target.scale
    if "height" in takes and "width" in takes:
        factor = 1 if pipeline.codec is None else pipeline.codec.factor
        height, width = pipeline.shape[1:]
        call |= {"height": height * factor, "width": width * factor}
    return {**call, **(family.call if family else {}), **target.scheduler.call}


def call_arguments(pipeline: str) -> Mapping[str, Any]:
    """The arguments of the call of a pipeline class, by name."""
    if (cls := pipeline_kind(pipeline)) is None:
        raise ConfigError(f"this diffusers has no {pipeline}: update it")
    return signature(cls.__call__).parameters
