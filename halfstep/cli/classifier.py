"""`halfstep train classifier`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from rich.console import Console
from torch import nn

from halfstep.cli.options import Flat, parse, Source, Where
from halfstep.cli.plan import rehearse
from halfstep.cli.progress import counting, loading, say, terminal
from halfstep.cli.runs import carried_out, describe_data, updates_on
from halfstep.data import Augmentation, Data, Dataset, load
from halfstep.errors import ConfigError
from halfstep.evaluation.classification import score_classifier, Scores
from halfstep.kinds import CountOrNone
from halfstep.methods.classification import Classification
from halfstep.nets.classifiers import build_classifier, classifier_recipe, fitting_classifier
from halfstep.nets.classifiers_on_disk import initialise, load_classifier
from halfstep.nets.preprocessing import Preprocessing
from halfstep.noise import key, untouched
from halfstep.schema import literals
from halfstep.training import Training
from halfstep.training.classifiers import classified, judging, refuse_unfit, train_classifier
from halfstep.training.jobs import Job

WITH_TEST = ("fashion-mnist", "cifar10")
"""Sources that have test images apart."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """The network, and what it starts from."""

    net: str | None = None
    """features (the default: what distances look through), cnn, shallow, deeper, toy-teacher, toy-student,
    efficientnet-lite0, or package.module:function of your own."""
    net_config: dict[str, str] = field(default_factory=dict)
    """The network's own options, as NAME VALUE pairs: width 16 depth 2."""
    init: str | None = None
    """Start from these weights: the folder of a classifier or of its run, a file of weights, or imagenet for
    efficientnet-lite0."""
    resize: CountOrNone = 0
    """Give the network images of this side; 0 leaves them. efficientnet-lite0 resizes by itself."""
    mean: tuple[float, ...] = ()
    """Taken off pixels in [0, 1], one number a channel, before the network: ImageNet's 0.485 0.456 0.406."""
    std: tuple[float, ...] = ()
    """And divided by: ImageNet's 0.229 0.224 0.225. Without the two pixels are in [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What of the data it sees, and how."""

    augment: tuple[str, ...] = ()
    """Any of mixup, flip, crop, zoom, report, in their order: random views of the images."""
    views: CountOrNone = 0
    """How many views an image has, itself included; 0: another one every time."""
    labels_per_class: CountOrNone = 0
    """Train with so many labelled images of each class; 0 is all."""
    validate: str | None = None
    """Data for the accuracy, as for --data, never trained on; or a share of the data, such as 0.15."""


@dataclass(frozen=True, kw_only=True)
class TrainClassifier:
    """Train an image classifier: for features, for labels, or as a teacher."""

    where: Annotated[Where, Flat]
    source: Annotated[Source, Flat]
    built: Annotated[Built, Flat] = field(default_factory=Built)
    shown: Annotated[Shown, Flat] = field(default_factory=Shown)
    method: Annotated[Classification, Flat] = field(default_factory=Classification)
    training: Annotated[Training, Flat] = field(default_factory=Training)


def classifier(argv: Sequence[str]) -> int:
    """Train a classifier; say where it is and how good on what it has not seen."""
    console = terminal()
    options = parse(TrainClassifier, argv, prog="halfstep train classifier")
    options.where.check()
    method, training, where, shown = options.method, options.training, options.where, options.shown
    found = loading(console, options.source)
    if not isinstance(found, Dataset) or len(found.shape) != 3 or not found.classes:
        raise ConfigError(
            f"a classifier needs labelled images, and '{options.source.data}' has none: give other data"
        )
    data, held = chosen(found, shown, options.source, training.seed)
    net, fresh = built(options.built, data, training.seed)
    refuse_unfit(net, data)

    def work(job: Job) -> nn.Module:
        return train_classifier(
            net, data, where.out, held_out=held, method=method, training=training, job=job
        )

    if where.dry_run:
        return rehearse(console, options, work)
    say(console, "network", f"{classifier_recipe(net)[0]}, {_count(net):,} parameters")
    if options.built.init is not None:
        rest = f"; afresh: {', '.join(fresh)}" if fresh else ""
        say(console, "starts", f"from {options.built.init}{rest}")
    say(console, "data", describe_data(options.source, data))
    say(console, "updates", updates_on(method.updates, training, where.device))
    with carried_out(where, options, console) as job:
        net = work(job)
    if held is None:
        seen = replace(data, augmentation=None, flip=False)
        share = scored(console, net, seen).accuracy.value
        say(console, "accuracy", f"{share:.1%} on what it was trained with")
    else:
        tell(console, scored(console, net, held), named(shown.validate or ""))
    say(console, "at", where.out / "stages" / "classifier")
    return 0


