"""A method, a pipeline, data and a folder: what the command line, the API and the demo call."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any
from weakref import ref

import torch
from torch import nn

from halfstep import storage
from halfstep.capacity import refuse_too_large
from halfstep.data import as_data, Data, Given
from halfstep.denoiser import Denoiser, thaw
from halfstep.identity import options_of
from halfstep.methods import Denoising, METHODS
from halfstep.methods.base import Method, Stage
from halfstep.methods.guided import at_any_scale
from halfstep.nets.rebuilt import refuse_changed_net, refuse_wrapped
from halfstep.nets.watched import bare
from halfstep.noise import untouched
from halfstep.pipeline import Pipeline
from halfstep.training.loop import Loop
from halfstep.training.parallel import Processes
from halfstep.training.reading import notes, read_by
from halfstep.training.run import refuse_folder, Run
from halfstep.training.settings import Training
from halfstep.training.settling import refuse_unsettled, settled
from halfstep.training.teachers import begun, DATA_DECIDE, refuse_students, tried, tried_on_data
from halfstep.training.trainable import Check, checked, code_of_net, identity_of
from halfstep.training.watch import Silent, Watch

NEARBY = 2**31
"""Bytes of data below which all of it is kept on the device."""
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Job:
    """How a run is carried out, apart from what it computes."""

    device: str = "auto"
    """auto (CUDA, then MPS, then CPU), or one by name."""
    extend: bool = False
    """Let this folder's run have more updates, or halve further."""
    from_previous: bool = False
    """Go on from the checkpoint before a damaged one."""
    watch: Watch = field(default_factory=Silent)
    """Whoever shows progress."""
    gate: Callable[[Pipeline], bool] | None = None
    """Shown each stage's student; False ends the run there."""
    alike: Mapping[str, Any] = field(default_factory=dict)
    """What else all processes of the run must have been given: the options of a command."""
    rehearse: Callable[[Iterator[Stage], Data, Training, Processes], None] | None = None
    """Shown the stages instead of their training: nothing is written, and `Rehearsed` is raised."""


class Rehearsed(Exception):
    """Ends a rehearsal where the run would begin to write: nothing was refused."""


@untouched()
def train(
    pipeline: Pipeline,
    data: Given,
    out: Path | str,
    *,
    method: Denoising | None = None,
    training: Training | None = None,
    job: Job | None = None,
) -> Pipeline:
    """Train a teacher from data into the run folder `out`; returns it and leaves `pipeline` as it is.

    The same call again goes on where it stopped, to the bit, or returns what is finished.
    """
    method, work = method or Denoising(), _Work.on(pipeline, training, job)
    options = {**options_of(method), "start": fingerprint(pipeline.denoiser)}
    stages = _begun(stages_to_train(method, pipeline, work.denoiser(pipeline).twin()))
    return work.carry_out("train denoiser", stages, options, work.read(pipeline, data), out)


def distill(
    teacher: Pipeline,
    data: Given,
    out: Path | str,
    *,
    method: Method,
    training: Training | None = None,
    job: Job | None = None,
) -> Pipeline:
    """Distil a teacher into the run folder `out`; returns the last student.

    The same call again goes on where it stopped, to the bit, or returns what is finished.
    """
    refuse_students(method, teacher)
    verb = next((name for name, kind in METHODS.items() if type(method) is kind), "own")
    work = _Work.on(teacher, training, job)
    held: Data | None = None
    if refuse_unsettled(method, teacher):  # all other methods are asked before data are read
        held = work.read(teacher, data)
        method = settled(method, teacher, held, out)
    options = {**options_of(method), "teacher": fingerprint(teacher.denoiser)}
    with untouched(), _lent(teacher.denoiser.net):
        stages = _begun(stages_of(method, teacher, work.denoiser(teacher).freeze()))
        if held is None:
            held = work.read(teacher, data)
        del teacher  # from the second stage on nobody needs it
        return work.carry_out(f"distill {verb}", stages, options, held, out)


