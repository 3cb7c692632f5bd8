"""Scores of a U-ViT's pairs of blocks: the rise of a loss on the data without each pair."""

import torch
from torch import nn

from halfstep.data import Data
from halfstep.diffusion.denoiser import Denoiser
from halfstep.methods.stages import Objective
from halfstep.models.compression.block_pruning import pair_scores, pairs_of
from halfstep.progress import Progress, SILENT
from halfstep.rng import Draw, key

ROWS, BATCH = 512, 64
"""The number of samples for scoring, and the batch size."""


def scores(
    objective: Objective, denoiser: Denoiser, data: Data, *, progress: Progress = SILENT
) -> list[float]:
    """The rise of the objective's loss without each pair of blocks, the outermost first.

    The loss is that of up to 512 samples spread over the data, with the same noise for all pairs.
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
    """The denoiser with another network, frozen."""
    schedule, reads = denoiser.schedule, denoiser.parameterisation
    return Denoiser(net, schedule, reads, time=denoiser.time, autocast=denoiser.autocast).freeze()
