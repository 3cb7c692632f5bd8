"""The runs of a comparison: what each costs, and how its student does on the test images."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn, Tensor

from halfstep.config.fields import flat
from halfstep.data import Data, Dataset
from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.classification import answers
from halfstep.evaluation.recipe_comparison import (
    SeedResult,
)
from halfstep.methods.base import Stage
from halfstep.methods.classifiers.feature_terms import pairs_of
from halfstep.progress import Progress
from halfstep.training import TrainingConfig
from halfstep.training.distributed import Processes
from halfstep.training.progress import ProgressCallback
from halfstep.training.run_config import write_config
from halfstep.training.run_folder import RunFolder
from halfstep.training.stages import DryRunFinished
from halfstep.workflows.distill_classifier import ClassifierDistillation
from halfstep.workflows.dry_run import seconds_per_update
from halfstep.workflows.run_options import run_options_of

STAGE = "student"
"""The only stage of a run of `halfstep distill knowledge`."""
ROWS = 64
"""Images that are scored at a time: twice as fast on a CPU as 512."""


@dataclass(frozen=True)
class ComparedRun:
    """A student in a comparison: its name, and what prepares its run with a seed."""

    name: str
    prepare: Callable[[int], ClassifierDistillation]


@dataclass(frozen=True)
class StudentPlan:
    """The cost of a student's runs.

    terms     of its loss, each with its weight
    done      seeds that are finished
    forwards  of one seed; forward and backward count 3
    seconds   of one seed, an estimate
    """

    name: str
    terms: tuple[str, ...]
    updates: int
    forwards: float
    seconds: float
    done: int


@dataclass(frozen=True)
class ScoredStudent:
    """A student of one seed on the test images.

    right  whether each image is answered rightly
    test   fingerprint of the test images
    notes  sentences of the run
    """

    result: SeedResult
    right: Tensor
    test: str
    forwards: float
    notes: tuple[str, ...] = ()


def plan_students(students: Sequence[ComparedRun], seeds: Sequence[int]) -> list[StudentPlan]:
    """Try each student's first run, with all its checks, and say the cost; nothing is written.

    Raises:
        ConfigError: a run cannot be begun or continued.
    """
    return [_plan(student, seeds) for student in students]


def logits_folder(out: Path, prepared: ClassifierDistillation) -> Path | None:
    """OUT/teacher-logits/NAME for the teacher's logits of these images; None where logits cannot be kept."""
    data, teacher, method = prepared.data, prepared.teacher, prepared.method
    if not method.uses_teacher or pairs_of(method.live) or data.views is None:
        return None
    pictures = replace(data, labels=None, names=()).fingerprint()
    about = f"{teacher.digest} {pictures} {data.augmentation or data.flip}"
    return out / "teacher-logits" / hashlib.sha256(about.encode()).hexdigest()[:16]


TAUGHT: dict[tuple[str, str], Tensor] = {}
"""Answers of teachers on test images, by the digests of both; a process computes them once."""


def refuse_other_rate(prepared: ClassifierDistillation) -> None:
    """`ConfigError` for a run that had another learning rate, with which an ordinary run may go on."""
    run = RunFolder(prepared.config.folder.out)
    if not run.exists:
        return
    now = prepared.config.training.learning_rate
    had = [run.options["learning_rate"]]
    had += [change["values"]["learning_rate"] for change in run.about["changed_options"]]
    if other := [rate for rate in had if rate != now]:
        raise ConfigError(
            f"'{run.folder}' was trained with a learning rate of {other[0]:g}, now {now:g}: students are "
            "compared at one rate; choose another --out"
        )


def trained_and_scored(student: ComparedRun, seed: int, progress: Progress) -> ScoredStudent:
    """Train the student of a seed, or read it if it is finished, and score it."""
    prepared = student.prepare(seed)
    refuse_other_rate(prepared)
    callback = _Updates(prepared, progress)
    net = prepared.run(run_options_of(prepared.config, callback=callback))
    callback.finish()
    held_out = test_images(prepared)
    test = held_out.fingerprint()[:16]
    logits, labels = answers(net, held_out, batch=ROWS)
    if (key := (prepared.teacher.digest, test)) not in TAUGHT:
        TAUGHT[key] = answers(prepared.teacher, held_out, batch=ROWS)[0].argmax(1)
    guess, taught = logits.argmax(1), TAUGHT[key]
    right = guess == labels
    cost = RunFolder(prepared.config.folder.out).cost
    assert cost is not None
    result = SeedResult(
        seed=seed, accuracy=_share(right), agreement=_share(guess == taught),
        teacher=_share(taught == labels), seconds=cost["seconds"],
    )  # fmt: skip
    return ScoredStudent(result, right, test, cost["forwards"])


def tried(
    student: ComparedRun, seed: int, *, timed: bool = False
) -> tuple[ClassifierDistillation, float, float]:
    """Try a student's run, with all its checks; nothing is written.

    Returns the run, its forwards and, if `timed`, the seconds that it takes, else 0.
    """
    prepared, cost = student.prepare(seed), list[tuple[float, float]]()
    test_images(prepared)
    refuse_other_rate(prepared)

    def measure(
        stages: Iterator[Stage], data: Data, training: TrainingConfig, processes: Processes
    ) -> None:
        stage = next(stages)
        seconds = seconds_per_update(stage, data, training, processes.device)[0] if timed else 0.0
        forwards = stage.objective.cost(stage.updates, training.batch_size)
        cost.append((forwards, seconds * stage.updates))

    with suppress(DryRunFinished):
        prepared.run(run_options_of(prepared.config, dry_run=measure))
    return prepared, *cost[0]


def _plan(student: ComparedRun, seeds: Sequence[int]) -> StudentPlan:
    first, forwards, seconds = tried(student, seeds[0], timed=True)
    folders = [student.prepare(seed).config.folder.out for seed in seeds]
    done = sum(RunFolder(folder).stage_folder(STAGE).exists() for folder in folders)
    method = first.method
    return StudentPlan(student.name, terms_of(method.live), method.updates, forwards, seconds, done)


class _Updates(ProgressCallback):
    """Counts the updates of a run, and writes its config.toml when it begins.

    A run of so many updates advances the progress by as many, also if some or all were done before.
    """

    def __init__(self, prepared: ClassifierDistillation, progress: Progress):
        self._prepared, self._progress = prepared, progress
        self._counted = 0

    def begin(self, stage: Stage, update: int) -> None:
        config = self._prepared.config
        write_config(config.folder.out, flat(config))
        self._count(update)

    def step(self, update: int, rate: float) -> None:
        self._count(update)

    def note(self, text: str) -> None:
        if self._prepared.method.uses_teacher:  # of the control all is as it is meant to be
            self._progress.note(text)

    def finish(self) -> None:
        """Count what was finished before."""
        self._count(self._prepared.method.updates)

    def _count(self, updates: int) -> None:
        self._progress.advance(updates - self._counted)
        self._counted = updates


def terms_of(terms: Sequence[nn.Module] | Sequence[object]) -> tuple[str, ...]:
    return tuple(f"{term.name} {term.weight}" for term in terms)  # type: ignore[attr-defined]


def test_images(prepared: ClassifierDistillation) -> Dataset:
    """The test images of a run; `ConfigError` without any."""
    if prepared.held_out is None:
        raise ConfigError(
            "students are compared on images that they were not trained on: give --validate a share of the "
            "data, such as 0.2, or other data"
        )
    return prepared.held_out


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())