@contextmanager
def _lent(net: nn.Module) -> Iterator[None]:
    """The teacher's network, which is frozen meanwhile: whatever of it could be trained can afterwards.

    Held by nobody here.
    """
    network, names = ref(net), [n for n, p in net.named_parameters() if p.requires_grad]
    del net
    try:
        yield
    finally:
        if names and (back := network()) is not None:
            thaw(back)


def refuse_teacher(method: Method, teacher: Pipeline) -> None:
    """`ConfigError` for what a method refuses of a teacher: asked before data are read."""
    refuse_students(method, teacher)
    if refuse_unsettled(method, teacher):
        method = replace(method, choose="even")  # type: ignore[type-var]  # a Shrink
    next(iter(stages_of(method, teacher, copy(teacher.denoiser))))


def stages_to_train(method: Denoising, pipeline: Pipeline, denoiser: Denoiser) -> Iterator[Stage]:
    """The method's stage for this pipeline, whose `denoiser` is to be trained; refused where that does not
    take the pipeline's samples."""
    return tried(method.stages(denoiser, pipeline.nothing), pipeline, DATA_DECIDE)


def stages_of(method: Method, teacher: Pipeline, denoiser: Denoiser) -> Iterator[Stage]:
    """The method's stages for this teacher, whose `denoiser` is on its device by now.

    Students of one that takes its guidance scale as an input take it, too.
    """
    refuse_students(method, teacher)
    made: Any = method.stages
    takes_null = "null" in signature(made).parameters
    stages: Iterator[Stage] = made(denoiser, teacher.nothing) if takes_null else made(denoiser)
    if getattr(method, "student", None) or getattr(method, "student_net", ""):
        stages = tried(stages, teacher)
    if (guidance := teacher.guidance) is None:
        return stages
    return (at_any_scale(stage, guidance) for stage in stages)


@dataclass(frozen=True)
class _Work:
    """What training and distilling a pipeline have in common; holds no weights."""

    around: Callable[..., Pipeline]
    """The pipeline around another denoiser."""
    about: Mapping[str, Any]
    training: Training
    job: Job
    processes: Processes

    @classmethod
    def on(cls, pipeline: Pipeline, training: Training | None, job: Job | None) -> "_Work":
        refuse_wrapped(pipeline.denoiser)
        refuse_changed_net(pipeline.denoiser.net)
        training, job = training or Training(), job or Job()
        processes = Processes(job.device)  # before what one of them alone might refuse
        rest = {f.name: getattr(pipeline, f.name) for f in fields(pipeline) if f.name != "denoiser"}
        # Described before it is trained: what could not be saved is refused now.
        about = {**pipeline.describe(), **code_of_net(pipeline.denoiser.net)}
        return cls(partial(Pipeline, **rest), about, training, job, processes)

    def read(self, pipeline: Pipeline, data: Given) -> Data:
        """The data as the pipeline reads it."""
        found = read_by(pipeline, as_data(data, shape=pipeline.shape))
        for note in notes(pipeline, found) if self.processes.first else ():
            self.job.watch.note(note)
        return found

    def denoiser(self, pipeline: Pipeline) -> Denoiser:
        """The pipeline's, on the device and in the precision of this run; the same weights."""
        denoiser = copy(pipeline.to(self.processes.device).denoiser)
        denoiser.autocast = AUTOCAST[self.training.precision]
        return denoiser

    def pipeline(self, stage: Stage) -> Pipeline:
        """Around a stage's student, to be sampled on the stage's grid."""
        changed: dict[str, Any] = {}
        if stage.times:
            changed = {"times": (stage.times,), "made_for": stage.made_for}
        if stage.guidance is not None:
            changed["guidance"] = stage.guidance
        return self.around(denoiser=bare(stage.student), **changed)

    def _ask(self, student: Pipeline) -> bool:
        """The gate sees a student as it will be loaded: in float32, whatever it was trained in."""
        if self.job.gate is None:
            return True
        denoiser = copy(student.denoiser)
        denoiser.autocast = None
        return self.job.gate(replace(student, denoiser=denoiser))

    def carry_out(
        self,
        command: str,
        stages: Iterable[Stage],
        options: Mapping[str, Any],
        data: Data,
        out: Path | str,
    ) -> Pipeline:
        last: list[Pipeline] = []

        def read(stage: Stage, folder: Path) -> None:
            load_weights(bare(stage.student), folder / "pipeline")
            last[:] = [self.pipeline(stage)]

        carried_through(
            command,
            tried_on_data(iter(stages), data, self.processes.device),
            {**options, "pipeline": dict(self.about)},
            data,
            out,
            self.training,
            self.job,
            self.processes,
            write=lambda stage, folder: self.pipeline(stage).save(folder),
            read=read,
            gate=lambda stage: self._ask(last[0]),
            check=lambda student: refuse_changed_net(student.net),  # type: ignore[arg-type]
        )
        last[0].denoiser.eval().autocast = None  # as it is when it is loaded
        return last[0]


