"""Transfer the weights of a diffusers `UNet2DModel` to one of fewer layers or levels."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn, Tensor

from halfstep.diffusion.denoiser import freeze_alike

BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions)\.(\d+)\.")
LEVEL = re.compile(r"up_blocks\.(\d+)\.")


def teacher_name(key: str, *, levels: Sequence[int], layers: Sequence[int]) -> str | None:
    """The name in the larger U-Net of a tensor of the smaller one; None if it has no counterpart.

    Level k from the image stays level k, so that up-blocks are counted from their end.  Down-blocks keep
    their first layers.  In an up-block the first layer reads the level below and the last the skip of the
    level above: they stay the first and the last (as in BK-SDM's map of Stable Diffusion).

    levels, layers  (smaller, larger): lengths of block_out_channels, and layers_per_block
    """
    (few, many), (short, long) = levels, layers
    if match := LEVEL.search(key):
        up = int(match[1]) + many - few
        if up < 0:
            return None
        key = f"{key[: match.start(1)]}{up}{key[match.end(1) :]}"
    if match := BLOCK.search(key):
        layer = int(match[4])
        layer = (
            long if layer == short else layer
        )  # the last layer of an up-block, which has one more
        key = f"{key[: match.start(4)]}{layer}{key[match.end(4) :]}"
    return key


def transfer_weights(net: nn.Module, old: nn.Module) -> list[str]:
    """Copy weights of a larger U-Net, module by module where all shapes of a module agree.

    net, old  `UNetNet`s; returns the names of the copied tensors
    """
    new: Any = net
    larger: Any = old
    levels = tuple(len(each.model.config["block_out_channels"]) for each in (new, larger))
    layers = tuple(each.model.config["layers_per_block"] for each in (new, larger))
    state, old_state = net.state_dict(), old.state_dict()
    names = {key: teacher_name(key, levels=levels, layers=layers) for key in state}
    copied = [key for key in state if _fits(key, state, names, old_state)]
    with torch.no_grad():
        for key in copied:
            state[key].copy_(old_state[str(names[key])])
    freeze_alike(net, old, {key: names[key] for key in copied}.get)
    return copied


def _fits(
    key: str,
    state: Mapping[str, Tensor],
    names: Mapping[str, str | None],
    old_state: Mapping[str, Tensor],
) -> bool:
    """Whether the tensor's whole module has a counterpart, so that its weight and bias stay together."""
    owner = key.rpartition(".")[0]
    return all(
        (old := names[each]) in old_state and old_state[str(old)].shape == state[each].shape
        for each in state
        if each.rpartition(".")[0] == owner
    )
