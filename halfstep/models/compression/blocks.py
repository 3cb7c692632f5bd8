"""The blocks of a network, whose outputs are compared with those of a smaller student."""

from typing import Any

from torch import nn

from halfstep.models import recipe


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """The blocks of a U-ViT or of diffusers' `UNet2DModel` in the order they run; [] for others."""
    kind, model = _kind(net), getattr(net, "model", None)
    sides: Any = {"uvit": ("in", "mid", "out"), "unet": ("down", "mid", "up")}.get(kind)
    if sides is None:
        return []
    first, middle, last = (f"{side}_block{'s' * (side != 'mid')}" for side in sides)
    blocks = [*getattr(model, first), getattr(model, middle), *getattr(model, last)]
    return [block for block in blocks if block is not None]


def extras_of(net: nn.Module) -> int:
    """The number of a U-ViT's tokens before the patches, of time and label or text; 0 for others."""
    return int(net.model.extras) if _kind(net) == "uvit" else 0  # type: ignore[union-attr, arg-type]


def widths_of(net: nn.Module) -> list[int]:
    """The output channels of each of `blocks_of`."""
    if _kind(net) == "uvit":
        return [int(recipe(net)[1]["embed_dim"])] * len(blocks_of(net))
    if _kind(net) != "unet":
        return []
    down: Any = list(net.model.config["block_out_channels"])  # type: ignore[union-attr, index]
    middle = down[-1:] if len(blocks_of(net)) % 2 else []
    return [*down, *middle, *reversed(down)]


def comparable(net: nn.Module, other: nn.Module) -> bool:
    """Whether the features of two networks have the same grids, block by block of a U-Net.

    Their widths may differ.
    """
    name, config = recipe(net)
    other_name, other_config = recipe(other)
    keys = {
        "uvit": ("patch_size", "img_size", "num_classes", "clip_dim", "num_clip_token"),
        "unet": ("sample_size",),
    }.get(name)
    if name != other_name or keys is None:
        return False
    if name == "unet":  # defaults are diffusers'
        config, other_config = net.model.config, other.model.config  # type: ignore[union-attr, assignment]
        if len(widths_of(net)) != len(widths_of(other)):
            return False
    return all(_plain(config.get(key)) == _plain(other_config.get(key)) for key in keys)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _kind(net: nn.Module) -> str:
    return str(getattr(net, "recipe", ("", {}))[0])
