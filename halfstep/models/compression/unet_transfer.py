"""Weights of a diffusers `UNet2DModel` for one of fewer layers or levels: whose layer becomes whose."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn, Tensor

from halfstep.diffusion.denoiser import freeze_alike

BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions)\.(\d+)\.")
LEVEL = re.compile(r"up_blocks\.(\d+)\.")


def teacher_name(key: str, *, levels: Sequence[int], layers: Sequence[int]) -> str | None:
    """What a tensor of the smaller U-Net is called in the larger; None where that has nothing like it.

    Level k from the image stays level k, so up-blocks are counted from their end.  On the way down the
    first layers are kept.  On the way up the first reads what comes from below and the last the skip of
    the level above: they stay the first and the last (as BK-SDM's map of Stable Diffusion has it).

    levels, layers  how many (smaller, larger): lengths of block_out_channels, and layers_per_block
    """
    (few, many), (short, long) = levels, layers
    if found := LEVEL.search(key):
        up = int(found[1]) + many - few
        if up < 0:
            return None
        key = f"{key[: found.start(1)]}{up}{key[found.end(1) :]}"
    if found := BLOCK.search(key):
        layer = int(found[4])
        layer = long if layer == short else layer  # the last on the way up, which has one more
        key = f"{key[: found.start(4)]}{layer}{key[found.end(4) :]}"
    return key


def transfer_weights(net: nn.Module, old: nn.Module) -> list[str]:
    """Give a U-Net the weights of a larger one, module by module where all of its shapes agree.

    net, old  `UNetNet`s; returns the names of the tensors that were copied
    """
    new: Any = net
    larger: Any = old
    levels = tuple(len(one.model.config["block_out_channels"]) for one in (new, larger))
    layers = tuple(one.model.config["layers_per_block"] for one in (new, larger))
    mine, theirs = net.state_dict(), old.state_dict()
    named = {key: teacher_name(key, levels=levels, layers=layers) for key in mine}
    fits = [key for key in mine if _fits(key, mine, named, theirs)]
    with torch.no_grad():
        for key in fits:
            mine[key].copy_(theirs[str(named[key])])
    freeze_alike(net, old, {key: named[key] for key in fits}.get)  # what is taken over
    return fits


def _fits(
    key: str,
    mine: Mapping[str, Tensor],
    named: Mapping[str, str | None],
    theirs: Mapping[str, Tensor],
) -> bool:
    """Whether the whole module has an equal: a weight of one network with a bias of another is neither's."""
    owner = key.rpartition(".")[0]
    module: Sequence[str] = [other for other in mine if other.rpartition(".")[0] == owner]
    return all(
        (old := named[one]) in theirs and theirs[str(old)].shape == mine[one].shape
        for one in module
    )
