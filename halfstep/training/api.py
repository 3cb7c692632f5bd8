"""Train a denoiser into a run folder, or distil one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import ref

import torch
from torch import nn

from halfstep.code_identity import options_of
from halfstep.config import JsonObject
from halfstep.config.validate import validate
from halfstep.data import as_data, Data, DataLike, NoData, spec_of
from halfstep.data.no_data import NO_DATA
from halfstep.diffusion.denoiser import Denoiser, thaw
from halfstep.diffusion.samplers import SCHEDULER
from halfstep.diffusion.schedules import Schedule
from halfstep.errors import ConfigError
from halfstep.identity import digest_of
from halfstep.methods import Denoising, METHODS
from halfstep.methods.base import Method
from halfstep.methods.default_updates import default_updates, number_of, PAPER
from halfstep.methods.diffusion.guided import at_any_scale
from halfstep.methods.diffusion.walks import without_data
from halfstep.methods.stages import Stage, StagePlan
from halfstep.models.half_storage import on_same_weights, store_frozen
from halfstep.models.hooks import unwrap
from halfstep.models.lora import Lora, plain_denoiser
from halfstep.models.rebuild import refuse_changed_net, refuse_wrapped
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import digest_of_defaults
from halfstep.pipeline.lora_base import digest_of_float32
from halfstep.progress import Progress, SILENT
from halfstep.rng import fork_rng
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
from halfstep.training.kept_walks import WalkKeeper
from halfstep.training.loop import Prepare
from halfstep.training.lora_run import check_lora, LoraRun, refuse_half
from halfstep.training.prompts import walks_for
from halfstep.training.run_folder import RunFolder
from halfstep.training.run_repair import WALKS
from halfstep.training.sample_grid import SampleGrid, why_undrawn
from halfstep.training.sharding import refuse_settings, whole_copy
from halfstep.training.stages import load_weights, run_stages, RunOptions
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

    Args:
        pipeline: a fresh pipeline, or one to train further.
        data: data, images [N, C, H, W] or samples [N, ...] of the pipeline's shape; or a name or place as
            of `load_data`.
        out: the run's folder.
        method: the weights of the loss and the number of updates; by default `Denoising()`.
        training: optimiser, batch, averaging and checkpoints; by default `TrainingConfig()`.
        job: device, memory and progress.

    Raises:
        ConfigError: options, data and network do not go together, or the folder holds another run.
        DataError: data that cannot be read.
        NonFinite: the loss is nan or infinite.
        Stopped: Ctrl-C or SIGTERM; the run is saved.
    """
    pipeline = _merged(pipeline)
    method, run = method or Denoising(), _PipelineRun.on(pipeline, training, job)
    options = {**options_of(method), "start": digest_of(pipeline.denoiser)[:16]}
    stages = stages_to_train(method, pipeline, run.denoiser(pipeline).trainable_copy())
    stages = _with_first_made(stages)
    read = run.read(pipeline, data, out)
    return run.train("train denoiser", stages, options, read, out, source=spec_of(data))


