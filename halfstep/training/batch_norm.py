"""Running statistics of averaged weights, taken anew: those that training leaves are the last weights'."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from halfstep.data import Data, rows as rows_of_update
from halfstep.methods.base import Stage
from halfstep.models.eval_mode import evaluating, keeps_statistics
from halfstep.rng import Draw, fork_rng, key

AT_ONCE, MOST = 64, 8_192
"""Samples to a forward, and of all of the data: whatever the micro-batch, and however many processes."""
APART = 2**32 - 1
"""Keeps these draws apart from those of training, where a rank stands."""


@torch.no_grad()
def take_anew(stage: Stage, data: Data, device: torch.device, *, seed: int, index: int) -> None:
    """Give a trained student's batch norms the statistics of the weights that it has now.

    The mean over batches of data as training draws and noises them (Izmailov et al. 2018, section 3.2), a
    function of (seed, index of the stage) and of the data.  All else is in eval mode, as when it is used;
    frozen layers' statistics stay.
    """
    student: Any = stage.student
    layers = [part for part in student.modules() if keeps_statistics(part) and part.training]
    if not layers:
        return
    objective, count = stage.objective.at(1.0), -(-min(len(data), MOST) // AT_ONCE)
    with fork_rng(key(seed, index, 0, APART)), evaluating(student), _averaging(layers):
        for k in range(count):
            for layer in layers:
                # An instance norm takes None for 0; a batch norm that runs twice counts for itself.
                layer.momentum = None if isinstance(layer, _BatchNorm) else 1 / (k + 1)
            generator = torch.Generator(device).manual_seed(key(seed, index, k, APART))
            draw = Draw.all(generator, AT_ONCE)
            chosen = rows_of_update(seed, index, k, AT_ONCE, len(data))
            objective(student, data.training_batch(chosen, draw).to(device), draw)


@contextmanager
def _averaging(layers: list[Any]) -> Iterator[None]:
    """These layers, with no statistics yet, in train mode; afterwards with the momentum that they had.

    One process does it alone, so a layer that asks the others does not.
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
