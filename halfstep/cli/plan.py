"""`--dry-run`: what a run would do, and what it would cost here."""

import time
from collections.abc import Iterable
from itertools import chain

import torch
from rich.console import Console
from rich.table import Table

from halfstep.cli.progress import say, span
from halfstep.data import Data
from halfstep.methods.base import Stage
from halfstep.noise import Draw
from halfstep.training import Training
from halfstep.training.parallel import Processes

WARM_UP, TIMED = 1, 3


def print_plan(
    console: Console, stages: Iterable[Stage], data: Data, training: Training, device: str
) -> int:
    """Stages, updates, memory and time; trains nothing and writes nothing."""
    processes = Processes(device)
    steps = iter(stages)
    first = next(steps)
    seconds = _seconds_per_update(first, data, training, processes.device)
    table = Table("stage", "updates", "forwards", "time here", box=None)
    total = 0.0
    for stage in chain([first], steps):
        cost = stage.updates * seconds * stage.objective.forwards / first.objective.forwards
        total += cost
        forwards = stage.updates * training.batch * stage.objective.forwards
        table.add_row(stage.name, f"{stage.updates:,}", f"{forwards:,}", span(cost))
    console.print(table)
    parameters = sum(p.numel() for p in first.student.parameters())
    say(console, "network", f"{parameters:,} parameters")
    say(console, "data", f"{len(data):,} samples of shape {list(data.shape)}")
    size = _weights(first, training) / 2**20
    say(console, "memory", f"{size:,.1f} MiB of weights and optimiser, and activations")
    where = f"{processes.device}, {torch.get_num_threads()} threads"
    say(console, "time", f"about {span(total)} on {where}")
    return 0


def _seconds_per_update(
    stage: Stage, data: Data, training: Training, device: torch.device
) -> float:
    """Forward and backward of a micro-batch, timed, times the micro-batches of an update."""
    size = training.micro_batch or training.batch
    student = stage.student.to(device)
    for module in vars(stage.objective).values():
        if isinstance(module, torch.nn.Module):
            module.to(device)
    rows = torch.arange(size) % len(data)
    batch = data.batch(rows).to(device)
    took = []
    for k in range(WARM_UP + TIMED):
        generator = torch.Generator(device).manual_seed(k)
        began = time.perf_counter()
        stage.objective(student, batch, Draw.all(generator, size)).mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - began)
        student.zero_grad(set_to_none=True)
    return sorted(took[WARM_UP:])[TIMED // 2] * training.batch / size


def _weights(stage: Stage, training: Training) -> int:
    """Bytes: student, gradient, two moments, the average if there is one, and the teacher."""
    size = sum(p.numel() * p.element_size() for p in stage.student.parameters())
    teachers = [m for m in vars(stage.objective).values() if isinstance(m, torch.nn.Module)]
    return size * (4 + bool(training.ema)) + sum(
        p.numel() * p.element_size() for teacher in teachers for p in teacher.parameters()
    )
