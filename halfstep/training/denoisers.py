"""Train a denoiser into a run folder, or distil one."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import ref

import torch
from torch import nn

from halfstep.code_identity import options_of
from halfstep.config.validate import validate
from halfstep.data import as_data, Data, DataLike
from halfstep.diffusion.denoiser import Denoiser, thaw
from halfstep.errors import ConfigError
from halfstep.identity import digest_of
from halfstep.methods import Denoising, METHODS
from halfstep.methods.base import Method, Stage, StagePlan
from halfstep.methods.diffusion.guided import at_any_scale
from halfstep.models.hooks import unwrap
from halfstep.models.rebuild import refuse_changed_net, refuse_wrapped
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress, SILENT
from halfstep.rng import fork_rng
from halfstep.training.api import load_weights, run_stages, RunOptions
from halfstep.training.checks.data import notes, read_by
from halfstep.training.checks.teacher import (
    checked_on_data,
    checked_on_start,
    DATA_DECIDE,
    with_first,
)
from halfstep.training.config import TrainingConfig
from halfstep.training.distributed import Processes
from halfstep.training.gate_protocol import GateConfig
from halfstep.training.run_folder import RunFolder
from halfstep.training.trainable import code_of_net

M = TypeVar("M", bound=Method)
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@fork_rng()
def train(
    pipeline: Pipeline,
    data: DataLike,
    out: Path | str,
    *,
    method: Denoising | None = None,
    training: TrainingConfig | None = None,
    job: RunOptions | None = None,
) -> Pipeline:
    """Train a teacher from data into the run folder `out`; returns it and leaves `pipeline` as it is.

    The same call again goes on where it stopped, to the bit, or returns what is finished.
    """
    method, work = method or Denoising(), _Work.on(pipeline, training, job)
    options = {**options_of(method), "start": digest_of(pipeline.denoiser)[:16]}
    stages = _begun(stages_to_train(method, pipeline, work.denoiser(pipeline).trainable_copy()))
    return work.run("train denoiser", stages, options, work.read(pipeline, data), out)


def distill(
    teacher: Pipeline,
    data: DataLike,
    out: Path | str,
    *,
    method: Method,
    training: TrainingConfig | None = None,
    gate: GateConfig | None = None,
    job: RunOptions | None = None,
) -> Pipeline:
    """Distil a teacher into the run folder `out`; returns the last student.

    The same call again goes on where it stopped, to the bit, or returns what is finished.

    gate  stops where it is no longer worth it, such as `halfstep.QualityGate()`: `RunFolder` has the best
          student and what the gate decided
    """
    method = validate("method", method, Method)
    method.check(teacher)
    verb = next((name for name, kind in METHODS.items() if type(method) is kind), "own")
    work = _Work.on(teacher, training, job)
    held: Data | None = None
    if method.needs_data:  # of all other methods the first stage is made before data are read
        held = work.read(teacher, data)
        method = resolve(method, teacher, held, out)
    options = {**options_of(method), "teacher": digest_of(teacher.denoiser)[:16]}
    plan = method.plan(teacher)
    with fork_rng(), _lent(teacher.denoiser.net):
        stages = _begun(stages_of(method, teacher, work.denoiser(teacher).freeze()))
        if held is None:
            held = work.read(teacher, data)
        if gate is not None:
            work = work.gated(gate, teacher, held, out, method)
        del teacher  # from the second stage on nobody needs it
        return work.run(f"distill {verb}", stages, options, held, out, plan)


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
    """`ConfigError` for a teacher that the method refuses, before data are read."""
    method.check(teacher)
    method = method.resolve(teacher, None)
    next(stages_of(method, teacher, copy(teacher.denoiser)))


def resolve(
    method: M,
    teacher: Pipeline,
    data: Data,
    out: Path | str | None = None,
    *,
    progress: Progress = SILENT,
) -> M:
    """The method with all options decided that it leaves to the data.

    out  the folder of the run: one that was begun keeps the options it was begun with
    """
    if not method.needs_data:
        return method
    method.check(teacher)
    run = None if out is None else RunFolder(out)
    previous = run.options if run is not None and run.exists else None
    return method.resolve(teacher, read_by(teacher, data), previous=previous, progress=progress)


def stages_to_train(method: Denoising, pipeline: Pipeline, denoiser: Denoiser) -> Iterator[Stage]:
    """The method's stage for this pipeline, whose `denoiser` is to be trained; refused where that does not
    take the pipeline's samples."""
    model = replace(pipeline, denoiser=denoiser)
    method.check(model)
    return checked_on_start(method.stages(model), pipeline, DATA_DECIDE)


