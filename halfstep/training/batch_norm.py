"""Update the batch-norm statistics of averaged weights: training leaves those of the last weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from halfstep.data import Data, NoData, rows as rows_of_update
from halfstep.methods.stages import Stage
from halfstep.models.eval_mode import evaluating, keeps_statistics
from halfstep.rng import Draw, fork_rng, key

BATCH, MOST = 64, 8_192
"""Samples in a forward, and at most in all: independent of micro-batch and number of processes."""
STREAM = 2**32 - 1
"""In place of a rank in the key: these draws are independent of those of training."""


@torch.no_grad()
def update_batch_norm(
    stage: Stage, data: Data, device: torch.device, *, seed: int, index: int
) -> None:
    """Recompute the batch-norm statistics of a trained student for its present weights.

    They are the mean over batches of data as training draws and noises them (Izmailov et al. 2018, section
    3.2), a function of (seed, index of the stage) and of the data.  Other layers are in eval mode; the
    statistics of frozen layers stay.
    """
    student: Any = stage.student
    layers = [part for part in student.modules() if keeps_statistics(part) and part.training]
    if not layers:
        return
    samples = MOST if isinstance(data, NoData) else min(len(data), MOST)
    objective, count = stage.objective.at(1.0), -(-samples // BATCH)
    with fork_rng(key(seed, index, 0, STREAM)), evaluating(student), _averaging(layers):
        for k in range(count):
            for layer in layers:
                # An instance norm takes None for 0; a batch norm that runs twice counts for itself.
                layer.momentum = None if isinstance(layer, _BatchNorm) else 1 / (k + 1)
            generator = torch.Generator(device).manual_seed(key(seed, index, k, STREAM))
            place = key(seed, index, 0, STREAM), index, k
            draw = Draw(generator, BATCH, slice(0, BATCH), place)
            chosen = rows_of_update(seed, index, k, BATCH, len(data))
            objective(student, data.training_batch(chosen, draw).to(device), draw)


@contextmanager
def _averaging(layers: list[Any]) -> Iterator[None]:
    """Reset the layers' statistics and put them into train mode; afterwards restore their momentum.

    One process computes alone, so a synchronised layer does not wait for the others.
    """
    before = [layer.momentum for layer in layers]
    alone = [layer for layer in layers if isinstance(layer, nn.SyncBatchNorm)]
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
    for layer in alone:
        layer.forward = MethodType(_BatchNorm.forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in alone:
            del layer.forward
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum = momentum
