"""Distil a classifier from one teacher or several into a run folder."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from halfstep.code_identity import user_code
from halfstep.config import JsonObject
from halfstep.data import as_data, Data, DataLike, Dataset, spec_of
from halfstep.errors import DataError
from halfstep.identity import digest_of
from halfstep.methods.classifiers.knowledge import KnowledgeDistillation
from halfstep.methods.stages import Stage
from halfstep.models.classifiers.checkpoint import save_classifier
from halfstep.models.classifiers.ensemble import Teachers
from halfstep.models.classifiers.registry import (
    label_smoothing,
    refuse_changed_classifier,
    refuse_other_classes,
)
from halfstep.models.hooks import unwrap
from halfstep.models.rebuild import refuse_wrapped
from halfstep.rng import fork_rng, key
from halfstep.training.checks.teacher import checked_on_first, refuse_unread
from halfstep.training.classifiers.api import NO_SAMPLES, read_classifier
from halfstep.training.classifiers.logit_cache import (
    cached_logits,
    CachedLogits,
    check_reproducible,
)
from halfstep.training.config import TrainingConfig
from halfstep.training.distributed import Processes
from halfstep.training.progress import Notes
from halfstep.training.stages import run_stages, RunOptions


@fork_rng()
def distill_classifier(
    teachers: Teachers | Sequence[nn.Module] | nn.Module,
    student: nn.Module,
    data: DataLike,
    out: Path | str,
    *,
    write: Callable[[nn.Module, Path], None] = save_classifier,
    read: Callable[[nn.Module, Path], None] = read_classifier,
    method: KnowledgeDistillation | None = None,
    training: TrainingConfig | None = None,
    job: RunOptions | None = None,
    cache: Path | str | None = None,
) -> nn.Module:
    """Distil a classifier from one teacher or several; returns the student, trained in place.

    The same call again goes on where it stopped, to the bit, or returns what is finished.

    Args:
        teachers: one classifier or several, which map images [B, C, H, W] to logits [B, classes].
        student: the classifier to train.
        data: images [N, C, H, W], labelled or not.
        out: the run's folder.
        write: saves a student.
        read: loads a student.
        method: the terms of the loss; by default `KnowledgeDistillation()`.
        training: optimiser, batch, averaging and checkpoints; by default `TrainingConfig()`.
        job: device and progress.
        cache: a folder for the teacher's logits; None computes them every time.

    Raises:
        ConfigError: teacher, student and data do not go together, or a folder holds something else.
        DataError: no term uses the teacher and the data has no labels.
        CheckpointError: a damaged checkpoint or cache.
        NonFinite: the loss is nan or infinite.
        Stopped: Ctrl-C or SIGTERM; the run is saved.
    """
    method, training = method or KnowledgeDistillation(), training or TrainingConfig()
    job = job or RunOptions()
    processes = Processes(job.device)
    teacher = teachers if isinstance(teachers, Teachers) else Teachers(*_listed(teachers))
    source, data = spec_of(data), as_data(data)
    for note in (*method.notes(), *_smoothed(method, teacher)) if processes.first else ():
        job.callback.note(note)
    refuse_unread(training, method)
    refuse_unlabelled(method, data)
    check = refuse_changed_classifier if write is save_classifier else refuse_wrapped
    check(student)
    _describe(student, method, teacher, data)
    options = _options(method, teacher, student)
    teacher.to(processes.device), student.to(processes.device)
    logits = _logits(teacher, data, cache, processes, job) if method.uses_teacher else None
    stages = _stages(method, teacher, student, data, logits, training.seed, processes.device)
    last = run_stages(
        "distill knowledge",
        checked_on_first(stages, data, processes.device),
        options,
        data,
        out,
        training,
        job,
        processes,
        source=source,
        write=lambda stage, folder: write(unwrap(stage.student), folder),
        read=lambda stage, folder: read(unwrap(stage.student), folder),
        check=check,
        undrawn=NO_SAMPLES,
    )
    return unwrap(last).eval()


def _describe(
    student: nn.Module, method: KnowledgeDistillation, teacher: Teachers, data: Data
) -> None:
    """Set the attributes that the student's file holds: the names of its classes, and label smoothing."""
    student.class_names = taught_classes(teacher, data)  # type: ignore[assignment]
    student.label_smoothing = method.label_smoothing  # type: ignore[assignment]


def _options(method: KnowledgeDistillation, teacher: Teachers, student: nn.Module) -> JsonObject:
    """The options of a run that data and training do not have."""
    return {
        **method.describe(),
        **user_code(type(method)),
        "teacher": teacher.digest[:16],
        "start": digest_of(student)[:16],
    }


def _logits(
    teacher: Teachers, data: Data, folder: Path | str | None, processes: Processes, job: RunOptions
) -> CachedLogits | None:
    """The teacher's logits in the cache folder; also sets how many rows the teacher takes at a time."""
    device = processes.device
    if not check_reproducible(teacher, data, device) and processes.first:
        job.callback.note(
            "the teacher's logits depend, in their last places, on where in a batch a sample is: it is asked "
            "one sample at a time, which is slower"
        )
    if folder is None:
        return None
    return cached_logits(Path(folder), teacher, data, device=device, progress=Notes(job.callback))


def _stages(
    method: KnowledgeDistillation,
    teacher: Teachers,
    student: nn.Module,
    data: Data,
    logits: CachedLogits | None,
    seed: int,
    device: torch.device,
) -> Iterator[Stage]:
    """The method's stages, with projectors that depend on the seed alone."""
    torch.manual_seed(key(seed, 1))
    example = data.batch(torch.arange(1)).x0.to(device)
    return method.stages(teacher, student, example=example, answers=logits)


def taught_classes(teacher: Teachers, data: Data) -> tuple[str, ...]:
    """The names of a student's classes; `ConfigError` if those of teacher and data differ."""
    names = data.names if isinstance(data, Dataset) else ()
    refuse_other_classes(teacher.class_names, names, "the teacher", "the data")
    return teacher.class_names or names


def _smoothed(method: KnowledgeDistillation, teacher: Teachers) -> Iterator[str]:
    """A note where a teacher's labels were smoothed (Mueller et al. 2019)."""
    count = len(teacher.nets)
    for k, net in enumerate(teacher.nets if method.uses_teacher else ()):
        if share := label_smoothing(net):
            which = "the teacher" if count == 1 else f"teacher {k + 1} of {count}"
            yield (
                f"{which} was trained with label smoothing {share:g}, which takes away what it knows of the "
                "wrong classes: one trained without teaches more"
            )


def refuse_unlabelled(method: KnowledgeDistillation, data: Data) -> None:
    """`DataError` for data without labels if no term of the loss uses the teacher."""
    if isinstance(data, Dataset) and data.unlabelled == len(data) and not method.uses_teacher:
        raise DataError(
            "this data has no labels, and no term asks the teacher: there is nothing to learn; give labelled "
            "data, or a term of the teacher's answers"
        )


def _listed(teachers: Sequence[nn.Module] | nn.Module) -> Sequence[nn.Module]:
    return (teachers,) if isinstance(teachers, nn.Module) else teachers