def stages_of(method: Method, teacher: Pipeline, denoiser: Denoiser) -> Iterator[Stage]:
    """The method's stages for this teacher, whose `denoiser` is on its device by now.

    Students of one that takes its guidance scale as an input take it, too.
    """
    stages = method.stages(replace(teacher, denoiser=denoiser))
    if method.builds_student:
        stages = checked_on_start(stages, teacher)
    if (guidance_range := teacher.guidance_range) is None:
        return stages
    return (at_any_scale(stage, guidance_range) for stage in stages)


@dataclass(frozen=True)
class _Work:
    """What training and distilling a pipeline have in common; holds no weights."""

    around: Callable[..., Pipeline]
    """The pipeline around another denoiser."""
    about: Mapping[str, Any]
    training: TrainingConfig
    job: RunOptions
    processes: Processes

    @classmethod
    def on(
        cls, pipeline: Pipeline, training: TrainingConfig | None, job: RunOptions | None
    ) -> "_Work":
        refuse_wrapped(pipeline.denoiser)
        refuse_changed_net(pipeline.denoiser.net)
        training, job = training or TrainingConfig(), job or RunOptions()
        processes = Processes(job.device)  # before what one of them alone might refuse
        rest = {f.name: getattr(pipeline, f.name) for f in fields(pipeline) if f.name != "denoiser"}
        # Described before it is trained: what could not be saved is refused now.
        about = {**pipeline.describe(), **code_of_net(pipeline.denoiser.net)}
        return cls(partial(Pipeline, **rest), about, training, job, processes)

    def read(self, pipeline: Pipeline, data: DataLike) -> Data:
        """The data as the pipeline reads it."""
        found = read_by(pipeline, as_data(data, shape=pipeline.shape))
        for note in notes(pipeline, found) if self.processes.first else ():
            self.job.callback.note(note)
        return found

    def gated(
        self, gate: GateConfig, teacher: Pipeline, data: Data, out: Path | str, method: Method
    ) -> "_Work":
        """The same, with this gate bound to it."""
        if self.job.gate is not None:
            raise ConfigError("this run has two gates: give gate, or job=RunOptions(gate=...)")
        bound = gate.bind(
            teacher,
            data,
            out,
            method,
            device=self.job.device,
            tell=self.job.callback.note if self.processes.first else str,
            rehearse=self.job.rehearse is not None,
        )
        return replace(self, job=replace(self.job, gate=bound))

    def denoiser(self, pipeline: Pipeline) -> Denoiser:
        """The pipeline's, on the device and in the precision of this run; the same weights."""
        denoiser = copy(pipeline.to(self.processes.device).denoiser)
        denoiser.autocast = AUTOCAST[self.training.precision]
        return denoiser

    def pipeline(self, stage: Stage) -> Pipeline:
        """Around a stage's student, to be sampled on the stage's grid."""
        changed: dict[str, Any] = {}
        if stage.times:
            changed = {
                "times": (stage.times,),
                "sampler": stage.sampler,
                "direction": stage.direction,
            }
        if stage.guidance_range is not None:
            changed["guidance_range"] = stage.guidance_range
        return self.around(denoiser=unwrap(stage.student), **changed)

    def _ask(self, student: Pipeline) -> bool:
        """The gate sees a student as it will be loaded: in float32, whatever it was trained in."""
        if self.job.gate is None:
            return True
        denoiser = copy(student.denoiser)
        denoiser.autocast = None
        return self.job.gate(replace(student, denoiser=denoiser))

    def run(
        self,
        command: str,
        stages: Iterable[Stage],
        options: Mapping[str, Any],
        data: Data,
        out: Path | str,
        plan: Sequence[StagePlan] = (),
    ) -> Pipeline:
        last: list[Pipeline] = []

        def read(stage: Stage, folder: Path) -> None:
            load_weights(unwrap(stage.student), folder / "pipeline")
            last[:] = [self.pipeline(stage)]

        run_stages(
            command,
            checked_on_data(iter(stages), data, self.processes.device),
            {**options, "pipeline": dict(self.about)},
            data,
            out,
            self.training,
            self.job,
            self.processes,
            plan=plan,
            write=lambda stage, folder: self.pipeline(stage).save(folder),
            read=read,
            gate=lambda stage: self._ask(last[0]),
            check=lambda student: refuse_changed_net(student.net),  # type: ignore[arg-type]
        )
        last[0].denoiser.eval().autocast = None  # as it is when it is loaded
        return last[0]


def _begun(stages: Iterator[Stage]) -> Iterator[Stage]:
    """The same stages, the first one made now: what a method refuses is said before data are read."""
    first = next(stages, None)
    return iter(()) if first is None else with_first(first, stages)
