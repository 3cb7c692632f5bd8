"""A pipeline of diffusers as one of halfstep: all parts follow from its configs."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfstep.diffusion.denoiser import Denoiser
from halfstep.errors import ConfigError
from halfstep.models import DiffusersNet, wrap_diffusers
from halfstep.models.half_storage import check_half, mark_stored
from halfstep.pipeline.base import Origin, SIZES
from halfstep.pipeline.from_diffusers.families import FAMILIES, Family
from halfstep.pipeline.from_diffusers.schedule import imported_schedule
from halfstep.pipeline.from_diffusers.source import open_source, Source
from halfstep.pipeline.from_diffusers.texts import PromptEncoder

__all__ = ["FAMILIES", "Family", "fields_of"]

SCALES = (1.0, 10.0)
"""Guidance scales of a network that takes them as an input, by default."""


def fields_of(
    source: Any,
    size: int | tuple[int, int] | None,
    family: Any,
    config: Path | str | None,
    guidance_range: tuple[float, float] | None,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """The fields of the pipeline; arguments are those of `Pipeline.from_diffusers`."""
    half = check_half(dtype)
    parts = open_source(source, family, config, half)
    net = wrap_diffusers(parts.network, parts.family.inputs)
    if half is not None:
        mark_stored(net, half, torch.float32)
    shape, pixels = _sizes(parts, net, size)
    patch = net.inputs.packed or parts.network.config.get("patch_size") or 1
    schedule = imported_schedule(
        parts.scheduler, parts.family, (shape[1] // patch) * (shape[2] // patch)
    )
    denoiser = Denoiser(
        net, schedule.schedule, schedule.parameterisation, time=schedule.time, autocast=half
    ).freeze()
    scales = guidance_range or (SCALES if "guidance_scale" in net.reads else None)
    if guidance_range is not None and "guidance_scale" not in net.reads:
        raise ConfigError(
            "guidance_range is of the scales that a network takes as an input, and this takes none: leave "
            "it out"
        )
    return {
        "denoiser": denoiser,
        "shape": shape,
        "clip": schedule.clip,
        "clipping": "x0-and-eps" if schedule.clip is None else "x0",
        "sampler": "ddim" if schedule.published is None else "scheduler",
        "steps": 1000 if parts.scheduler["_class_name"] == "DDPMScheduler" else 50,
        "codec": parts.codec,
        "guidance_range": scales,
        "guidance_norm": parts.family.guidance_norm,
        "scheduler": schedule.published,
        "origin": Origin(parts.class_name, parts.place),
        **_classes(parts, net),
        **_texts(parts, net, pixels),
    }


def _sizes(
    parts: Source, net: DiffusersNet, size: int | tuple[int, int] | None
) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """The shape of a sample, and the size of an image in pixels."""
    config, factor = parts.network.config, 1 if parts.codec is None else parts.codec.factor
    channels = int(config["in_channels"]) // max(1, net.inputs.packed**2)
    if size is None:
        sides = config.get("sample_size") or parts.family.size // factor
        height, width = (sides, sides) if isinstance(sides, int) else tuple(sides)
    else:
        height, width = (size, size) if isinstance(size, int) else size
        if height % factor or width % factor:
            raise ConfigError(
                f"this model's latents are of {factor} x {factor} pixels each, and images of {height} x "
                f"{width} do not divide so: write a multiple of {factor}"
            )
        height, width = height // factor, width // factor
    return (channels, height, width), (height * factor, width * factor)


def _classes(parts: Source, net: DiffusersNet) -> dict[str, Any]:
    """The names of the classes, and the null label, which a DiT has behind them."""
    rows = net.num_classes
    if rows is None:
        return {}
    has_null = type(parts.network).__name__ == "DiTTransformer2DModel"
    classes = rows - has_null
    names = tuple(str(parts.labels.get(k, k)) for k in range(classes))
    return {"class_names": names, "null": classes if has_null else None}


def _texts(parts: Source, net: DiffusersNet, pixels: tuple[int, int]) -> dict[str, Any]:
    """The encoder of texts, the condition of the empty text, and those of the size."""
    sizes = {
        name: torch.tensor(SIZES[name](*pixels)) for name in net.inputs.conditions if name in SIZES
    }
    if not parts.family.prompts:
        return {"added": sizes}
    encoder = PromptEncoder(parts.family, parts.load_texts, parts.digest_of_texts)
    null = encoder.null()
    encoder.release()
    named: dict[str, Tensor] = {name: value[0] for name, value in null.added.items()}
    states = null.encoder_hidden_states
    return {
        "empty": None if states is None else states[0].clone(),
        "added": {**{name: value.clone() for name, value in named.items()}, **sizes},
        "texts": encoder,
    }
