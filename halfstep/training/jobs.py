"""A method, a pipeline, data and a folder: what the command line, the API and the demo call."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halfstep import storage
from halfstep.data import Dataset, load as load_data
from halfstep.errors import ConfigError
from halfstep.methods import Denoising, METHODS
from halfstep.methods.base import Method, Stage
from halfstep.methods.classification import Classification
from halfstep.pipeline import Pipeline
from halfstep.training.loop import Loop, Silent, Watch
from halfstep.training.parallel import pick_device, Processes
from halfstep.training.run import Run
from halfstep.training.settings import Training

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


def train(
    pipeline: Pipeline,
    data: Dataset | str,
    out: Path | str,
    *,
    method: Denoising | None = None,
    training: Training | None = None,
    job: Job | None = None,
) -> Pipeline:
    """Train a teacher from data into the run folder `out`; the same call again goes on or returns it."""
    method, dataset = method or Denoising(), _dataset(data)
    stages = method.stages(pipeline.denoiser, pipeline.null)
    options = asdict(method)
    return _carry_out_pipeline(
        "train denoiser", stages, options, pipeline, dataset, out, training, job
    )


def distill(
    teacher: Pipeline,
    data: Dataset | str,
    out: Path | str,
    *,
    method: Method,
    training: Training | None = None,
    job: Job | None = None,
) -> Pipeline:
    """Distil a teacher into the run folder `out`; returns the last student.

    The same call again goes on where it stopped, to the bit, or returns what is finished.
    """
    verb = next((name for name, kind in METHODS.items() if type(method) is kind), "own")
    options = {**asdict(method), "teacher": fingerprint(teacher.denoiser)}  # type: ignore[call-overload]
    stages, dataset = method.stages(teacher.denoiser), _dataset(data)
    return _carry_out_pipeline(
        f"distill {verb}", stages, options, teacher, dataset, out, training, job
    )


def train_classifier(
    classifier: nn.Module,
    data: Dataset | str,
    out: Path | str,
    *,
    write: Callable[[nn.Module, Path], None],
    read: Callable[[nn.Module, Path], None],
    method: Classification | None = None,
    training: Training | None = None,
    job: Job | None = None,
) -> nn.Module:
    """Train a classifier into the run folder `out`; `write` and `read` are how it lies on disk."""
    method = method or Classification()
    return _carry_out(
        "train classifier",
        method.stages(classifier),
        asdict(method),
        _dataset(data),
        out,
        training or Training(),
        job or Job(),
        write=lambda stage, folder: write(stage.student, folder),
        read=lambda stage, folder: read(stage.student, folder),
    ).eval()


def _carry_out_pipeline(
    command: str,
    stages: Iterable[Stage],
    options: Mapping[str, Any],
    pipeline: Pipeline,
    data: Dataset,
    out: Path | str,
    training: Training | None,
    job: Job | None,
) -> Pipeline:
    training, job = training or Training(), job or Job()
    _check_shape(pipeline, data)
    if not pipeline.classes:
        data = replace(data, labels=None, names=())
    pipeline.to(pick_device(job.device))
    pipeline.denoiser.autocast = AUTOCAST[training.precision]
    last: list[Pipeline] = []

    def read(stage: Stage, folder: Path) -> None:
        load_weights(stage.student, folder / "pipeline")
        last[:] = [with_stage(pipeline, stage)]

    _carry_out(
        command,
        stages,
        options,
        data,
        out,
        training,
        job,
        write=lambda stage, folder: with_stage(pipeline, stage).save(folder),
        read=read,
        gate=lambda stage: job.gate is None or job.gate(last[0]),
    )
    last[0].denoiser.freeze()
    return last[0]


def _carry_out(
    command: str,
    stages: Iterable[Stage],
    options: Mapping[str, Any],
    data: Dataset,
    out: Path | str,
    training: Training,
    job: Job,
    *,
    write: Callable[[Stage, Path], None],
    read: Callable[[Stage, Path], None],
    gate: Callable[[Stage], bool] = lambda stage: True,
) -> nn.Module:
    processes = Processes(job.device)
    processes.share(training.batch)
    run = Run.open(
        Path(out),
        command,
        {**options, **asdict(training), "data": data.fingerprint()[:16]},
        device=str(processes.device),
        extend=job.extend,
        writer=processes.first,
    )
    nearby = _nearby(data, processes.device)
    loop = Loop(run, nearby, training, processes, write, read, job.watch, gate, job.from_previous)
    try:
        for note in run.notes:
            job.watch.note(f"since this run began, {note}: not the same to the bit")
        return loop.train(stages)
    finally:
        run.close()
        processes.close()


def with_stage(pipeline: Pipeline, stage: Stage) -> Pipeline:
    """The pipeline around a stage's student, to be sampled on the stage's grid."""
    times = (stage.times,) if stage.times else pipeline.times
    student: Any = stage.student
    return replace(pipeline, denoiser=student, times=times)


def load_weights(module: nn.Module, stem: Path) -> None:
    tensors, _ = storage.load(stem)
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


def _dataset(data: Dataset | str) -> Dataset:
    return load_data(data) if isinstance(data, str) else data


def _nearby(data: Dataset, device: torch.device) -> Dataset:
    """On the device if it is small there; else rows travel as they are needed."""
    small = data.values.numel() * data.values.element_size() < 2**31
    return data.to(device) if small else data


def _check_shape(pipeline: Pipeline, data: Dataset) -> None:
    if tuple(data.shape) != tuple(pipeline.shape):
        raise ConfigError(
            f"the network makes samples of shape {list(pipeline.shape)} and the data has "
            f"{list(data.shape)}: give data of that shape (--size, --channels)"
        )
