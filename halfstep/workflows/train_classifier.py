"""Train an image classifier: for features, for labels, or as a teacher."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from halfstep.config.validate import CountOrNone, Validated
from halfstep.data import Augmentation, Data, Dataset, held_out_split, load
from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.classification import score_classifier, Scores
from halfstep.methods.classifiers.supervised import Classification
from halfstep.models.classifiers.checkpoint import initialise, load_classifier
from halfstep.models.classifiers.preprocessing import Preprocessing
from halfstep.models.classifiers.registry import (
    build_classifier,
    classifier_recipe,
    infer_classifier_config,
)
from halfstep.progress import Progress, SILENT
from halfstep.rng import fork_rng, key
from halfstep.schema import literals
from halfstep.training import TrainingConfig
from halfstep.training.classifiers.api import (
    held_out_dataset,
    labelled_images,
    refuse_unfit,
    train_classifier,
)
from halfstep.training.stages import RunOptions
from halfstep.workflows.options import DataOptions, FolderOptions
from halfstep.workflows.run_options import run_options_of


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions(Validated):
    """The network, and the weights that it starts from."""

    net: str | None = None
    """features (the default: a network for Fréchet distances), cnn, shallow, deeper, toy-teacher,
    toy-student, efficientnet-lite0, or package.module:function of your own."""
    net_config: dict[str, str] = field(default_factory=dict)
    """The network's own options, as NAME VALUE pairs: width 16 depth 2."""
    init: str | None = None
    """Start from these weights: the folder of a classifier or of its run, a file of weights, or imagenet for
    efficientnet-lite0."""
    resize: CountOrNone = 0
    """Resize images to this side; 0 leaves them. efficientnet-lite0 resizes by itself."""
    mean: tuple[float, ...] = ()
    """Mean of pixels in [0, 1], one number a channel, subtracted first: ImageNet's 0.485 0.456 0.406."""
    std: tuple[float, ...] = ()
    """Standard deviation, divided by next: ImageNet's 0.229 0.224 0.225. Without both, pixels are in
    [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Validated):
    """Augmentation, labels and held-out data."""

    augment: tuple[str, ...] = ()
    """Random views of the images: any of mixup, flip, crop, zoom, report, in this order."""
    views: CountOrNone = 0
    """Number of views of an image, itself included; 0 is a new one every time."""
    labels_per_class: CountOrNone = 0
    """Number of labelled images of each class to train with; 0 is all."""
    validate: str | None = None
    """Held-out data for the accuracy, as for --data; or a share of the data, such as 0.15."""


@dataclass(frozen=True, kw_only=True)
class TrainClassifierConfig:
    """Train an image classifier: for features, for labels, or as a teacher."""

    folder: FolderOptions
    dataset: DataOptions
    classifier: ClassifierOptions = field(default_factory=ClassifierOptions)
    images: ImageOptions = field(default_factory=ImageOptions)
    method: Classification = field(default_factory=Classification)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class ClassifierRun:
    """A classifier that is ready for training; nothing is written yet.

    fresh  names of tensors with random weights, if the others start from trained ones
    """

    config: TrainClassifierConfig
    data: Dataset
    held_out: Dataset | None
    net: nn.Module
    fresh: list[str]

    def run(self, job: RunOptions | None = None) -> nn.Module:
        """Train the classifier into the run folder; returns it, in eval mode."""
        config = self.config
        return train_classifier(
            self.net, self.data, config.folder.out, held_out=self.held_out, method=config.method,
            training=config.training, job=job or run_options_of(config),
        )  # fmt: skip

    def score(self, net: nn.Module, *, progress: Progress = SILENT) -> Scores:
        """Scores on the held-out data; without any, on the training images without augmentation."""
        data = self.held_out or replace(self.data, augmentation=None, flip=False)
        return score_classifier(net, data, progress=progress)


def prepare_classifier(
    config: TrainClassifierConfig, *, progress: Progress = SILENT
) -> ClassifierRun:
    """Read the data and build the classifier; `run` of the result trains it.

    Args:
        config: the options of `halfstep train classifier`.
        progress: progress of reading the data.

    Raises:
        ConfigError: the folder cannot be written, or the data are not labelled images that fit.
        DataError: data that cannot be read.
    """
    config.folder.check()
    data = config.dataset.load(progress)
    if not isinstance(data, Dataset) or len(data.shape) != 3 or not data.num_classes:
        raise ConfigError(
            f"a classifier needs labelled images, and '{config.dataset.data}' has none: give other data"
        )
    data, held_out = training_images(data, config.images, config.dataset, config.training.seed)
    net, fresh = new_classifier(config.classifier, data, config.training.seed)
    refuse_unfit(net, data)
    return ClassifierRun(config, data, held_out, net, fresh)


def training_images(
    data: Dataset, images: ImageOptions, dataset: DataOptions, seed: int
) -> tuple[Dataset, Dataset | None]:
    """The labelled images for training, augmented, and the held-out ones."""
    data, held_out = split_held_out(data, images, dataset)
    if images.labels_per_class:
        data = data.labelled(images.labels_per_class, seed=seed, keep_others=False)
    data = labelled_images(augmented(data, images, seed))
    return data, None if held_out is None else held_out_dataset(held_out, data)


def split_held_out(
    data: Dataset, images: ImageOptions, dataset: DataOptions
) -> tuple[Dataset, Data | None]:
    """The data for training, and the held-out data; None without the option `validate`."""
    if images.validate is None:
        return data, None
    share = share_of(images.validate)
    if share is not None:
        return data.apart(share)
    split = held_out_split(images.validate)
    return data, load(images.validate, size=dataset.size, channels=dataset.channels, split=split)


def augmented(data: Dataset, images: ImageOptions, seed: int) -> Dataset:
    """The data with the augmentation of the options."""
    if images.augment:
        steps = Augmentation(steps=images.augment, views=images.views, seed=seed)
        return replace(data, augmentation=steps)
    if images.views:
        raise ConfigError(
            f"--views {images.views} are of an augmentation, and there is none: add for example "
            "--augment flip crop"
        )
    return data


def share_of(text: str) -> float | None:
    """The text as a number in (0, 1); None if it is no number."""
    try:
        value = float(text)
    except ValueError:
        return None
    if not 0 < value < 1:
        raise ConfigError(
            f"--validate {text} is no share of the data: write one in (0, 1), such as 0.15"
        )
    return value


def new_classifier(
    options: ClassifierOptions, data: Dataset, seed: int
) -> tuple[nn.Module, list[str]]:
    """The network, and the names of its random tensors if the others start from trained weights."""
    init, name, config = options.init, options.net or "features", literals(options.net_config)
    before = Preprocessing(
        resize=options.resize,
        gray3=len(options.mean) == 3 and data.shape[0] == 1,
        mean=options.mean,
        std=options.std,
    )
    source: nn.Module | str | None = init
    if init is not None and Path(init).expanduser().is_dir():
        source = load_classifier(init, net=options.net)
        name, config_of_init, prepared = classifier_recipe(source)
        if options.net not in (None, name):
            raise ConfigError(
                f"'{init}' holds a {name}, and --net asks for {options.net}: leave --net out"
            )
        config = {**config_of_init, **config}
        before = prepared if before == Preprocessing() else before
        fits = infer_classifier_config(name, data.shape, data.num_classes)
        config["num_classes"] = fits.get("num_classes", config.get("num_classes"))
        if config["num_classes"] is None:
            del config["num_classes"]
    else:
        config = {**infer_classifier_config(name, data.shape, data.num_classes), **config}
    with fork_rng(key(seed, 0)):
        net = build_classifier(name, config, preprocessing=before)
    return net, [] if source is None else initialise(net, source)
