"""A run: stages, options, data and a folder, carried out as a job says, by all its processes."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halfstep import storage
from halfstep.capacity import refuse_too_large
from halfstep.data import Data
from halfstep.methods.base import Stage, StagePlan
from halfstep.models.rebuild import refuse_wrapped
from halfstep.pipeline import Pipeline
from halfstep.rng import fork_rng
from halfstep.training.checks.teacher import with_first
from halfstep.training.config import TrainingConfig
from halfstep.training.distributed import Processes
from halfstep.training.gate_protocol import IdentifiedGate
from halfstep.training.loop import Loop
from halfstep.training.progress import ProgressCallback
from halfstep.training.run_folder import RunFolder
from halfstep.training.trainable import Check, checked, identity_of

NEARBY = 2**31
"""Bytes of data below which all of it is kept on the device."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out, apart from what it computes."""

    device: str = "auto"
    """auto (CUDA, then MPS, then CPU), or one by name."""
    extend: bool = False
    """Let this folder's run have more updates, or halve further."""
    from_previous: bool = False
    """Go on from the checkpoint before a damaged one."""
    callback: ProgressCallback = field(default_factory=ProgressCallback)
    """Whoever shows progress."""
    gate: Callable[[Pipeline], bool] | None = None
    """Called with each stage's student; False ends the run there.  See `IdentifiedGate`."""
    alike: Mapping[str, Any] = field(default_factory=dict)
    """What else all processes of the run must have been given: the options of a command."""
    rehearse: Callable[[Iterator[Stage], Data, TrainingConfig, Processes], None] | None = None
    """Shown the stages instead of their training: nothing is written, and `Rehearsed` is raised."""

    def validated_on(self, held_out: Data | None) -> "RunOptions":
        """The same, of processes that must have this held-out data alike."""
        if held_out is None:
            return self
        return replace(self, alike={**self.alike, "held_out": held_out.fingerprint()[:16]})


class Rehearsed(Exception):
    """Ends a rehearsal where the run would begin to write: nothing was refused."""


@fork_rng()
def run_stages(
    command: str,
    stages: Iterable[Stage],
    options: Mapping[str, Any],
    data: Data,
    out: Path | str,
    training: TrainingConfig,
    job: RunOptions,
    processes: Processes,
    *,
    plan: Sequence[StagePlan] = (),
    write: Callable[[Stage, Path], None],
    read: Callable[[Stage, Path], None],
    gate: Callable[[Stage], bool] = lambda stage: True,
    check: Check = refuse_wrapped,
) -> nn.Module:
    """Train these stages in the run folder `out`, and return the last student.

    plan         of the method, which run.json has
    write, read  how one lies on disk
    gate         asked after each whether to go on
    check        refuses a student that could not be read again; before there is a folder, or its stage begins
    """
    with processes.together():
        asked = {**options, **asdict(training), "data": data.fingerprint()[:16], "flip": data.flip}
        if (augmentation := getattr(data, "augmentation", None)) is not None:
            asked["augmentation"] = asdict(augmentation)
        # What was typed first, then what came of it: a difference is named by its cause.
        processes.agreed({**_of_all(job, command, out), **asdict(training), **asked})
        refuse_batch(training, data, processes)
        own, stages = _identified(checked(stages, data, training, processes, check))
        asked |= own
        if job.rehearse is not None:
            RunFolder.check_begin(Path(out), command, asked, extend=job.extend)
            job.rehearse(stages, data, training, processes)
            raise Rehearsed
        with _opened(command, asked, plan, out, job, processes) as run:
            callback = job.callback if processes.first else ProgressCallback()
            for note in run.notes:
                callback.note(note)
            nearby, before = _nearby(data, processes.device), job.from_previous
            loop = Loop(run, nearby, training, processes, write, read, callback, gate, before)
            student = loop.train(stages)
            processes.wait()
    return student


@contextmanager
def _opened(
    command: str,
    asked: Mapping[str, Any],
    plan: Sequence[StagePlan],
    out: Path | str,
    job: RunOptions,
    processes: Processes,
) -> Iterator[RunFolder]:
    """The run's folder, which the first process opens, the only one that writes."""
    opened = list[RunFolder]()

    def take() -> None:
        device = str(processes.device)
        run = RunFolder.begin(
            Path(out), command, asked, plan=plan, device=device, processes=processes.world,
            extend=job.extend,
        )  # fmt: skip
        opened.append(run)

    processes.first_says(take)
    run = opened[0] if opened else RunFolder(out)
    try:
        yield run
    finally:
        run.close()


def _of_all(job: RunOptions, command: str, out: Path | str) -> dict[str, Any]:
    """What all processes of a run must have been given alike besides what it computes."""
    gate = job.gate
    kind = None if gate is None else f"{type(gate).__module__}.{type(gate).__qualname__}"
    return {
        "dry_run": job.rehearse is not None,
        "command": command,
        "out": os.path.realpath(out),
        "device": job.device,
        "extend": job.extend,
        "from_previous": job.from_previous,
        **job.alike,
        "gate": {"is": kind, **(gate.identity if isinstance(gate, IdentifiedGate) else {})},
    }


def refuse_batch(training: TrainingConfig, data: Data, processes: Processes) -> None:
    """`ConfigError` for a batch that cannot be divided, or held: noise is drawn for all of it at once."""
    processes.share(training.batch_size)
    instead = "write a smaller one, and more --updates"
    refuse_too_large(
        f"a batch of {training.batch_size:,}", (training.batch_size, *data.shape), instead
    )


def _identified(stages: Iterator[Stage]) -> tuple[dict[str, Any], Iterator[Stage]]:
    """`identity_of` the first stage, made now, and all of them: what is refused leaves no folder behind."""
    first = next(stages, None)
    return ({}, iter(())) if first is None else (identity_of(first), with_first(first, stages))


def load_weights(module: nn.Module, stem: Path) -> None:
    tensors, _ = storage.load(stem)
    tensors.pop("empty", None)  # a pipeline's states of the empty text, which no network holds
    storage.load_into(module, tensors, f"'{stem}.safetensors'")


def _nearby(data: Data, device: torch.device) -> Data:
    """On the device if it is small there; else rows travel as they are needed."""
    return data.to(device) if data.nbytes < NEARBY else data
