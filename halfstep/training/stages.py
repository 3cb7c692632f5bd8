"""Run the stages of a method in a run folder, with all processes."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from torch import nn

from halfstep import storage
from halfstep.capacity import refuse_too_large
from halfstep.config import JsonObject
from halfstep.config.validate import CountOrNone, validate
from halfstep.data import Data
from halfstep.data.skipped import Skipped
from halfstep.errors import ConfigError
from halfstep.methods.stages import Stage, StagePlan
from halfstep.models.rebuild import refuse_wrapped
from halfstep.pipeline import Pipeline
from halfstep.pipeline.saving import split_defaults
from halfstep.rng import fork_rng
from halfstep.training.checks.teacher import with_first
from halfstep.training.config import TrainingConfig
from halfstep.training.distributed import Processes
from halfstep.training.gate_protocol import IdentifiedGate
from halfstep.training.loop import Loop, Prepare
from halfstep.training.progress import ProgressCallback
from halfstep.training.run_config import write_config
from halfstep.training.run_folder import RunFolder
from halfstep.training.sharding import placed_all
from halfstep.training.trackers import check_trackers, Trackers
from halfstep.training.trainable import Check, checked, identity_of
from halfstep.training.watch import Draw, Watch

ON_DEVICE = 2**31
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
    gradient_checkpointing: bool = False
    """Recompute the student's activations in the backward pass: the same bits in less memory."""
    offload: bool = False
    """Keep the teacher and the codec in the CPU's memory while they are not called."""
    shard: bool = False
    """Shard networks, gradients, optimiser and average over the processes."""
    callback: ProgressCallback = field(default_factory=ProgressCallback)
    """Shows the progress."""
    gate: Callable[[Pipeline], bool] | None = None
    """Called with each stage's student; False ends the run there.  See `IdentifiedGate`."""
    walks: Path | None = None
    """Folder of the teacher's kept walks, which may have some already; by default walks in the run's."""
    log: tuple[str, ...] = ()
    """Trackers beside metrics.jsonl: any of tensorboard, wandb, trackio."""
    samples_every: CountOrNone | None = None
    """Updates between pictures of the averaged student's samples in RUN/samples; 0 draws none.  By default as
    many as `save_every` with a tracker, else 0."""
    shared: JsonObject = field(default_factory=dict)
    """Values that all processes must have in common, such as the options of a command."""
    dry_run: Callable[[Iterator[Stage], Data, TrainingConfig, Processes], None] | None = None
    """Called with the stages instead of training them: nothing is written, and `DryRunFinished` is raised."""

    def __post_init__(self) -> None:
        names = (self.log,) if isinstance(self.log, str) else tuple(self.log)
        check_trackers(names)
        object.__setattr__(self, "log", names)
        validate("samples_every", self.samples_every, CountOrNone | None, 500)

    def samples_of(self, training: TrainingConfig, undrawn: str) -> int:
        """Updates between pictures of samples.

        undrawn  why no samples can be drawn; empty if they can
        """
        if undrawn and self.samples_every:
            raise ConfigError(f"{undrawn}: leave samples_every out (command line: --samples-every)")
        if undrawn or (self.samples_every is None and not self.log):
            return 0
        return training.save_every if self.samples_every is None else self.samples_every

    def validated_on(self, held_out: Data | None) -> "RunOptions":
        """The same options; all processes must have this held-out data.

        Args:
            held_out: the data, or None.
        """
        if held_out is None:
            return self
        return replace(self, shared={**self.shared, "held_out": held_out.fingerprint()[:16]})


class DryRunFinished(Exception):
    """Ends a rehearsal before the first write: nothing was refused."""