def distill(
    teacher: Pipeline,
    data: DataLike,
    out: Path | str,
    *,
    method: Method,
    training: TrainingConfig | None = None,
    gate: GateConfig | None = None,
    lora: Lora | None = None,
    job: RunOptions | None = None,
) -> Pipeline:
    """Distil a teacher into the run folder `out`; returns the last student.

    The same call again goes on where it stopped, to the bit, or returns what is finished.

    Args:
        teacher: the pipeline to distil; its network is frozen.
        data: data, images [N, C, H, W] or samples [N, ...] of the teacher's shape; a name or place as of
            `load_data`; or "none", and `NoData`, for walks from noise.
        out: the run's folder.
        method: the distillation, such as `Progressive()`; the data decide the updates that it leaves open.
        training: optimiser, batch, averaging and checkpoints; by default `TrainingConfig()`.
        gate: ends the run when a student is too much worse, such as `QualityGate()`: `RunFolder` has the
            best student and the gate's decisions.
        lora: trains an adapter of the teacher's network in place of all weights, which are in memory
            once. Stages in `out` hold the adapter alone; loaded, or saved elsewhere, a student is merged.
            With precision bf16 or fp16 the student that is returned keeps its base in that dtype.
        job: device, memory and progress.

    Raises:
        ConfigError: a teacher that the method cannot distil, data that do not fit, or a folder of another
            run.
        DataError: data that cannot be read.
        CheckpointError: a damaged checkpoint of the run.
        NonFinite: the loss is nan or infinite.
        Stopped: Ctrl-C or SIGTERM; the run is saved.
    """
    method, teacher = validate("method", method, Method), _merged(teacher)
    lora = validate("lora", lora, Lora | None)
    method.check(teacher)
    if is_no_data(data):
        method.check_without_data(walker_of(data))
    verb = next((name for name, kind in METHODS.items() if type(method) is kind), "own")
    run = _PipelineRun.on(teacher, training, job)
    refuse_half(teacher, run.autocast, lora)
    read: Data | None = None
    is_open = method.sized(teacher, PAPER) != method
    if method.needs_data or is_open:  # other methods make the first stage before data are read
        read = run.read(teacher, data, out)
        method = sized(method, teacher, read, run.training.batch_size)
        method = resolve(method, teacher, read, out)
    digest = digest_of_float32(teacher)
    options = {**options_of(method), "teacher": digest[:16]}
    if lora is not None:
        check_lora(method, teacher)
        options["lora_rank"] = lora.rank
        run = replace(run, lora=LoraRun(lora, digest))
    plan = method.plan(teacher)
    with fork_rng(), _frozen(teacher.denoiser.net):
        stages = _with_first_made(stages_of(method, teacher, run.teacher(teacher)))
        if read is None:
            read = run.read(teacher, data, out)
        if gate is not None:
            run = run.gated(gate, teacher, read, out, method)
        begin = partial(run.lora.begin, [teacher]) if run.lora else _nothing
        stages = without_data(stages, read) if isinstance(read, NoData) else stages
        keeper = run.keeper(teacher, read, out)
        del teacher  # not needed from the second stage on
        source = spec_of(data)
        return run.train(
            f"distill {verb}",
            stages,
            options,
            read,
            out,
            plan,
            source=source,
            begin=begin,
            prepare=keeper.prepare,
        )


@contextmanager
def _frozen(net: nn.Module) -> Iterator[None]:
    """Around a run that freezes the teacher's network: afterwards its parameters are trainable again.

    No reference to the network is kept.
    """
    network, names = ref(net), [n for n, p in net.named_parameters() if p.requires_grad]
    del net
    try:
        yield
    finally:
        if names and (back := network()) is not None:
            thaw(back)


def is_no_data(data: DataLike) -> bool:
    """Whether there are no data, by name or as `NoData`."""
    return spec_of(data) in NO_DATA


def walker_of(data: DataLike) -> str:
    """The network that walks without data, teacher or student."""
    return data.walk if isinstance(data, NoData) else NoData.named(str(data)).walk


def refuse_teacher(method: Method, teacher: Pipeline, lora: Lora | None = None) -> None:
    """Raise the method's `ConfigError` for a teacher before data are read."""
    method.check(teacher)
    denoiser = copy(teacher.denoiser)
    if lora is not None:  # of a copy, whose parameters are frozen
        check_lora(method, teacher)
        denoiser = LoraRun(lora, "any").teacher(on_same_weights(denoiser).freeze())
    method = method.resolve(teacher, None)
    next(stages_of(method, teacher, denoiser))


def _merged(pipeline: Pipeline) -> Pipeline:
    """The pipeline with a plain network, of a student that `distill` returned with its LoRA."""
    return replace(pipeline, denoiser=plain_denoiser(pipeline.denoiser))


def _nothing(folder: Path) -> None:
    pass


def sized(method: M, teacher: Pipeline, data: Data, batch: int) -> M:
    """The method with the updates that it leaves open, by the number of data and this batch."""
    return method.sized(teacher, default_updates(number_of(data), batch))


def resolve(
    method: M,
    teacher: Pipeline,
    data: Data,
    out: Path | str | None = None,
    *,
    progress: Progress = SILENT,
) -> M:
    """The method with the options filled in that depend on the data.

    out  the folder of the run: one that was begun keeps its options
    """
    if not method.needs_data:
        return method
    method.check(teacher)
    run = None if out is None else RunFolder(out)
    previous = run.options if run is not None and run.exists else None
    return method.resolve(teacher, read_by(teacher, data), previous=previous, progress=progress)


def stages_to_train(method: Denoising, pipeline: Pipeline, denoiser: Denoiser) -> Iterator[Stage]:
    """The method's stage, which trains `denoiser`; refused if that does not take the pipeline's samples."""
    model = replace(pipeline, denoiser=denoiser)
    method.check(model)
    return checked_on_start(method.stages(model), pipeline, DATA_DECIDE)