def chosen(
    data: Dataset, shown: Shown, source: Source, seed: int
) -> tuple[Dataset, Dataset | None]:
    """What is trained with, and what is held out."""
    held: Data | None = None
    if shown.validate is not None:
        share = share_of(shown.validate)
        if share is None:
            held = held_out(shown.validate, source)
        else:
            data, held = data.apart(share)
    if shown.labels_per_class:
        data = data.labelled(shown.labels_per_class, seed=seed, rest=False)
    if shown.augment:
        how = Augmentation(steps=shown.augment, views=shown.views, seed=seed)
        data = replace(data, augmentation=how)
    elif shown.views:
        raise ConfigError(
            f"--views {shown.views} are of an augmentation, and there is none: add for example "
            "--augment flip crop"
        )
    data = classified(data)
    return data, None if held is None else judging(held, data)


def held_out(named: str, source: Source) -> Data:
    """What is never trained on: the test images where the name has some, else all of it."""
    split = "test" if named.partition(":")[0] in WITH_TEST else "train"
    return load(named, size=source.size, channels=source.channels, split=split)


def share_of(text: str) -> float | None:
    """The number in (0, 1), if it is one."""
    try:
        value = float(text)
    except ValueError:
        return None
    if not 0 < value < 1:
        raise ConfigError(
            f"--validate {text} is no share of the data: write one in (0, 1), such as 0.15"
        )
    return value


def named(validate: str) -> str:
    """What --validate asks for, in words."""
    share = share_of(validate)
    return validate if share is None else f"the {100 * share:g} % held out"


def built(asked: Built, data: Dataset, seed: int) -> tuple[nn.Module, list[str]]:
    """The network, and the names of what starts afresh where the rest is taken from trained weights."""
    init, name, config = asked.init, asked.net or "features", literals(asked.net_config)
    before = Preprocessing(
        resize=asked.resize,
        gray3=len(asked.mean) == 3 and data.shape[0] == 1,
        mean=asked.mean,
        std=asked.std,
    )
    source: nn.Module | str | None = init
    if init is not None and Path(init).expanduser().is_dir():
        source = load_classifier(init, net=asked.net)
        theirs, kept, prepared = classifier_recipe(source)
        if asked.net not in (None, theirs):
            raise ConfigError(
                f"'{init}' holds a {theirs}, and --net asks for {asked.net}: leave --net out"
            )
        name, config = theirs, {**kept, **config}
        before = prepared if before == Preprocessing() else before
        fits = fitting_classifier(name, data.shape, data.classes)
        config["classes"] = fits.get("classes", config.get("classes"))
        if config["classes"] is None:
            del config["classes"]
    else:
        config = {**fitting_classifier(name, data.shape, data.classes), **config}
    with untouched(key(seed, 0)):
        net = build_classifier(name, config, preprocessing=before)
    return net, [] if source is None else initialise(net, source)


def scored(console: Console, net: nn.Module, data: Dataset) -> Scores:
    """On all of the data, with a bar."""
    with counting(console, "asking about all images") as progress:
        return score_classifier(net, data, progress=progress)


def tell(console: Console, scores: Scores, held: str) -> None:
    """What a classifier scores on held-out data, in words."""
    right = scores.accuracy
    say(
        console,
        "accuracy",
        f"{right.value:.1%} ({100 * right.low:.1f} to {100 * right.high:.1f}, 95 %) on {held}, all "
        f"{scores.rows:,} images, which it has not seen",
    )
    say(console, "surprise", f"{scores.nll:.3f} nats; calibration error {scores.calibration:.3f}")


def _count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())
