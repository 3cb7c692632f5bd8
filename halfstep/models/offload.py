"""Keep frozen networks in the CPU's memory; each layer is on the device only while it is called."""

from collections.abc import Iterable

import torch
from torch import nn

from halfstep.diffusion.denoiser import Denoiser
from halfstep.errors import ConfigError
from halfstep.models.lora import LoraNet
from halfstep.quiet import quietly


def refuse_offload(device: torch.device) -> None:
    """`ConfigError` where there is no other memory to keep a network in."""
    if device.type == "cpu":
        raise ConfigError(
            "offload keeps the teacher in the CPU's memory, and this run is on the CPU: leave offload out "
            "(command line: --offload)"
        )


def offload(networks: Iterable[nn.Module], device: torch.device) -> None:
    """Move frozen denoisers to the CPU, in place, with diffusers' hooks that bring each layer to `device`.

    `ConfigError` for a LoRA's teacher, whose weights are also the student's.
    """
    with quietly():  # imported late, as it takes seconds
        from diffusers.hooks.group_offloading import apply_group_offloading

    denoisers = [part for network in networks for part in network.modules()]
    for denoiser in denoisers:
        if not isinstance(denoiser, Denoiser) or any(
            p.requires_grad for p in denoiser.parameters()
        ):
            continue
        if isinstance(denoiser.net, LoraNet):
            raise ConfigError(
                "the teacher of a LoRA is its student's network with the adapter off, which training needs "
                "on the device: leave offload out (command line: --offload)"
            )
        cpu = torch.device("cpu")
        apply_group_offloading(denoiser.net, device, cpu, offload_type="leaf_level")
