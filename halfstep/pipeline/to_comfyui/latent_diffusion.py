"""Stable Diffusion's networks under the names of the original latent diffusion code.

diffusers reads these names (`diffusers.loaders.single_file_utils`) and writes none.  The names that its
reader has as tables are taken from there; the places of blocks, which it computes, are inverted here.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from halfstep.config import NetConfig
from halfstep.errors import ConfigError
from halfstep.models.autoencoder.checkpoints import ldm_name
from halfstep.quiet import quietly

UNET, VAE = "model.diffusion_model.", "first_stage_model."
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
"""The layers of a block of convolutions, in diffusers and originally."""


def original_unet(state: Mapping[str, Tensor], config: NetConfig) -> dict[str, Tensor]:
    """A UNet2DConditionModel's tensors by their original names.

    state   its state dict
    config  its config, with one `layers_per_block` for all levels
    """
    layers = config["layers_per_block"]
    if not isinstance(layers, int):
        raise ConfigError(
            f"the original names count as many layers in each level, and this network has {layers}: write "
            "format='diffusers'"
        )
    table = _table("unet", "layers") | _table("unet", "addition_embed_type")
    attentive = {
        name.split(".")[1] for name in state if re.match(r"up_blocks\.\d+\.attentions", name)
    }
    return {
        UNET + _unet_name(name, table, layers, attentive): value for name, value in state.items()
    }


def _unet_name(name: str, table: Mapping[str, str], layers: int, attentive: set[str]) -> str:
    """The original name of a tensor.

    attentive  the numbers of the levels upwards that have attention, before which the upsampler stands
    """
    if name in table:
        return table[name]
    if mid := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        place = 1 if mid[1] == "attentions" else 2 * int(mid[2])
        return f"middle_block.{place}.{_layer(mid[1], mid[3])}"
    found = re.match(r"(down|up)_blocks\.(\d+)\.(\w+?)\.(\d+)\.(.+)", name)
    if found is None:
        raise ConfigError(
            f"the original names have none for '{name}' of this network: write format='diffusers'"
        )
    side, block, kind, layer, rest = found.groups()
    place = int(block) * (layers + 1) + int(layer)
    if kind == "downsamplers":
        return f"input_blocks.{place + layers + 1}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{place + layers}.{2 if block in attentive else 1}.{rest}"
    blocks = f"input_blocks.{place + 1}" if side == "down" else f"output_blocks.{place}"
    return f"{blocks}.{1 if kind == 'attentions' else 0}.{_layer(kind, rest)}"


def _layer(kind: str, rest: str) -> str:
    layer, _, parameter = rest.partition(".")
    return f"{RESNET[layer]}.{parameter}" if kind == "resnets" else rest


def original_vae(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """An AutoencoderKL's tensors by their original names; linear layers become 1 x 1 convolutions.

    state   its state dict
    levels  of its decoder
    """
    names = {name: VAE + ldm_name(name, levels) for name in state}
    return {
        names[name]: value[:, :, None, None] if value.ndim == 2 else value
        for name, value in state.items()
    }


def original_clip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A CLIP text model's tensors by the names of OpenAI's, which are transformers' own.

    prefix  for example "cond_stage_model.transformer."
    """
    return {f"{prefix}{name}": value for name, value in _wrapped(state).items()}


def original_open_clip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A CLIP text model's tensors by the names of OpenCLIP, with query, key and value as one tensor.

    prefix  for example "cond_stage_model.model."
    """
    state, tensors = _wrapped(state), dict[str, Tensor]()
    whole, parts = _table("openclip", "layers"), _table("openclip", "transformer")
    for name, value in state.items():
        if name in whole:
            projection = whole[name] == "text_projection"
            tensors[prefix + whole[name]] = value.T if projection else value
            continue
        original = name
        for new, old in parts.items():
            original = original.replace(new, old)
        if ".q_proj." in name:
            qkv = [state[name.replace(".q_proj.", f".{each}_proj.")] for each in "qkv"]
            original = original.replace(".q_proj.", ".in_proj_")
            tensors[f"{prefix}transformer.{original}"] = torch.cat(qkv)
        elif ".k_proj." not in name and ".v_proj." not in name:
            tensors[f"{prefix}transformer.{original}"] = value
    return tensors


def _wrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with transformers' prefix, which its newer versions leave out of a model alone."""
    whole = ("text_model.", "text_projection.")
    return {k if k.startswith(whole) else f"text_model.{k}": v for k, v in state.items()}


def _table(part: str, key: str) -> dict[str, str]:
    with quietly():  # imported late, as it takes seconds
        from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
    table: dict[str, str] = DIFFUSERS_TO_LDM_MAPPING[part][key]  # type: ignore[index]
    return dict(table)
