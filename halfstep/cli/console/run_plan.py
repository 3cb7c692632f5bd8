"""`--dry-run`: print the plan of a run, and its cost on this machine."""

from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from rich.console import Console

from halfstep.cli.console.columns import Columns, print_wide
from halfstep.cli.console.progress import say, span, too_long
from halfstep.config.fields import flat
from halfstep.data import Data, NoData
from halfstep.methods.diffusion.kept_walks import FromWalks
from halfstep.methods.stages import Stage
from halfstep.models.hooks import unwrap
from halfstep.models.lora import shared_weights
from halfstep.training import TrainingConfig
from halfstep.training.distributed import Processes
from halfstep.training.stages import DryRunFinished, RunOptions
from halfstep.workflows.dry_run import is_slow, seconds_per_update
from halfstep.workflows.memory_plan import memory_plan, MemoryPlan
from halfstep.workflows.run_options import run_options_of


def plan_only(console: Console, options: Any, work: Callable[[RunOptions], object]) -> int:
    """Start a run, with all its checks, print its plan, and stop before the first write."""
    values = flat(options)
    plan = partial(print_plan, console, offloaded=bool(values.get("offload")), known=values)
    with suppress(DryRunFinished):
        work(run_options_of(options, dry_run=plan))
    return 0


def print_plan(
    console: Console,
    stages: Iterator[Stage],
    data: Data,
    training: TrainingConfig,
    processes: Processes,
    *,
    offloaded: bool = False,
    known: Container[str] = (),
) -> None:
    """Print the plan of a run: stages, updates, memory and time.

    known  names of the command's options: no other's saving is told
    """
    first = next(stages)
    network = unwrap(first.student)
    slow = is_slow(network, processes.device)
    seconds, timed = seconds_per_update(
        first, data, training, processes.device, offloaded=offloaded
    )
    micro = training.micro_batch_size or training.batch_size // processes.world
    memory = memory_plan(
        first, data, training, processes.device, micro_batch=micro, offloaded=offloaded
    )
    table = Columns("stage", "updates", "forwards", "time here")
    total, updates, walks, size = 0.0, list[int](), 0, 0
    for stage in chain([first], stages):
        forwards = stage.objective.cost(stage.updates, training.batch_size)
        cost = forwards * seconds / (training.batch_size * first.objective.forwards)
        total += cost
        updates.append(stage.updates)
        if isinstance(kept := stage.objective.inner, FromWalks):
            walks, size = walks + kept.made, size + kept.source.disk(kept.made, data)
            price = f"{kept.source.forwards} forwards each by {kept.source.solver}"
        del kept
        table.add_row(stage.name, f"{stage.updates:,}", f"{forwards:,}", span(cost))
    print_wide(console, table)
    parameters = sum(p.numel() for p in network.parameters())
    frozen = sum(p.numel() for p in shared_weights([network]))
    base = f" of a LoRA, and {frozen:,} of its base" if frozen else ""
    say(console, "network", f"{parameters:,} parameters{base}")
    count = "states of walks" if isinstance(data, NoData) else f"{len(data):,} samples"
    say(console, "data", f"{count} of shape {list(data.shape)}")
    if walks:
        say(console, "walks", f"{walks:,} of the teacher, {price}, {in_bytes(size)} on the disk")
    device = f"{processes.device}, {torch.get_num_threads()} threads"
    basis = f"an estimate from {timed} sample{'s' * (timed > 1)} at a time"
    basis += " in bf16; fp16 is far slower on a CPU" if slow else ""
    say(console, "time", f"about {span(total)} on {device}: {basis}")
    if warning := too_long(total, updates[0] if len(updates) == 1 else 0):
        say(console, "note", warning)
    savings = [pair for pair in memory.savings if _field(pair[0]) in known]
    print_memory(console, replace(memory, savings=tuple(savings)), micro)


def _field(option: str) -> str:
    """The field of an option, such as ema of --ema 0."""
    return option.split()[0].removeprefix("--").replace("-", "_")


def print_memory(console: Console, plan: MemoryPlan, micro_batch: int) -> None:
    """Print the memory of a run by part, and what options would save."""
    samples = f"{micro_batch} sample{'s' * (micro_batch > 1)} at a time"
    say(console, "memory", f"{in_bytes(plan.peak)} at the peak, {samples}")
    table = Columns("  part", "memory")
    for name, size in plan.parts.items():
        if size:
            table.add_row(f"  {name}", in_bytes(size))
    if plan.start > plan.peak:
        table.add_row("  start, in the CPU's memory", in_bytes(plan.start))
    if plan.elsewhere:
        table.add_row("  teacher, in the CPU's memory", in_bytes(plan.elsewhere))
    print_wide(console, table)
    if plan.savings:
        table = Columns("  option, alone", "saves")
        for option, size in plan.savings:
            table.add_row(f"  {option}", in_bytes(size))
        print_wide(console, table)


def in_bytes(size: int) -> str:
    """A size in GB of 10^9 bytes, or smaller units: 12.3 GB, 512 MB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            value = size / factor
            return f"{value:,.{0 if value >= 100 else 1}f} {unit}"
    return f"{size / 1000:,.1f} kB"
