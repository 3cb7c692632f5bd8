"""Autoencoder checkpoints of the latent diffusion code and of diffusers."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from halfstep import storage
from halfstep.config import JsonObject
from halfstep.errors import CheckpointError

DIFFUSERS = "diffusion_pytorch_model.safetensors"


class _Config(TypedDict, total=False):
    """The checked keys of config.json; diffusers checks the others."""

    _class_name: str
    scaling_factor: float
    layers_per_block: int
    block_out_channels: list[int]


LDM = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_out.0": "proj_out",
    "to_": "",
    "down_blocks": "down",
    "resnets": "block",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
}
"""diffusers' names and those of the latent diffusion code, in the order of replacement."""
OLD = {
    "mid_block.attentions.0.query": "mid_block.attentions.0.to_q",
    "mid_block.attentions.0.key": "mid_block.attentions.0.to_k",
    "mid_block.attentions.0.value": "mid_block.attentions.0.to_v",
    "mid_block.attentions.0.proj_attn": "mid_block.attentions.0.to_out.0",
}
"""Names in diffusers' files before 2023, and today's."""


def read_diffusers(folder: Path) -> tuple[JsonObject, dict[str, Tensor]]:
    """Read the config and the weights, under today's names, of an `AutoencoderKL` that diffusers saved."""
    config, weights = (
        storage.read_unsealed_json(folder / "config.json", _Config),
        folder / DIFFUSERS,
    )
    if (kind := config.get("_class_name")) != "AutoencoderKL":
        raise CheckpointError(f"'{folder}' holds a {kind}: give the folder of an AutoencoderKL")
    if not weights.exists():
        raise CheckpointError(
            f"'{folder}' lacks {weights.name}: save it from diffusers once more, as safetensors"
        )
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read '{weights}': {error}") from None
    about = {name: value for name, value in config.items() if not name.startswith("_")}
    return about, {_replaced(name, OLD): value for name, value in tensors.items()}


def from_ldm_names(
    tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], levels: int, source: str
) -> dict[str, Tensor]:
    """Rename a state dict of the latent diffusion code to diffusers' names.

    state   the codec's own state dict
    levels  of the decoder
    source  names the file in an error
    """
    names = {ldm_name(name, levels): name for name in state}
    if missing := sorted(names.keys() - tensors.keys()):
        raise CheckpointError(
            f"{source} is not this autoencoder: it lacks {len(missing)} tensors "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})"
        )
    renamed = {names.get(name, name): value for name, value in tensors.items()}
    for name in renamed.keys() & state.keys():
        if state[name].ndim == 2 and renamed[name].shape[2:] == (1, 1):
            renamed[name] = renamed[name][:, :, 0, 0]  # attention as 1 x 1 convolutions
    return renamed


def ldm_name(name: str, levels: int) -> str:
    """The tensor's name in the latent diffusion code, which counts the decoder's levels from the image."""
    name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
    return _replaced(name, LDM)


def _replaced(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name
