"""The autoencoder classes of diffusers that can be codecs, and what each calls its sizes and outputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

from torch import nn

from halfstep.config import NetConfig
from halfstep.errors import ConfigError, unknown
from halfstep.models.limits import build_within_limits
from halfstep.quiet import quietly

SCALE = "scaling_factor"
NORMALISATION = ("shift_factor", "latents_mean", "latents_std")


@dataclass(frozen=True)
class Family:
    """What halfstep must know of an autoencoder class to call it.

    levels    its option with a number for each level; every level after the first halves the sides
    channels  its option for the channels of a latent
    images    its option for the channels of an image
    output    attribute of what `encode` returns: "latent_dist" has moments, the others are the latents
    frames    whether its tensors have an axis of frames, [B, C, 1, H, W]
    blocks    its options that name a block for each level, and the block without them
    derived   keys that it adds to its config and does not take
    """

    levels: str = "block_out_channels"
    channels: str = "latent_channels"
    images: str = "in_channels"
    output: str = "latent_dist"
    frames: bool = False
    blocks: Mapping[str, str] = field(default_factory=dict)
    derived: tuple[str, ...] = ()


FAMILIES = {
    "AutoencoderKL": Family(
        blocks={"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
    ),
    "AutoencoderDC": Family(levels="encoder_block_out_channels", output="latent"),
    "AutoencoderKLQwenImage": Family(
        levels="dim_mult", channels="z_dim", images="input_channels", frames=True
    ),
    "AutoencoderTiny": Family(
        levels="encoder_block_out_channels", output="latents", derived=("block_out_channels",)
    ),
}
"""By the class's name: the only classes that a file may name."""


def family_of(class_name: str) -> Family:
    """The entry of `FAMILIES`; `ConfigError` for another class."""
    if class_name not in FAMILIES:
        raise ConfigError(
            f"diffusers' {class_name} cannot be a codec here: give one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[class_name]


def options_of(class_name: str) -> dict[str, Any]:
    """The options of the class, with their defaults."""
    parameters = signature(_class(class_name).__init__).parameters.values()
    return {each.name: each.default for each in parameters if each.name != "self"}


def build_model(class_name: str, config: NetConfig) -> nn.Module:
    """Build an untrained autoencoder from its config without the scale."""
    family, kind, defaults = family_of(class_name), _class(class_name), options_of(class_name)
    for name in config:
        if name not in defaults.keys() - {SCALE}:
            raise unknown("option of a codec called", name, defaults.keys() - {SCALE})
    options = {  # AutoencoderKLQwenImage adds its lists to lists
        k: tuple(v) if isinstance(v, list) and not isinstance(defaults[k], list) else v
        for k, v in config.items()
    }
    shifts = {k: options.pop(k) for k in NORMALISATION if k in options}  # numbers that are no sizes

    def model(**options: Any) -> nn.Module:
        levels = len(options.get(family.levels, defaults[family.levels]))
        blocks = {name: (block,) * levels for name, block in family.blocks.items()}
        built: nn.Module = kind(**blocks | options | shifts)
        return built

    return build_within_limits("codec", model, options)


def _class(class_name: str) -> Any:
    with quietly():
        import diffusers

        return getattr(diffusers, class_name)
