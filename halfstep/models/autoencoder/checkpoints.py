"""Files of autoencoders: halfstep's own, diffusers', and those of the latent diffusion code."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from halfstep import storage
from halfstep.config import JsonObject
from halfstep.config.validate import numbers
from halfstep.errors import CheckpointError
from halfstep.models.autoencoder.families import FAMILIES
from halfstep.models.limits import LAYERS

OFFICIAL = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
"""The config of Stable Diffusion 1's autoencoder, which the official U-ViT uses."""
OFFICIAL_SCALE = 0.18215
DIFFUSERS = "diffusion_pytorch_model"
VARIANTS = ("", ".fp16", ".bf16")
"""In the order in which they are looked for."""


class About(TypedDict):
    """The content of codec.json."""

    class_name: str
    config: JsonObject
    scale: float


@dataclass(frozen=True)
class SavedFile:
    """A file of weights, its sha256, and the digest of its weights."""

    file: Path
    sha256: str
    digest: str

    @classmethod
    def at(cls, stem: Path, digest: str) -> "SavedFile":
        """The file that a codec was saved to, or loaded from."""
        sha256 = storage.read_about(stem, About)["sha256"]
        return cls(stem.with_suffix(".safetensors").resolve(), sha256, digest)

    def link(self, stem: Path) -> bool:
        """Hard-link it as STEM.safetensors; False if the file system cannot, or the file has changed."""
        return storage.link(self.file, stem.with_suffix(".safetensors"), self.sha256)


class _Config(TypedDict, total=False):
    """The checked keys of config.json; diffusers checks the others."""

    _class_name: str
    scaling_factor: float
    layers_per_block: int
    block_out_channels: list[int]


class _Index(TypedDict):
    """The checked keys of the index of a sharded file: the file of each tensor."""

    weight_map: dict[str, str]


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


def read_diffusers(folder: Path) -> tuple[str, JsonObject, dict[str, Tensor]]:
    """Read the class, the config and the weights, under today's names, of an autoencoder of diffusers."""
    config = storage.read_unsealed_json(folder / "config.json", _Config)
    if (kind := config.get("_class_name")) not in FAMILIES:
        raise CheckpointError(
            f"'{folder}' holds a {kind}: give the folder of one of {', '.join(FAMILIES)}"
        )
    tensors = dict[str, Tensor]()
    for file in _weight_files(folder):
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read '{file}': {error}") from None
    for name in LAYERS:  # building them would never end
        if (layers := max(numbers(config.get(name)), default=0)) > len(tensors):
            raise CheckpointError(f"'{folder}' has no weights for {layers} layers")
    derived = FAMILIES[kind].derived
    about = {k: v for k, v in config.items() if not k.startswith("_") and k not in derived}
    return kind, about, {_replaced(name, OLD): value for name, value in tensors.items()}


def _weight_files(folder: Path) -> list[Path]:
    """The file of weights, or its shards, of the first variant that is there."""
    for variant in VARIANTS:
        whole = folder / f"{DIFFUSERS}{variant}.safetensors"
        index = folder / f"{DIFFUSERS}.safetensors.index{variant}.json"
        if whole.exists():
            return [whole]
        if index.exists():
            names = set(storage.read_unsealed_json(index, _Index)["weight_map"].values())
            if outside := sorted(name for name in names if Path(name).name != name):
                raise CheckpointError(f"'{index}' names a file outside its folder: {outside[0]!r}")
            return [folder / name for name in sorted(names)]
    raise CheckpointError(
        f"'{folder}' lacks {DIFFUSERS}.safetensors: save it from diffusers once more, as safetensors"
    )


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