def stages_of(method: Method, teacher: Pipeline, denoiser: Denoiser) -> Iterator[Stage]:
    """The method's stages for this teacher, whose `denoiser` is on its device.

    If the teacher takes the guidance scale as an input, so do its students.
    """
    on_device = replace(teacher, denoiser=denoiser)
    stages, readable = method.stages(on_device), method.readable(on_device)
    if readable is not on_device:
        later = method.stages(readable)  # whose errors are told before the v teacher is trained
        next(checked_on_start(later, teacher) if method.builds_student else later)
    elif method.builds_student:
        stages = checked_on_start(stages, teacher)
    if (guidance_range := teacher.guidance_range) is None or not teacher.takes_scale:
        return stages
    return (at_any_scale(stage, guidance_range) for stage in stages)


@dataclass(frozen=True)
class _PipelineRun:
    """The run that trains or distils a pipeline; holds no weights."""

    rebuild: partial[Pipeline]
    """Builds the pipeline with another denoiser."""
    description: JsonObject
    schedule: Schedule
    training: TrainingConfig
    job: RunOptions
    processes: Processes
    lora: LoraRun | None = None

    @classmethod
    def on(
        cls, pipeline: Pipeline, training: TrainingConfig | None, job: RunOptions | None
    ) -> "_PipelineRun":
        refuse_wrapped(pipeline.denoiser)
        refuse_changed_net(pipeline.denoiser.net)
        training, job = training or TrainingConfig(), job or RunOptions()
        # Before any error that only one of them might raise.
        processes = Processes(job.device, shard=job.shard)
        if job.shard:
            refuse_settings(training, offload=job.offload)
        parts = {f.name: getattr(pipeline, f.name) for f in fields(pipeline)}
        del parts["denoiser"]
        # Described before it is trained: a pipeline that could not be saved is refused now.
        description = {**pipeline.describe(), **code_of_net(pipeline.denoiser.net)}
        description.pop("origin", None)  # a place, which may be moved
        if (defaults := digest_of_defaults(pipeline)) is not None:
            description["empty text"] = defaults[:16]
        rebuild, schedule = partial(Pipeline, **parts), pipeline.denoiser.schedule
        return cls(rebuild, description, schedule, training, job, processes)

    def read(self, pipeline: Pipeline, data: DataLike, out: Path | str) -> Data:
        """The data as the pipeline reads it; prompts of walks are encoded into the run's folder `out`."""
        read = as_data(data, shape=pipeline.shape)
        if isinstance(read, NoData):
            dry_run = self.job.dry_run is not None
            read = walks_for(pipeline, read, out, self.processes, dry_run=dry_run)
        else:
            read = read_by(pipeline, read)
        for note in notes(pipeline, read) if self.processes.first else ():
            self.job.callback.note(note)
        return read

    def gated(
        self, gate: GateConfig, teacher: Pipeline, data: Data, out: Path | str, method: Method
    ) -> "_PipelineRun":
        """The same run, with this gate bound to it."""
        if self.job.gate is not None:
            raise ConfigError("this run has two gates: give gate, or job=RunOptions(gate=...)")
        bound = gate.bind(
            teacher, data, out, method, device=self.job.device,
            tell=self.job.callback.note if self.processes.first else str,
            dry_run=self.job.dry_run is not None,
        )  # fmt: skip
        return replace(self, job=replace(self.job, gate=bound))

    def keeper(self, teacher: Pipeline, data: Data, out: Path | str) -> WalkKeeper:
        """Makes the walks that stages learn from."""
        folder, scales = self.job.walks or Path(out) / WALKS, teacher.guidance_range
        return WalkKeeper(
            folder, data, self.training, self.processes, scales if teacher.takes_scale else None
        )

    def denoiser(self, pipeline: Pipeline) -> Denoiser:
        """The pipeline's denoiser on the device and in the precision of this run; the same weights."""
        device = self.processes.staging
        # A codec that is offloaded visits the device for the gate alone.
        denoiser = (
            pipeline.denoiser.to(device) if self.job.offload else pipeline.to(device).denoiser
        )
        denoiser = self._apart(denoiser)
        denoiser.autocast = self.autocast
        return denoiser

    def _apart(self, denoiser: Denoiser) -> Denoiser:
        """A copy on the same weights; it has its own modules where the run stores or moves its networks'."""
        moved = self.autocast is not None or self.job.offload or self.processes.sharded
        return on_same_weights(denoiser) if moved else copy(denoiser)

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of the networks' arithmetic; None for their own."""
        return AUTOCAST[self.training.precision]

    def teacher(self, pipeline: Pipeline) -> Denoiser:
        """The pipeline's denoiser for this run, frozen; of a LoRA with its adapters off."""
        if self.lora is None or self.autocast is None:
            denoiser = self.denoiser(pipeline).freeze()
            return denoiser if self.lora is None else self.lora.teacher(denoiser)
        # Cast where the teacher lies, and moved then: the device never holds the base in float32.
        denoiser, device = self._apart(pipeline.denoiser), self.processes.staging
        denoiser.autocast = self.autocast
        base = self.lora.teacher(denoiser.freeze())
        store_frozen([base])
        if isinstance(pipeline.codec, nn.Module):
            pipeline.codec.to(device)
        return base.to(device)

    def pipeline(self, stage: Stage) -> Pipeline:
        """The pipeline of a stage's student, which samples on the stage's grid."""
        changes: JsonObject = {}
        if grids := stage.grids or (stage.times and (stage.times,)):
            changes = {"times": grids, "sampler": stage.sampler, "direction": stage.direction}
            if stage.grids:
                fewest = min(len(times) - 1 for times in grids)
                changes |= {"fine_times": stage.fine_times, "steps": fewest}
        elif self.schedule != unwrap(stage.student).schedule:  # which its scheduler does not have
            changes = {"scheduler": None}
            if self.description.get("sampler") == SCHEDULER:
                changes["sampler"] = "ddim"
        if stage.guidance_range is not None:
            changes["guidance_range"] = stage.guidance_range
        if not stage.clips:
            changes |= {"clip": None, "clipping": "x0-and-eps"}
        return self.rebuild(denoiser=unwrap(stage.student), **changes)

    def _passes_gate(self, student: Pipeline) -> bool:
        """Call the gate with the student as it will be loaded, in float32; a LoRA as it is trained."""
        if self.job.gate is None:
            return True
        alike = self.lora is not None or self.processes.sharded
        denoiser = copy(student.denoiser) if alike else self._apart(student.denoiser)
        if self.lora is None:
            denoiser.autocast = None
        pipeline = replace(student, denoiser=denoiser)
        if not self.job.offload:
            return self.job.gate(pipeline)
        passes = self.job.gate(pipeline.to(self.processes.device))
        if isinstance(pipeline.codec, nn.Module):
            pipeline.codec.to("cpu")
        return passes

    def train(
        self,
        command: str,
        stages: Iterable[Stage],
        options: JsonObject,
        data: Data,
        out: Path | str,
        plan: Sequence[StagePlan] = (),
        *,
        source: str | None,
        begin: Callable[[Path], None] = _nothing,
        prepare: Prepare = lambda stage, callback, request: None,
    ) -> Pipeline:
        """Train the stages; return the pipeline of the last student."""
        last: list[Pipeline] = []
        grid, parts = SampleGrid(data, self.processes.device), self.rebuild.keywords
        files: LoraRun | _Whole = self.lora or _Whole()

        def read(stage: Stage, folder: Path) -> None:
            files.read(unwrap(stage.student), folder)
            last[:] = [self.pipeline(stage)]

        run_stages(
            command,
            checked_on_data(iter(stages), data, self.processes.staging),
            {**options, "pipeline": self.description},
            data,
            out,
            self.training,
            self.job,
            self.processes,
            plan=plan,
            source=source,
            write=lambda stage, folder: files.write(self.pipeline(stage), folder),
            read=read,
            gate=lambda stage: self._passes_gate(last[0]),
            check=files.check,
            begin=begin,
            prepare=prepare,
            draw=lambda stage: grid.draw(self.pipeline(stage)),
            undrawn=why_undrawn(parts["shape"], parts["codec"], plan),
        )
        if self.processes.sharded:
            with self.processes.together():
                last[0].denoiser.net = whole_copy(last[0].denoiser.net)
        last[0].denoiser.eval()
        if (
            self.lora is None
        ):  # as it is when it is loaded; of a LoRA the base is stored in half precision
            last[0].denoiser.autocast = None
        return last[0]


class _Whole:
    """How the stages of a run are written and read whose students have weights of their own."""

    @staticmethod
    def write(student: Pipeline, folder: Path) -> None:
        student.save(folder)

    @staticmethod
    def read(student: nn.Module, folder: Path) -> None:
        load_weights(student, folder / "pipeline")

    @staticmethod
    def check(student: nn.Module) -> None:
        refuse_changed_net(student.net)  # type: ignore[arg-type]


def _with_first_made(stages: Iterator[Stage]) -> Iterator[Stage]:
    """The same stages; the first is made now, so that the method's errors come before data are read."""
    first = next(stages, None)
    return iter(()) if first is None else with_first(first, stages)
