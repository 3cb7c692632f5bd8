"""Train the students of a comparison, each in a run of its own, and score them on the same test images."""

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn, Tensor

from halfstep.config.fields import flat
from halfstep.data import Data, Dataset
from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.classification import answers
from halfstep.evaluation.metrics.crossed_mean import crossed_mean
from halfstep.evaluation.recipe_comparison import (
    all_gains,
    ComparedStudent,
    gain_level,
    LEVEL,
    RecipeComparison,
    save_comparison,
    SeedResult,
)
from halfstep.methods.classifiers.feature_terms import pairs_of
from halfstep.methods.stages import Stage
from halfstep.progress import expected, Progress, SILENT
from halfstep.report.recipes_page import write_recipes_page
from halfstep.training import TrainingConfig
from halfstep.training.distributed import pick_device, Processes
from halfstep.training.progress import ProgressCallback
from halfstep.training.run_config import write_config
from halfstep.training.run_folder import RunFolder
from halfstep.training.run_identity import environment
from halfstep.training.stages import DryRunFinished
from halfstep.workflows.distill_classifier import ClassifierDistillation
from halfstep.workflows.dry_run import seconds_per_update
from halfstep.workflows.report import provenance
from halfstep.workflows.run_options import run_options_of

STAGE = "student"
"""The only stage of a run of `halfstep distill knowledge`."""
PAGE = "compare.html"
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
class _Scored:
    """A student of one seed on the test images."""

    result: SeedResult
    right: Tensor
    teacher: float
    prepared: ClassifierDistillation
    forwards: float


def plan_students(students: Sequence[ComparedRun], seeds: Sequence[int]) -> list[StudentPlan]:
    """Try each student's first run, with all its checks, and say the cost; nothing is written.

    Raises:
        ConfigError: a run cannot be begun or continued.
    """
    return [_plan(student, seeds, timed=True) for student in students]


def compare_students(
    students: Sequence[ComparedRun],
    pairs: Sequence[tuple[str, str]],
    seeds: Sequence[int],
    out: Path,
    *,
    margin: float = 0.0,
    cautions: Sequence[str] = (),
    progress: Progress = SILENT,
) -> RecipeComparison:
    """Train what is missing, score all students, and write OUT/compare.json and OUT/compare.html.

    Args:
        students: the students, each with a name of its own.
        pairs: names of a student and its control, for each gain.
        seeds: the seeds of every student.
        out: the folder of the comparison.
        margin: the smallest gain of accuracy that matters.
        cautions: sentences for the reader.
        progress: counts updates; its notes say the accuracy of each student.

    Raises:
        ConfigError: a run was begun with other options, or its test images differ from the others'.
        Stopped: Ctrl-C or SIGTERM; the same call goes on.
    """
    _refuse_several_processes()
    for student in students:  # so that no run begins before all could
        _plan(student, seeds, timed=False)
    scored, teachers = dict[str, list[_Scored]](), dict[str, Tensor]()
    updates = [student.prepare(seeds[0]).method.updates for student in students]
    whole = _Once(expected(progress, sum(updates) * len(seeds)))
    test: str | None = None
    for student in students:
        for seed in seeds:
            one = _trained_and_scored(student, seed, teachers, whole)
            held_out = _test_images(one.prepared)
            test = test or held_out.fingerprint()[:16]
            if held_out.fingerprint()[:16] != test:
                raise ConfigError(
                    f"'{student.name}' of seed {seed} has other test images than those before it: students "
                    "are compared on the same ones"
                )
            scored.setdefault(student.name, []).append(one)
    comparison = _comparison(scored, pairs, margin, cautions)
    save_comparison(comparison, out)
    write_recipes_page(comparison, out / PAGE)
    return comparison


def logits_folder(out: Path, prepared: ClassifierDistillation) -> Path | None:
    """OUT/teacher-logits/NAME for the teacher's logits of these images; None where logits cannot be kept."""
    data, teacher, method = prepared.data, prepared.teacher, prepared.method
    if not method.uses_teacher or pairs_of(method.live) or data.views is None:
        return None
    pictures = replace(data, labels=None, names=()).fingerprint()
    about = f"{teacher.digest} {pictures} {data.augmentation or data.flip}"
    return out / "teacher-logits" / hashlib.sha256(about.encode()).hexdigest()[:16]


