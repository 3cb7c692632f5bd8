"""`--dry-run`: print the plan of a run, and its cost on this machine."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any

import torch
from rich.console import Console

from halfstep.cli.console.columns import Columns, print_wide
from halfstep.cli.console.progress import say, span
from halfstep.data import Data, NoData
from halfstep.methods.base import Stage
from halfstep.models.hooks import unwrap
from halfstep.models.lora import shared_weights
from halfstep.training import TrainingConfig
from halfstep.training.distributed import Processes
from halfstep.training.stages import DryRunFinished, RunOptions
from halfstep.workflows.dry_run import is_slow, seconds_per_update, training_bytes
from halfstep.workflows.run_options import run_options_of


def plan_only(console: Console, options: Any, work: Callable[[RunOptions], object]) -> int:
    """Start a run, with all its checks, print its plan, and stop before the first write."""
    plan = partial(print_plan, console)
    with suppress(DryRunFinished):
        work(run_options_of(options, dry_run=plan))
    return 0


def print_plan(
    console: Console,
    stages: Iterator[Stage],
    data: Data,
    training: TrainingConfig,
    processes: Processes,
) -> None:
    """Print stages, updates, memory and time."""
    first = next(stages)
    network = unwrap(first.student)
    slow = is_slow(network, processes.device)
    seconds, timed = seconds_per_update(first, data, training, processes.device)
    table = Columns("stage", "updates", "forwards", "time here")
    total = 0.0
    for stage in chain([first], stages):
        forwards = stage.objective.cost(stage.updates, training.batch_size)
        cost = forwards * seconds / (training.batch_size * first.objective.forwards)
        total += cost
        table.add_row(stage.name, f"{stage.updates:,}", f"{forwards:,}", span(cost))
    print_wide(console, table)
    parameters = sum(p.numel() for p in network.parameters())
    frozen = sum(p.numel() for p in shared_weights([network]))
    base = f" of a LoRA, and {frozen:,} of its base" if frozen else ""
    say(console, "network", f"{parameters:,} parameters{base}")
    count = "states of walks" if isinstance(data, NoData) else f"{len(data):,} samples"
    say(console, "data", f"{count} of shape {list(data.shape)}")
    size = training_bytes(first, training) / 2**20
    say(console, "memory", f"{size:,.1f} MiB of weights and optimiser, and activations")
    device = f"{processes.device}, {torch.get_num_threads()} threads"
    basis = f"an estimate from {timed} sample{'s' * (timed > 1)} at a time"
    basis += " in fp32; fp16 is far slower on a CPU" if slow else ""
    say(console, "time", f"about {span(total)} on {device}: {basis}")
