"""The gigabytes of a distillation by option, computed for networks of 0.9, 2.6 and 12 billion parameters.

    python -m benchmarks.memory_table

The networks are built without memory from the configs of Stable Diffusion 1.5, SDXL and Flux, and their bytes
are those of `halfstep.workflows.memory_plan`.  Activations come on top.  docs/how-to/memory.md has the table.
"""

from collections.abc import Callable

import torch
from torch import nn

from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.models import wrap_diffusers
from halfstep.models.diffusers_net import diffusers_class
from halfstep.training import TrainingConfig
from halfstep.workflows.memory_plan import (
    castable_bytes,
    lora_parameters,
    optimiser_bytes,
    size_of,
    tensors_of,
)

SDXL = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
STABLE = {"sample_size": 64, "cross_attention_dim": 768}
NETWORKS: dict[str, tuple[str, dict[str, object]]] = {
    "Stable Diffusion 1.5": ("UNet2DConditionModel", STABLE),
    "SDXL": ("UNet2DConditionModel", SDXL),
    "Flux": ("FluxTransformer2DModel", {"guidance_embeds": True}),
}
"""Networks by name: diffusers' class and config; other options are its defaults."""


def network(name: str) -> Denoiser:
    """The network of this name, on the meta device."""
    kind, config = NETWORKS[name]
    with torch.device("meta"):
        return Denoiser(wrap_diffusers(diffusers_class(kind)(**config)), Cosine(), V())


def halved(student: Denoiser) -> int:
    """Bytes that a frozen copy of the network saves in bf16."""
    return castable_bytes(student.trainable_copy().freeze()) // 2


def full(student: Denoiser, *, half: bool = False, optimiser: str = "adamw", ema: int = 0) -> int:
    """Bytes of teacher, student, gradients, moments and average."""
    weights = size_of(tensors_of([student]))
    teacher = weights - halved(student) * half
    moments = optimiser_bytes(student, TrainingConfig(optimiser=optimiser))  # type: ignore[arg-type]
    return teacher + (2 + bool(ema)) * weights + moments


def lora(student: Denoiser, rank: int, *, half: bool = True) -> int:
    """Bytes of the base, of the last adapter, and of the new one with gradients and moments."""
    base = size_of(tensors_of([student])) - halved(student) * half
    return base + 20 * (lora_parameters(student, rank) or 0)


ROWS: dict[str, Callable[[Denoiser], int]] = {
    "all weights, `--ema 0.999`": lambda net: full(net, ema=1),
    "all weights": full,
    "`--precision bf16`": lambda net: full(net, half=True),
    "`--precision bf16 --optimiser adamw-8bit`": lambda net: full(
        net, half=True, optimiser="adamw-8bit"
    ),
    "`--lora-rank 64`": lambda net: lora(net, 64, half=False),
    "`--lora-rank 64 --precision bf16`": lambda net: lora(net, 64),
    "`--lora-rank 16 --precision bf16`": lambda net: lora(net, 16),
}
"""Bytes by option."""


def parameters(net: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in net.parameters())


def table() -> str:
    """The table as Markdown."""
    nets = {name: network(name) for name in NETWORKS}
    names = [f"{name}, {parameters(net):,}" for name, net in nets.items()]
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(nets)}"]
    for row, bytes_of in ROWS.items():
        cells = [
            f"{(size := bytes_of(net)) / 1e9:.1f} GB ({size / parameters(net):.1f})"
            for net in nets.values()
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