@fork_rng()
def run_stages(
    command: str,
    stages: Iterable[Stage],
    options: JsonObject,
    data: Data,
    out: Path | str,
    training: TrainingConfig,
    job: RunOptions,
    processes: Processes,
    *,
    plan: Sequence[StagePlan] = (),
    source: str | None = None,
    write: Callable[[Stage, Path], None],
    read: Callable[[Stage, Path], None],
    gate: Callable[[Stage], bool] = lambda stage: True,
    check: Check = refuse_wrapped,
    begin: Callable[[Path], None] = lambda folder: None,
    prepare: Prepare = lambda stage, callback, request: None,
    draw: Draw | None = None,
    undrawn: str = "",
) -> nn.Module:
    """Train these stages in the run folder `out`, and return the last student.

    options      what the stages depend on besides `training` and the data, for run.json
    plan         of the method, for run.json
    source       the name of the data, for config.toml, unless a command writes that
    write, read  save and load a stage's student
    gate         called after each stage; False ends the run
    check        refuses a student that could not be read again; before there is a folder, or its stage begins
    begin        called with the run's folder before the first stage, by the process that writes
    prepare      called before a stage's updates, by all processes
    draw         draws a stage's samples
    undrawn      why no samples can be drawn
    """
    with processes.together():
        if job.shard and not processes.sharded:
            raise ConfigError(
                f"'{command}' shards no networks: leave shard out (command line: --shard)"
            )
        resolved = {
            **options,
            **asdict(training),
            "data": data.fingerprint()[:16],
            "flip": data.flip,
            "samples_every": job.samples_of(training, undrawn),
        }
        if (augmentation := getattr(data, "augmentation", None)) is not None:
            resolved["augmentation"] = asdict(augmentation)
        # Typed options before the values derived from them: a difference is named by its cause.
        processes.compare({**_shared(job, command, out), **asdict(training), **resolved})
        refuse_batch(training, data, processes)
        trainable = checked(
            stages, data, training, processes, check,
            gradient_checkpointing=job.gradient_checkpointing, offloaded=job.offload,
        )  # fmt: skip
        identity, stages = _identified(trainable)
        resolved |= identity
        if job.dry_run is not None:
            if processes.sharded:
                raise ConfigError(
                    "a dry run measures whole networks, which may not fit here: leave --shard out; several "
                    "processes divide what it says of weights, gradients, optimiser and average"
                )
            RunFolder.check_begin(Path(out), command, resolved, plan=plan, extend=job.extend)
            job.dry_run(stages, data, training, processes)
            raise DryRunFinished
        skipped = getattr(data, "skipped", Skipped())
        with _opened(command, resolved, plan, source, skipped, out, job, processes) as run:
            processes.run_on_first(partial(begin, run.folder))
            callback = job.callback if processes.first else ProgressCallback()
            for note in run.notes:
                callback.note(note)
            small = data.to(processes.device) if data.nbytes < ON_DEVICE else data
            before = job.from_previous
            log = job.log if processes.first else ()
            trackers = Trackers(log, run.folder, run.id, resolved, callback.note)
            watch = Watch(
                run, processes, callback, trackers, resolved["samples_every"], draw,
                compiled=training.compile,
            )  # fmt: skip
            loop = Loop(
                run, small, training, processes, write, read, watch, callback, gate, before, prepare
            )
            with closing(watch):
                student = loop.train(stages)
            processes.wait()
    return student


@contextmanager
def _opened(
    command: str,
    options: JsonObject,
    plan: Sequence[StagePlan],
    source: str | None,
    skipped: Skipped,
    out: Path | str,
    job: RunOptions,
    processes: Processes,
) -> Iterator[RunFolder]:
    """The run's folder, opened by the first process, the only one that writes."""
    opened = list[RunFolder]()

    def begin() -> None:
        device = str(processes.device)
        run = RunFolder.begin(
            Path(out), command, options, plan=plan, device=device, processes=processes.world,
            extend=job.extend,
        )  # fmt: skip
        opened.append(run)
        if source is not None and not (run.folder / "config.toml").exists():
            write_config(run.folder, {"data": source})
        skipped.write(run.folder)

    processes.run_on_first(begin)
    run = opened[0] if opened else RunFolder(out)
    try:
        yield run
    finally:
        run.close()


def _shared(job: RunOptions, command: str, out: Path | str) -> JsonObject:
    """What all processes must have in common besides the options that run.json has."""
    gate = job.gate
    kind = None if gate is None else f"{type(gate).__module__}.{type(gate).__qualname__}"
    return {
        "dry_run": job.dry_run is not None,
        "command": command,
        "out": os.path.realpath(out),
        "device": job.device,
        "extend": job.extend,
        "from_previous": job.from_previous,
        "shard": job.shard,
        **job.shared,
        "gate": {"is": kind, **(gate.identity if isinstance(gate, IdentifiedGate) else {})},
    }


def refuse_batch(training: TrainingConfig, data: Data, processes: Processes) -> None:
    """`ConfigError` for a batch that cannot be divided, or is too large: its noise is drawn at once."""
    processes.share(training.batch_size)
    instead = "write a smaller one, and more --updates"
    refuse_too_large(
        f"a batch of {training.batch_size:,}", (training.batch_size, *data.shape), instead
    )


def _identified(stages: Iterator[Stage]) -> tuple[JsonObject, Iterator[Stage]]:
    """`identity_of` the first stage, which is made before there is a folder, and all stages."""
    first = next(stages, None)
    return ({}, iter(())) if first is None else (identity_of(first), with_first(first, stages))


def load_weights(module: nn.Module, stem: Path) -> None:
    """Load STEM.safetensors into a module."""
    tensors, _ = storage.load(stem)
    weights, _ = split_defaults(
        tensors
    )  # a pipeline's conditions of the empty text, which no network holds
    storage.load_into(module, placed_all(weights, module.state_dict()), f"'{stem}.safetensors'")
