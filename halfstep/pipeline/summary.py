"""A pipeline in five lines, for `repr`."""

from typing import Any

from halfstep.models.hooks import unwrap
from halfstep.pipeline.base import PipelineFields


def summary(pipeline: PipelineFields) -> str:
    """Five lines: network, schedule, samples and conditions, sampler, device."""
    lines = {
        "schedule": _schedule(pipeline),
        "samples": _samples(pipeline),
        "sampler": _sampler(pipeline),
        "device": _device(pipeline),
    }
    first = f"Pipeline: {_network(pipeline)}"
    return "\n".join([first, *(f"  {name:<9}{text}" for name, text in lines.items())])


def _network(pipeline: PipelineFields) -> str:
    """Name and parameters; a user's own network by its class."""
    net: Any = unwrap(getattr(pipeline.denoiser, "unguided", pipeline.denoiser).net)
    name = getattr(net, "recipe", (type(net).__name__,))[0]
    parameters = sum(p.numel() for p in pipeline.denoiser.parameters())
    return f"{name}, {parameters:,} parameters"


def _schedule(pipeline: PipelineFields) -> str:
    denoiser = pipeline.denoiser
    names = type(denoiser.schedule).__name__, type(denoiser.parameterisation).__name__
    return f"{names[0]}, the network predicts {names[1]}"


def _samples(pipeline: PipelineFields) -> str:
    """Shape and conditions."""
    sides, parts = list(pipeline.shape), list[str]()
    if count := len(pipeline.class_names):
        parts.append(f"{count:,} classes")
    if pipeline.null is not None:
        parts.append("and none" if count else "a null class")
    if pipeline.empty is not None or pipeline.added:
        parts.append("texts")
    if pipeline.guidance_range is not None:
        low, high = pipeline.guidance_range
        parts.append(
            f"guidance scale {low:g} to {high:g}" if low < high else f"guidance scale {low:g}"
        )
    shape = str(sides)
    if pipeline.codec is not None:
        shape = f"latents {sides}, images of {' x '.join(map(str, pipeline.pixels))}"
    return ", ".join([shape, *(parts or ["no conditions"])])


def _sampler(pipeline: PipelineFields) -> str:
    """Sampler and steps of a student, or a teacher's default."""
    counts = sorted(set(pipeline.step_counts), reverse=True)
    invert = ", from images to noise" if pipeline.direction == "invert" else ""
    if not counts:
        return f"{pipeline.sampler}, any number of steps ({pipeline.steps} by default){invert}"
    steps = " or ".join(f"{count:,}" for count in counts)
    return f"{pipeline.sampler}, {steps} step{'s' if counts != [1] else ''}{invert}"


def _device(pipeline: PipelineFields) -> str:
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in pipeline.denoiser.parameters()})
    return f"{pipeline.device}, {' and '.join(dtypes) or 'no parameters'}"
