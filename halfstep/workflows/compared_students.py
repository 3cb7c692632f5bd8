"""Train the students of a comparison, each in a run of its own, and score them on the same test images."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.crossed_mean import crossed_mean
from halfstep.evaluation.recipe_comparison import (
    all_gains,
    ComparedStudent,
    gain_level,
    LEVEL,
    RecipeComparison,
    save_comparison,
)
from halfstep.progress import expected, Progress, SILENT
from halfstep.report.recipes_page import write_recipes_page
from halfstep.training.distributed import pick_device, Processes
from halfstep.training.run_identity import environment
from halfstep.workflows.distill_classifier import ClassifierDistillation
from halfstep.workflows.report import provenance
from halfstep.workflows.student_runs import (
    ComparedRun,
    ScoredStudent,
    terms_of,
    trained_and_scored,
    tried,
)
from halfstep.workflows.worker_pool import in_processes

PAGE = "compare.html"


def compare_students(
    students: Sequence[ComparedRun],
    pairs: Sequence[tuple[str, str]],
    seeds: Sequence[int],
    out: Path,
    *,
    margin: float = 0.0,
    cautions: Sequence[str] = (),
    workers: int = 1,
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
        workers: students that are trained at once, each in a process of one thread; 1 trains them here.
        progress: counts updates; its notes say the accuracy of each student.

    Raises:
        ConfigError: a run was begun with other options, or its test images differ from the others'.
        Stopped: Ctrl-C or SIGTERM; the same call goes on.
    """
    _refuse_several_processes()
    # All are tried, so that no run begins before all could.
    firsts = {student.name: tried(student, seeds[0])[0] for student in students}
    updates = {name: first.method.updates for name, first in firsts.items()}
    progress = _Once(expected(progress, sum(updates.values()) * len(seeds)))
    jobs = [(student, seed) for student in students for seed in seeds]
    scored = dict[str, list[ScoredStudent]]()
    for (student, seed), one in zip(
        jobs, _all_scored(jobs, updates, workers, progress), strict=True
    ):
        progress.note(f"{student.name}, seed {seed}: {100 * one.result.accuracy:.2f} % right")
        if (test := scored.get(students[0].name, [one])[0].test) != one.test:
            raise ConfigError(
                f"'{student.name}' of seed {seed} has other test images ({one.test}) than those before it "
                f"({test}): students are compared on the same ones"
            )
        scored.setdefault(student.name, []).append(one)
    comparison = _comparison(firsts, scored, pairs, margin, cautions)
    save_comparison(comparison, out)
    write_recipes_page(comparison, out / PAGE)
    return comparison


def _all_scored(
    jobs: Sequence[tuple[ComparedRun, int]],
    updates: Mapping[str, int],
    workers: int,
    progress: Progress,
) -> Iterator[ScoredStudent]:
    """Train and score the students, here or in processes.

    updates  of each student, by name
    """
    if workers == 1:
        for student, seed in jobs:
            yield trained_and_scored(student, seed, progress)
        return
    calls = [partial(_in_a_process, student, seed) for student, seed in jobs]
    for (student, _), one in zip(jobs, in_processes(calls, workers), strict=True):
        for note in one.notes:
            progress.note(note)
        progress.advance(updates[student.name])
        yield one


def _in_a_process(student: ComparedRun, seed: int) -> ScoredStudent:
    notes = _Notes()
    return replace(trained_and_scored(student, seed, notes), notes=tuple(notes.texts))


def _comparison(
    firsts: Mapping[str, ClassifierDistillation],
    scored: Mapping[str, Sequence[ScoredStudent]],
    pairs: Sequence[tuple[str, str]],
    margin: float,
    cautions: Sequence[str],
) -> RecipeComparison:
    """The table of the students, and the gain of each pair.

    firsts  each student as it was prepared with the first seed
    """
    right = {name: torch.stack([one.right for one in ones]) for name, ones in scored.items()}
    config = next(iter(firsts.values())).config
    named = dict.fromkeys(f for first in firsts.values() for f in first.config.networks.teacher)
    nets = dict.fromkeys(first.config.networks.net for first in firsts.values())
    return RecipeComparison(
        data=config.dataset.data,
        validate=config.images.validate or "",
        images=next(iter(right.values())).shape[1],
        test=next(iter(scored.values()))[0].test,
        teachers=tuple(map(str, named)),
        net=", ".join(nets),
        level=LEVEL,
        gain_level=gain_level(len(pairs)),
        margin=margin,
        students=tuple(_row(name, firsts[name], scored[name], right[name]) for name in scored),
        gains=all_gains(pairs, right, margin=margin),
        cautions=tuple(cautions),
        provenance=provenance(environment(str(pick_device(config.folder.device))), sys.argv),
    )


def _row(
    name: str, first: ClassifierDistillation, scored: Sequence[ScoredStudent], right: Tensor
) -> ComparedStudent:
    """A student's row of the table."""
    return ComparedStudent(
        name=name,
        terms=terms_of(first.method.live),
        updates=first.method.updates,
        forwards=scored[0].forwards,
        seeds=tuple(one.result for one in scored),
        accuracy=crossed_mean(right).interval(LEVEL, least=0.0),
    )


class _Notes:
    """A progress that keeps its notes and counts nothing."""

    def __init__(self) -> None:
        self.texts = list[str]()
        self.note = self.texts.append

    def expect(self, steps: int) -> None: ...
    def advance(self, steps: int = 1) -> None: ...


class _Once:
    """A progress that says no note twice: the runs of a recipe have the same."""

    def __init__(self, progress: Progress):
        self._progress, self._said = progress, set[str]()
        self.expect, self.advance = progress.expect, progress.advance

    def note(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._progress.note(text)


def _refuse_several_processes() -> None:
    """`ConfigError` under a launcher of several processes, as all of them would score and write."""
    if Processes("cpu").world > 1:
        raise ConfigError(
            "students are compared in one process: start it without torchrun; each run may be made with "
            "'torchrun -m halfstep distill knowledge --config RUN/config.toml' before"
        )
