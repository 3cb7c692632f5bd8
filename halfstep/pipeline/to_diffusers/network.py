"""The network of a student as diffusers' own: what halfstep adds is folded into its weights, exactly."""

from collections.abc import Sequence
from math import log
from typing import Any, cast

import torch
from torch import nn, Tensor

from halfstep.config import JsonObject
from halfstep.errors import ConfigError
from halfstep.models import DiffusersNet
from halfstep.models.fixed_scale import at_scale
from halfstep.schema import from_json

SIZED = ("UNet2DModel", "UNet2DConditionModel")
"""Networks of any size, whose pipelines read the size of a sample from the config."""
OWN = ("_class_name", "_diffusers_version")


def network_config(net: DiffusersNet, shape: Sequence[int]) -> JsonObject:
    """config.json, as the class writes it, with the size of the student's samples where a pipeline reads it.

    shape  of a sample, [C, H, W]
    """
    model = cast(Any, net.model)
    config: JsonObject = from_json(model.to_json_string(), JsonObject, "the network's config")
    config = {k: v for k, v in config.items() if not k.startswith("_") or k in OWN}
    if config["_class_name"] in SIZED:
        height, width = shape[1:]
        config["sample_size"] = height if height == width else [height, width]
    return config


def network_weights(net: DiffusersNet, *, scale: float | None, shift: float) -> dict[str, Tensor]:
    """The weights of the model alone, with the guidance scale and the shift of its time folded in.

    scale  the one guidance scale, where halfstep's own embedding of it is folded in; None for no such
    shift  what the network's time has above diffusers' timestep
    """
    model = net.model if scale is None else at_scale(net, scale).model
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    weights |= {f"{last_layer(net)}.{name}": values[0] for name, values in heads(net).items()}
    return weights | (shifted_time(model, shift) if shift else {})


def last_layer(net: DiffusersNet) -> str:
    """The path of the layer that has a copy for each step, of a student of parallel decoding."""
    return net.inputs.last_layer


def heads(net: DiffusersNet) -> dict[str, Tensor]:
    """The weight and the bias of a bank of heads, [N, ...] each; nothing without one."""
    if not net.output_heads:
        return {}
    bank = net.model.get_submodule(last_layer(net))
    return {name: value.detach() for name, value in bank.state_dict().items()}


@torch.no_grad()
def shifted_time(model: nn.Module, shift: float) -> dict[str, Tensor]:
    """The first layers of the time's embedding, whose inputs get the features of n + shift from those of n.

    sin(a + d) = sin a cos d + cos a sin d and cos(a + d) = cos a cos d - sin a sin d turn the features,
    linearly, so that the layer's columns turn instead.
    """
    folded = {}
    for name, module in model.named_modules():
        features = getattr(module, "time_proj", None)
        embedding = getattr(module, "time_embedding", getattr(module, "timestep_embedder", None))
        if embedding is None or features is None:
            continue
        if type(features).__name__ != "Timesteps":
            raise ConfigError(
                f"diffusers' timesteps are {shift:g} below the times that this network reads, and its "
                f"{type(features).__name__} cannot be moved: train with time_offset=-1"
            )
        part = "time_embedding" if hasattr(module, "time_embedding") else "timestep_embedder"
        path = f"{name}.{part}".lstrip(".")
        weight: Tensor = embedding.linear_1.weight
        turn = _turn(features, shift, weight.shape[1])
        folded[f"{path}.linear_1.weight"] = (weight.double() @ turn).to(weight.dtype)
        if (scales := getattr(embedding, "cond_proj", None)) is not None:  # added to the features
            turned = turn.T @ scales.weight.double()
            folded[f"{path}.cond_proj.weight"] = turned.to(weight.dtype)
    if not folded:
        raise ConfigError(
            f"diffusers' timesteps are {shift:g} below the times that this network reads, and its embedding "
            "of them is not known: train with time_offset=-1"
        )
    return folded


def _turn(features: Any, shift: float, width: int) -> Tensor:
    """The matrix from the features of n to those of n + shift, float64 [width, width]."""
    half = features.num_channels // 2
    if width != 2 * half:
        raise ConfigError(
            f"an embedding of {width} features of time is not known: train with time_offset=-1"
        )
    k = torch.arange(half, dtype=torch.float64)
    angle = shift * torch.exp(-log(10000) * k / (half - features.downscale_freq_shift))
    cos, sin = torch.diag(angle.cos()), torch.diag(angle.sin())
    first = [torch.cat([cos, sin], dim=1), torch.cat([-sin, cos], dim=1)]  # sin, then cos
    if features.flip_sin_to_cos:
        first = [torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)]
    return torch.cat(first)
