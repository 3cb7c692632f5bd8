"""`--dry-run`: what a run would do, and what it would cost here."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from statistics import median
from typing import Any

import torch
from rich.console import Console

from halfstep.cli.console.columns import Columns, print_wide
from halfstep.cli.console.progress import say, span
from halfstep.cli.console.run_lines import job_of
from halfstep.data import Data
from halfstep.methods.base import Stage
from halfstep.models.hooks import bare
from halfstep.rng import Draw
from halfstep.training import TrainingConfig
from halfstep.training.api import Rehearsed, RunOptions
from halfstep.training.distributed import Processes

FIRST, TIMED = 2, 3
"""Samples of the first pass, and passes whose median counts."""
PATIENCE, LONG = 2.0, 8.0
"""Seconds that timing takes after the first pass; and those of a first pass that are believed."""


def rehearse(console: Console, options: Any, work: Callable[[RunOptions], object]) -> int:
    """`work`, a run, up to where it would write: what it refuses is refused, and its plan is printed."""
    plan = partial(print_plan, console)
    with suppress(Rehearsed):
        work(job_of(options, rehearse=plan))
    return 0


def print_plan(
    console: Console,
    stages: Iterator[Stage],
    data: Data,
    training: TrainingConfig,
    processes: Processes,
) -> None:
    """Stages, updates, memory and time; trains nothing."""
    first = next(stages)
    network = bare(first.student)
    slow = _slow(network, processes.device)
    seconds, timed = _seconds_per_update(first, data, training, processes.device)
    table = Columns("stage", "updates", "forwards", "time here")
    total = 0.0
    for stage in chain([first], stages):
        cost = stage.updates * seconds * stage.objective.forwards / first.objective.forwards
        total += cost
        forwards = stage.updates * training.batch_size * stage.objective.forwards
        table.add_row(stage.name, f"{stage.updates:,}", f"{forwards:,}", span(cost))
    print_wide(console, table)
    parameters = sum(p.numel() for p in network.parameters())
    say(console, "network", f"{parameters:,} parameters")
    say(console, "data", f"{len(data):,} samples of shape {list(data.shape)}")
    size = _weights(first, training) / 2**20
    say(console, "memory", f"{size:,.1f} MiB of weights and optimiser, and activations")
    place = f"{processes.device}, {torch.get_num_threads()} threads"
    how = f"an estimate from {timed} sample{'s' * (timed > 1)} at a time"
    how += " in fp32; fp16 is far slower on a CPU" if slow else ""
    say(console, "time", f"about {span(total)} on {place}: {how}")


def _seconds_per_update(
    stage: Stage, data: Data, training: TrainingConfig, device: torch.device
) -> tuple[float, int]:
    """Seconds of an update, and of how many samples at a time they were found: forward and backward of
    as many as take a moment, at most a micro-batch, times the samples of an update."""
    size = training.micro_batch_size or training.batch_size
    student = stage.student
    for module in (student, *stage.objective.networks):
        _in_fp32(bare(module.to(device)), device)

    def timed(count: int) -> float:
        batch = data.batch(torch.arange(count) % len(data)).to(device)
        generator = torch.Generator(device).manual_seed(count)
        began = time.perf_counter()
        stage.objective(student, batch, Draw.all(generator, count)).mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        student.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    count, seconds = probed(timed, size)
    return seconds / count * training.batch_size, count


def _in_fp32(module: torch.nn.Module, device: torch.device) -> None:
    """A CPU takes many times as long in fp16, too long to be timed with a large network."""
    if _slow(module, device):
        module.autocast = None  # type: ignore[assignment]  # not a module


def _slow(module: torch.nn.Module, device: torch.device) -> bool:
    return device.type == "cpu" and getattr(module, "autocast", None) is torch.float16


def probed(timed: Callable[[int], float], most: int) -> tuple[int, float]:
    """How many samples were timed at once, and the seconds that they took: more and more of them, up to
    `most`, while there is time; a first pass that is long decides by itself."""
    count = min(FIRST, most)
    took = timed(count)  # which also chooses kernels: a short one is not believed
    if took > LONG:
        return count, took
    again = [timed(count)]
    spent = again[0]
    while count < most and spent + 4 * again[0] < PATIENCE:
        count = min(2 * count, most)
        again = [timed(count)]
        spent += again[0]
    while len(again) < TIMED and spent + again[0] < PATIENCE:
        again.append(timed(count))
        spent += again[-1]
    return count, median(again)


def _weights(stage: Stage, training: TrainingConfig) -> int:
    """Bytes: student, gradient, two moments, the average if there is one, and the teacher."""
    size = sum(p.numel() * p.element_size() for p in stage.student.parameters())
    return size * (4 + bool(training.ema)) + sum(
        p.numel() * p.element_size()
        for teacher in stage.objective.networks
        for p in teacher.parameters()
    )
