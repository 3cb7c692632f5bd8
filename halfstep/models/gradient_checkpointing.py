"""Recompute activations in the backward pass in place of keeping them (Chen et al. 2016)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from halfstep.errors import ConfigError
from halfstep.models.diffusers_net import DiffusersNet
from halfstep.models.lora import LoraNet


@contextmanager
def checkpointing(student: nn.Module) -> Iterator[None]:
    """Around the training of a student: its blocks are recomputed; afterwards they are as before.

    The bits of gradients stay.  `ConfigError` for a network without the switch of diffusers' models,
    `enable_gradient_checkpointing`, which halfstep's U-ViT has.
    """
    parts = list(_parts(student))
    models: list[Any] = [p for p in parts if getattr(p, "_supports_gradient_checkpointing", False)]
    if not models:
        kind = next((type(part.net).__name__ for part in parts if hasattr(part, "net")), "network")
        raise ConfigError(
            f"this {kind} has no blocks that gradient checkpointing could recompute: leave "
            "gradient_checkpointing out (command line: --gradient-checkpointing)"
        )
    for part in parts:
        if isinstance(part, DiffusersNet):
            part.refuse_checkpointing()
    switches = [(part, part.gradient_checkpointing) for part in parts if _has_switch(part)]
    for model in models:
        model.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for part, before in switches:
            part.gradient_checkpointing = before


def _parts(student: nn.Module) -> Iterator[Any]:
    """The modules of a student, those of a LoRA's base too, which are no part of it."""
    for part in student.modules():
        yield part
        if isinstance(part, LoraNet):
            yield from part.base.net.modules()


def _has_switch(part: nn.Module) -> bool:
    return isinstance(getattr(part, "gradient_checkpointing", None), bool)
