"""LoRA students of small networks."""

import torch

from halfstep.diffusion.denoiser import Denoiser
from halfstep.models.lora import LoraBase, LoraNet


def without_adapter(denoiser, rank=2):
    """The denoiser as the first teacher of a LoRA run: its network with adapters off."""
    net = LoraNet(LoraBase(denoiser.net, rank))
    return Denoiser(net, denoiser.schedule, denoiser.parameterisation, time=denoiser.time).freeze()


def lively(student, seed=0):
    """The student with an adapter that changes its outputs."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=drawn)
    return student
