"""The experiments of knowledge_distillation_report.py, and their data for each seed."""

from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

import halfstep
from halfstep import Augmentation, Dataset
from halfstep.data.label_subsets import confident_rows
from halfstep.rng import key

DIGITS, FASHION = "digits", "fashion-mnist"
HELD_OUT = 1000
"""Validation images of the 1,797 digits; Fashion-MNIST has test images."""
STEPS = {DIGITS: ("crop",), FASHION: ("flip", "crop")}
"""Augmentation; mirrored digits would be no digits."""
VIEWS = 8
"""Views of each augmented image, so that the teacher's logits can be cached."""
SURE = 0.8
"""Least confidence of the teacher in a filtered unlabelled image."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A student, its loss, its teachers and its data.

    recipe          name of the loss, and `config`, its options
    rate_divisor    of the learning rate
    updates_factor  on the number of updates
    label_share     share of the labelled images
    unlabelled      unlabelled images in addition: all, sure or balanced
    """

    name: str
    recipe: str = "report"
    config: dict[str, float] = field(default_factory=dict)
    student: str = "shallow"
    teachers: tuple[str, ...] = ("first",)
    rate_divisor: float = 1.0
    updates_factor: int = 1
    weight_decay: float = 0.0
    augmented: bool = False
    label_share: float = 1.0
    unlabelled: str = ""


SCRATCH = {"recipe": "hinton", "config": {"soft_weight": 0.0, "hard_weight": 1.0}}


def soft(temperature=5.0):
    """The report's soft targets alone: cross-entropy, without T^2."""
    return {"config": {"temperature": temperature, "soft_weight": 1.0, "hard_weight": 0.0}}


EXPERIMENTS = [
    Experiment(name="toy, scratch", **SCRATCH, student="toy-student", updates_factor=3),
    Experiment(name="toy, soft", **soft(), student="toy-student", updates_factor=3),
    Experiment(name="toy, soft, T = 0.5", **soft(0.5), student="toy-student", updates_factor=3),
    Experiment(name="scratch", **SCRATCH),
    Experiment(name="soft", **soft()),
    Experiment(name="weighted"),
    Experiment(name="logits", recipe="logits"),
    Experiment(name="logits, deeper", recipe="logits", student="deeper"),
    Experiment(name="weighted, augmented", augmented=True),
    Experiment(name="scratch, augmented", **SCRATCH, augmented=True),
    Experiment(name="scratch, a tenth of the labels", **SCRATCH, label_share=0.1),
    Experiment(name="soft, a tenth of the labels", **soft(), label_share=0.1),
    Experiment(name="soft, T = 1", **soft(1.0)),
    Experiment(name="soft, T = 2", **soft(2.0)),
    Experiment(name="soft, T = 20", **soft(20.0)),
    Experiment(name="weighted, weight decay", weight_decay=0.1),
    Experiment(name="weighted, unlabelled too", unlabelled="all"),
    Experiment(name="weighted, unlabelled, sure", unlabelled="sure"),
    Experiment(name="weighted, unlabelled, sure, balanced", unlabelled="balanced"),
    Experiment(name="scratch, a tenth of the rate", **SCRATCH, rate_divisor=10.0),
    Experiment(name="scratch, deeper", **SCRATCH, student="deeper"),
    Experiment(name="hinton", recipe="hinton", config={"temperature": 5.0}),
    Experiment(name="tang", recipe="tang"),
    Experiment(name="scratch, a quarter of the labels", **SCRATCH, label_share=0.25),
    Experiment(name="soft, a quarter of the labels", **soft(), label_share=0.25),
    Experiment(name="weighted, longer", updates_factor=3),
    Experiment(name="scratch, longer", **SCRATCH, updates_factor=3),
    Experiment(name="patient teacher", recipe="patient-teacher", updates_factor=3, augmented=True),
    Experiment(name="weighted, deeper", student="deeper"),
    Experiment(name="weighted, augmented, deeper", student="deeper", augmented=True),
    Experiment(name="soft, second teacher", **soft(), teachers=("second",)),
    Experiment(name="soft, both teachers", **soft(), teachers=("first", "second")),
]
"""Experiments in the order of their runs; the most important ones come first."""


@dataclass(frozen=True)
class SeedData:
    """The data of a seed: images with labels, images whose labels are hidden, and validation images."""

    labelled: Dataset
    unlabelled: Dataset | None
    validation: Dataset


@lru_cache(maxsize=4)
def sources(name, spec):
    """(Training images, validation images)."""
    if name == FASHION:
        return halfstep.load_data(spec), halfstep.load_data(spec, split="test")
    whole = halfstep.load_data(DIGITS)
    rows = torch.arange(len(whole))
    return whole.only(rows[:-HELD_OUT]), whole.only(rows[-HELD_OUT:])


def seed_data(name, seed, options):
    """The seed's labelled images, equally many of each class, and its unlabelled ones."""
    train_images, validation = sources(name, options.data)
    if options.full:
        return SeedData(train_images, None, validation)
    count = options.labels if name == FASHION else options.labels // 10
    images = train_images.labelled(count // train_images.num_classes, seed=seed)
    hidden = (images.labels < 0).nonzero()[:, 0]
    order = torch.randperm(len(hidden), generator=torch.Generator().manual_seed(key(seed, 1)))
    unlabelled = images.only(hidden[order[: options.unlabelled]])
    return SeedData(images.only((images.labels >= 0).nonzero()[:, 0]), unlabelled, validation)


def training_data(experiment, images, seed, name, probabilities):
    """The training data of an experiment's student.

    probabilities  a function of no arguments: the teacher's probabilities of the unlabelled images
    """
    data, unlabelled = images.labelled, images.unlabelled
    if experiment.label_share < 1:
        each = max(1, round(len(data) / data.num_classes * experiment.label_share))
        data = data.labelled(each, seed=seed, keep_others=False)
    if experiment.unlabelled:
        rows = torch.arange(len(unlabelled))
        if experiment.unlabelled != "all":
            rows = filter_rows(probabilities(), even=experiment.unlabelled == "balanced")
        if len(rows):  # a poor teacher may be confident in no image
            unlabelled = unlabelled.only(rows)
            values = torch.cat([data.values, unlabelled.values])
            data = Dataset(values, torch.cat([data.labels, unlabelled.labels]), data.names)
    if not experiment.augmented:
        return data
    steps = ("mixup",) * (experiment.recipe == "patient-teacher") + STEPS[name]
    return replace(data, augmentation=Augmentation(steps=steps, views=VIEWS, seed=seed))


def filter_rows(probabilities, *, even):
    """Rows where the teacher is confident; `even`: the most confident, equally many of each class."""
    rows = confident_rows(probabilities, threshold=SURE)
    if not even or not len(rows):
        return rows
    counts = probabilities[rows].argmax(1).bincount()
    return confident_rows(probabilities, threshold=SURE, per_class=int(counts[counts > 0].min()))
