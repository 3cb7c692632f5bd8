"""Autoencoders as others write them: files of the latent diffusion code, folders of diffusers."""

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
    """What is known of config.json; diffusers looks at the rest."""

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
"""diffusers' names, and those of the latent diffusion code, replaced in this order."""
OLD = {
    "mid_block.attentions.0.query": "mid_block.attentions.0.to_q",
    "mid_block.attentions.0.key": "mid_block.attentions.0.to_k",
    "mid_block.attentions.0.value": "mid_block.attentions.0.to_v",
    "mid_block.attentions.0.proj_attn": "mid_block.attentions.0.to_out.0",
}
"""Names in files that diffusers wrote before 2023, and today's."""


def read_diffusers(folder: Path) -> tuple[JsonObject, dict[str, Tensor]]:
    """The config and the weights, in today's names, of an `AutoencoderKL` that diffusers saved."""
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


def ldm_name(name: str, levels: int) -> str:
    """What the latent diffusion code calls this tensor; it counts the decoder's levels from the image up."""
    name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", name)
    return _replaced(name, LDM)


def _replaced(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name
