"""Scores of a U-ViT's blocks: by how much a loss on the data rises without each pair."""

import torch
from torch import nn

from halfstep.data import Data
from halfstep.diffusion.denoiser import Denoiser
from halfstep.methods.base import Objective
from halfstep.models.compression.block_pruning import pair_scores, pairs_of
from halfstep.progress import Progress, SILENT
from halfstep.rng import Draw, key

ROWS, BATCH = 512, 64
"""Samples that blocks are scored on, and how many at a time."""


def scores(
    objective: Objective, denoiser: Denoiser, data: Data, *, progress: Progress = SILENT
) -> list[float]:
    """By how much the objective's loss rises without each pair of blocks, the outermost first.

    On up to 512 samples spread over the data, with the same noise for all.
    """
    device = next(denoiser.parameters()).device
    count = min(ROWS, len(data))
    parts = (torch.arange(count) * len(data) // count).split(BATCH)
    progress.expect(len(parts) * (1 + pairs_of(denoiser.net)))  # the network, and without each pair

    @torch.no_grad()
    def loss(net: nn.Module) -> float:
        student, total = _around(denoiser, net), 0.0
        for k, chosen in enumerate(parts):
            draw = Draw.all(torch.Generator(device).manual_seed(key(k * BATCH)), len(chosen))
            batch = data.training_batch(chosen, draw).to(device)
            total += float(objective(student, batch, draw).cpu().double().sum())
            progress.advance()
        return total / count

    return pair_scores(denoiser.net, loss)


def _around(denoiser: Denoiser, net: nn.Module) -> Denoiser:
    """The same denoiser with another network."""
    other = Denoiser(
        net,
        denoiser.schedule,
        denoiser.parameterisation,
        time=denoiser.time,
        autocast=denoiser.autocast,
    )
    return other.freeze()