def _trained_and_scored(
    student: ComparedRun, seed: int, teachers: dict[str, Tensor], progress: Progress
) -> _Scored:
    """Train the student of a seed, or read it if it is finished, and score it.

    teachers  logits of the teachers on the test images by their digest, to which a new teacher's are added
    """
    prepared = student.prepare(seed)
    callback = _Updates(prepared, progress)
    net = prepared.run(run_options_of(prepared.config, callback=callback))
    callback.finish()
    held_out = _test_images(prepared)
    logits, labels = answers(net, held_out, batch=ROWS)
    if (digest := prepared.teacher.digest) not in teachers:
        teachers[digest] = answers(prepared.teacher, held_out, batch=ROWS)[0].argmax(1)
    guess, taught = logits.argmax(1), teachers[digest]
    right = guess == labels
    cost = RunFolder(prepared.config.folder.out).cost
    assert cost is not None
    result = SeedResult(
        seed=seed,
        accuracy=_share(right),
        agreement=_share(guess == taught),
        seconds=cost["seconds"],
    )
    progress.note(f"{student.name}, seed {seed}: {100 * result.accuracy:.2f} % right")
    return _Scored(result, right, _share(taught == labels), prepared, cost["forwards"])


def _comparison(
    scored: dict[str, list[_Scored]],
    pairs: Sequence[tuple[str, str]],
    margin: float,
    cautions: Sequence[str],
) -> RecipeComparison:
    """The table of the students, and the gain of each pair."""
    right = {name: torch.stack([one.right for one in ones]) for name, ones in scored.items()}
    first = next(iter(scored.values()))[0].prepared
    config, held_out = first.config, _test_images(first)
    device = str(pick_device(config.folder.device))
    return RecipeComparison(
        data=config.dataset.data,
        validate=config.images.validate or "",
        images=len(held_out),
        test=held_out.fingerprint()[:16],
        teachers=tuple(map(str, config.networks.teacher)),
        net=config.networks.net,
        level=LEVEL,
        gain_level=gain_level(len(pairs)),
        margin=margin,
        students=tuple(_row(name, ones, right[name]) for name, ones in scored.items()),
        gains=all_gains(pairs, right, margin=margin),
        cautions=tuple(cautions),
        provenance=provenance(environment(device), sys.argv),
    )


def _row(name: str, scored: Sequence[_Scored], right: Tensor) -> ComparedStudent:
    """A student's row of the table."""
    method = scored[0].prepared.method
    return ComparedStudent(
        name=name,
        terms=_terms(method.live),
        updates=method.updates,
        forwards=scored[0].forwards,
        seeds=tuple(one.result for one in scored),
        accuracy=crossed_mean(right).interval(LEVEL, least=0.0),
        teacher=sum(one.teacher for one in scored) / len(scored),
    )


def _plan(student: ComparedRun, seeds: Sequence[int], *, timed: bool) -> StudentPlan:
    """The plan of a student; its first run is tried."""
    first = student.prepare(seeds[0])
    _test_images(first)
    cost = list[tuple[float, float]]()

    def measure(
        stages: Iterator[Stage], data: Data, training: TrainingConfig, processes: Processes
    ) -> None:
        stage = next(stages)
        seconds = seconds_per_update(stage, data, training, processes.device)[0] if timed else 0.0
        forwards = stage.objective.cost(stage.updates, training.batch_size)
        cost.append((forwards, seconds * stage.updates))

    with suppress(DryRunFinished):
        first.run(run_options_of(first.config, dry_run=measure))
    folders = [student.prepare(seed).config.folder.out for seed in seeds]
    done = sum(RunFolder(folder).stage_folder(STAGE).exists() for folder in folders)
    method, (forwards, seconds) = first.method, cost[0]
    return StudentPlan(student.name, _terms(method.live), method.updates, forwards, seconds, done)


class _Once:
    """A progress that says no note twice: the runs of a recipe have the same."""

    def __init__(self, progress: Progress):
        self._progress, self._said = progress, set[str]()
        self.expect, self.advance = progress.expect, progress.advance

    def note(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._progress.note(text)


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


def _terms(terms: Sequence[nn.Module] | Sequence[object]) -> tuple[str, ...]:
    return tuple(f"{term.name} {term.weight}" for term in terms)  # type: ignore[attr-defined]


def _test_images(prepared: ClassifierDistillation) -> Dataset:
    """The test images of a run; `ConfigError` without any."""
    if prepared.held_out is None:
        raise ConfigError(
            "students are compared on images that they were not trained on: give --validate a share of the "
            "data, such as 0.2, or other data"
        )
    return prepared.held_out


def _refuse_several_processes() -> None:
    """`ConfigError` under a launcher of several processes, as all of them would score and write."""
    if Processes("cpu").world > 1:
        raise ConfigError(
            "students are compared in one process: start it without torchrun; each run may be made with "
            "'torchrun -m halfstep distill knowledge --config RUN/config.toml' before"
        )


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())