@untouched()
def carried_through(
    command: str,
    stages: Iterable[Stage],
    options: Mapping[str, Any],
    data: Data,
    out: Path | str,
    training: Training,
    job: Job,
    processes: Processes,
    *,
    write: Callable[[Stage, Path], None],
    read: Callable[[Stage, Path], None],
    gate: Callable[[Stage], bool] = lambda stage: True,
    check: Check = refuse_wrapped,
) -> nn.Module:
    """Train these stages in the run folder `out`, and return the last student.

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
            refuse_folder(Path(out), command, asked, extend=job.extend)
            job.rehearse(stages, data, training, processes)
            raise Rehearsed
        with _opened(command, asked, out, job, processes) as run:
            watch = job.watch if processes.first else Silent()
            for note in run.notes:
                watch.note(note)
            nearby, before = _nearby(data, processes.device), job.from_previous
            loop = Loop(run, nearby, training, processes, write, read, watch, gate, before)
            student = loop.train(stages)
            processes.wait()
    return student


@contextmanager
def _opened(
    command: str, asked: Mapping[str, Any], out: Path | str, job: Job, processes: Processes
) -> Iterator[Run]:
    """The run's folder, which the first process opens, the only one that writes."""
    opened = list[Run]()

    def take() -> None:
        device = str(processes.device)
        run = Run.open(
            Path(out), command, asked, device=device, processes=processes.world, extend=job.extend
        )
        opened.append(run)

    processes.first_says(take)
    run = opened[0] if opened else Run(Path(out), None, [])
    try:
        yield run
    finally:
        run.close()


GATES = ("tolerance", "until", "samples", "most", "full", "about")
"""What a gate answers by, where it says so."""


def _of_all(job: Job, command: str, out: Path | str) -> dict[str, Any]:
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
        "gate": {
            "is": kind,
            **{name: getattr(gate, name) for name in GATES if hasattr(gate, name)},
        },
    }


def refuse_batch(training: Training, data: Data, processes: Processes) -> None:
    """`ConfigError` for a batch that cannot be divided, or held: noise is drawn for all of it at once."""
    processes.share(training.batch)
    instead = "write a smaller one, and more --updates"
    refuse_too_large(f"a batch of {training.batch:,}", (training.batch, *data.shape), instead)


def _begun(stages: Iterator[Stage]) -> Iterator[Stage]:
    """The same stages, the first one made now: what a method refuses is said before data are read."""
    first = next(stages, None)
    return iter(()) if first is None else begun(first, stages)


def _identified(stages: Iterator[Stage]) -> tuple[dict[str, Any], Iterator[Stage]]:
    """`identity_of` the first stage, made now, and all of them: what is refused leaves no folder behind."""
    first = next(stages, None)
    return ({}, iter(())) if first is None else (identity_of(first), begun(first, stages))


def load_weights(module: nn.Module, stem: Path) -> None:
    tensors, _ = storage.load(stem)
    tensors.pop("empty", None)  # a pipeline's states of the empty text, which no network holds
    storage.load_into(module, tensors, f"'{stem}.safetensors'")


def fingerprint(module: nn.Module) -> str:
    """A short name for these weights: the same weights, the same name."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def _nearby(data: Data, device: torch.device) -> Data:
    """On the device if it is small there; else rows travel as they are needed."""
    return data.to(device) if data.nbytes < NEARBY else data
