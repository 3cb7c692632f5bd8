"""One optimiser update: whole batch or micro-batches, one process or many."""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import nn, Tensor

from halfstep.data import Data, rows as rows_of_update
from halfstep.errors import ConfigError
from halfstep.methods.stages import Objective
from halfstep.rng import Draw, key
from halfstep.training.checkpoint import State
from halfstep.training.config import TrainingConfig
from halfstep.training.distributed import Processes
from halfstep.training.sharding import full


def update(
    objective: Objective,
    student: nn.Module,
    state: State,
    data: Data,
    *,
    settings: TrainingConfig,
    processes: Processes,
    stage: int,
    rate: float,
) -> tuple[Tensor, Tensor]:
    """This process's summed loss over the whole batch size (times processes), and the gradient's norm."""
    share = processes.share(settings.batch_size)
    chosen = rows_of_update(settings.seed, stage, state.update, settings.batch_size, len(data))
    slices = list(micro_batches(share, settings.micro_batch_size))
    losses = list[Tensor]()
    for k, rows in enumerate(slices):
        # For dropout; the 1 makes the key differ from that of the draws.
        torch.manual_seed(key(settings.seed, stage, state.update, 1 + processes.rank, k))
        generator = torch.Generator(processes.device)
        generator.manual_seed(key(settings.seed, stage, state.update))
        place = settings.seed, stage, state.update
        draw = Draw(generator, settings.batch_size, rows, place)
        batch = data.training_batch(chosen[rows], draw).to(processes.device)
        last = k == len(slices) - 1
        with nullcontext() if last else processes.unsynced(student):
            # DDP averages over the processes: the share of the whole batch's mean is multiplied by world.
            loss = objective(student, batch, draw)
            refuse_other_shape(loss, len(batch.x0))
            part = loss.sum() / settings.batch_size * processes.world
            (part if state.scaler is None else state.scaler.scale(part)).backward()
        losses.append(part.detach())
    return torch.stack(losses).sum(), step(student, state, settings, rate)


def refuse_other_shape(loss: Tensor, size: int) -> None:
    """`ConfigError` unless an objective returned one loss a sample."""
    if loss.shape != (size,):
        raise ConfigError(
            f"the objective returned a loss of shape {list(loss.shape)} for a batch of {size}: return one "
            f"loss a sample, shape [{size}]"
        )


def step(student: nn.Module, state: State, settings: TrainingConfig, rate: float) -> Tensor:
    """Clip the gradient, update the weights and their average; returns the norm, still on the device."""
    optimiser, scaler = state.optimiser, state.scaler
    if scaler is not None:
        scaler.unscale_(optimiser)  # type: ignore[arg-type]  # it has what a scaler reads
    every = list(student.parameters())  # once: of a small network the walk takes a while
    parameters = [p for p in every if p.grad is not None]
    norm = full(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if settings.max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, settings.max_grad_norm, norm)
    optimiser.set_rate(rate)
    if scaler is None:
        optimiser.step()
    else:
        scaler.step(optimiser)  # type: ignore[arg-type]
        scaler.update()
    optimiser.zero_grad()
    if state.average is not None:
        state.average.follow(every, state.update)
    return norm


def micro_batches(share: slice, size: int) -> Iterator[slice]:
    """The share in slices of `size` rows; 0 is one slice.  The last may be smaller."""
    size = size or share.stop - share.start
    for low in range(share.start, share.stop, size):
        yield slice(low, min(low + size, share.stop))
