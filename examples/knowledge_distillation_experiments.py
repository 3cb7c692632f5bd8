"""The experiments of knowledge_distillation_report.py, and the data that each seed has for them."""

from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

import halfstep
from halfstep import Augmentation, Dataset
from halfstep.data.label_subsets import confident_rows
from halfstep.rng import key

DIGITS, FASHION = "digits", "fashion-mnist"
HELD_OUT = 1000
"""Of the 1,797 digits; Fashion-MNIST has its test images."""
STEPS = {DIGITS: ("crop",), FASHION: ("flip", "crop")}
"""Augmentation: mirrored digits are none."""
VIEWS = 8
"""Of each augmented image, so that the teacher's answers can be kept."""
SURE = 0.8
"""The teacher's confidence in an unlabelled image that passes the filter."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A student, what it learns and from whom.

    of    the labelled images it has: all, or a share of them
    more  what it sees besides: images without labels, all of them or those that pass a filter
    """

    name: str
    learns: str = "report"
    config: dict[str, float] = field(default_factory=dict)
    student: str = "shallow"
    teachers: tuple[str, ...] = ("first",)
    slower: float = 1.0
    longer: int = 1
    weight_decay: float = 0.0
    augmented: bool = False
    of: float = 1.0
    more: str = ""


SCRATCH = {"learns": "hinton", "config": {"soft_weight": 0.0, "hard_weight": 1.0}}


def soft(temperature=5.0):
    """The report's soft targets alone: cross-entropy, without T^2."""
    return {"config": {"temperature": temperature, "soft_weight": 1.0, "hard_weight": 0.0}}


EXPERIMENTS = [
    Experiment(name="toy, scratch", **SCRATCH, student="toy-student", longer=3),
    Experiment(name="toy, soft", **soft(), student="toy-student", longer=3),
    Experiment(name="toy, soft, T = 0.5", **soft(0.5), student="toy-student", longer=3),
    Experiment(name="scratch", **SCRATCH),
    Experiment(name="soft", **soft()),
    Experiment(name="weighted"),
    Experiment(name="logits", learns="logits"),
    Experiment(name="logits, deeper", learns="logits", student="deeper"),
    Experiment(name="weighted, augmented", augmented=True),
    Experiment(name="scratch, augmented", **SCRATCH, augmented=True),
    Experiment(name="scratch, a tenth of the labels", **SCRATCH, of=0.1),
    Experiment(name="soft, a tenth of the labels", **soft(), of=0.1),
    Experiment(name="soft, T = 1", **soft(1.0)),
    Experiment(name="soft, T = 2", **soft(2.0)),
    Experiment(name="soft, T = 20", **soft(20.0)),
    Experiment(name="weighted, weight decay", weight_decay=0.1),
    Experiment(name="weighted, unlabelled too", more="all"),
    Experiment(name="weighted, unlabelled, sure", more="sure"),
    Experiment(name="weighted, unlabelled, sure, balanced", more="balanced"),
    Experiment(name="scratch, a tenth of the rate", **SCRATCH, slower=10.0),
    Experiment(name="scratch, deeper", **SCRATCH, student="deeper"),
    Experiment(name="hinton", learns="hinton", config={"temperature": 5.0}),
    Experiment(name="tang", learns="tang"),
    Experiment(name="scratch, a quarter of the labels", **SCRATCH, of=0.25),
    Experiment(name="soft, a quarter of the labels", **soft(), of=0.25),
    Experiment(name="weighted, longer", longer=3),
    Experiment(name="scratch, longer", **SCRATCH, longer=3),
    Experiment(name="patient teacher", learns="patient-teacher", longer=3, augmented=True),
    Experiment(name="weighted, deeper", student="deeper"),
    Experiment(name="weighted, augmented, deeper", student="deeper", augmented=True),
    Experiment(name="soft, second teacher", **soft(), teachers=("second",)),
    Experiment(name="soft, both teachers", **soft(), teachers=("first", "second")),
]
"""In the order they are run in: what most is compared with comes first."""


@dataclass(frozen=True)
class World:
    """What a seed has: images with labels, images whose labels are hidden, and all that is validated on."""

    labelled: Dataset
    unlabelled: Dataset | None
    validation: Dataset


@lru_cache(maxsize=4)
def sources(name, spec):
    """(Images to learn from, images to validate on)."""
    if name == FASHION:
        return halfstep.load_data(spec), halfstep.load_data(spec, split="test")
    whole = halfstep.load_data(DIGITS)
    rows = torch.arange(len(whole))
    return whole.only(rows[:-HELD_OUT]), whole.only(rows[-HELD_OUT:])


def world(name, seed, options):
    """The seed's choice of labelled images, as many of each class, and of unlabelled ones."""
    learnt, validation = sources(name, options.data)
    if options.full:
        return World(learnt, None, validation)
    wanted = options.labels if name == FASHION else options.labels // 10
    marked = learnt.labelled(wanted // learnt.num_classes, seed=seed)
    rest = (marked.labels < 0).nonzero()[:, 0]
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(key(seed, 1)))
    unlabelled = marked.only(rest[order[: options.unlabelled]])
    return World(marked.only((marked.labels >= 0).nonzero()[:, 0]), unlabelled, validation)


def seen_by(experiment, here, seed, name, surely):
    """The data that an experiment's student is trained on.

    surely  the teacher's probabilities of the unlabelled images, once they are asked for
    """
    data, more = here.labelled, here.unlabelled
    if experiment.of < 1:
        each = max(1, round(len(data) / data.num_classes * experiment.of))
        data = data.labelled(each, seed=seed, rest=False)
    if experiment.more:
        rows = torch.arange(len(more))
        if experiment.more != "all":
            rows = passing(surely(), even=experiment.more == "balanced")
        if len(rows):  # a poor teacher may be sure of none
            more = more.only(rows)
            both = torch.cat([data.values, more.values]), torch.cat([data.labels, more.labels])
            data = Dataset(*both, data.names)
    if not experiment.augmented:
        return data
    steps = ("mixup",) * (experiment.learns == "patient-teacher") + STEPS[name]
    return replace(data, augmentation=Augmentation(steps=steps, views=VIEWS, seed=seed))


def passing(probabilities, *, even):
    """Rows of which the teacher is sure; `even`: the surest, of each class as many as of its rarest."""
    rows = confident_rows(probabilities, threshold=SURE)
    if not even or not len(rows):
        return rows
    counts = probabilities[rows].argmax(1).bincount()
    return confident_rows(probabilities, threshold=SURE, per_class=int(counts[counts > 0].min()))
