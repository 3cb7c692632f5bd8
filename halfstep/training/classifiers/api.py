"""Train a classifier into a run folder."""

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from halfstep.code_identity import user_code
from halfstep.config import JsonObject
from halfstep.data import as_data, DataLike, Dataset, spec_of
from halfstep.errors import ConfigError, DataError
from halfstep.identity import digest_of
from halfstep.methods.classifiers.supervised import Classification
from halfstep.models.classifiers.checkpoint import save_classifier
from halfstep.models.classifiers.feature_cnn import Classifier
from halfstep.models.classifiers.registry import (
    build_classifier,
    classifier_recipe,
    infer_classifier_config,
    refuse_changed_classifier,
    refuse_other_classes,
)
from halfstep.models.eval_mode import evaluating
from halfstep.rng import fork_rng, key
from halfstep.training.config import TrainingConfig
from halfstep.training.distributed import Processes
from halfstep.training.stages import load_weights, run_stages, RunOptions

SCALED_ON = 5_000
"""Training images for the scale of a feature network's features."""
NO_SAMPLES = "a classifier has no samples to draw"


@fork_rng()
def train_classifier(
    classifier: nn.Module | str,
    data: DataLike,
    out: Path | str,
    *,
    held_out: DataLike | None = None,
    method: Classification | None = None,
    training: TrainingConfig | None = None,
    job: RunOptions | None = None,
) -> nn.Module:
    """Train a classifier into the run folder `out`; returns it, in eval mode.

    The same call again goes on where it stopped, to the bit, or returns what is finished.

    Args:
        classifier: one from `build_classifier`, which maps images [B, C, H, W] to logits [B, classes] and
            is trained in place; or the name of one, which starts from weights that depend on the seed
            alone.
        data: labelled images [N, C, H, W]; those without a label (-1) are left out.
        out: the run's folder.
        held_out: labelled images whose accuracy is logged; they are not trained on.
        method: updates and label smoothing; by default `Classification()`.
        training: optimiser, batch, averaging and checkpoints; by default `TrainingConfig()`.
        job: device and progress.

    Raises:
        ConfigError: the data cannot be classified, before there is a folder; or the folder holds another
            run.
        DataError: data that cannot be read, or no image with a label.
        NonFinite: the loss is nan or infinite.
        Stopped: Ctrl-C or SIGTERM; the run is saved.
    """
    method, training = method or Classification(), training or TrainingConfig()
    job = job or RunOptions()
    processes = Processes(job.device)
    images = labelled_images(data)
    validation = None if held_out is None else held_out_dataset(held_out, images)
    net = classifier
    if isinstance(net, str):
        net = fresh_classifier(net, images, training)
    refuse_changed_classifier(net)
    refuse_unfit(net, images)
    net.class_names = images.names  # type: ignore[assignment]
    net.label_smoothing = method.label_smoothing  # type: ignore[assignment]
    for note in method.notes() if processes.first else ():
        job.callback.note(note)
    return run_stages(
        "train classifier",
        method.stages(net, held_out=validation),
        _options(method, net),
        images,
        out,
        training,
        job.validated_on(validation),
        processes,
        source=spec_of(data),
        write=lambda stage, folder: save_classifier(_scaled(stage.student, images), folder),
        read=lambda stage, folder: read_classifier(stage.student, folder),
        check=refuse_changed_classifier,
        undrawn=NO_SAMPLES,
    ).eval()


def _options(method: Classification, net: nn.Module) -> JsonObject:
    """The options of a run that data and training do not have."""
    name, config, preprocessing = classifier_recipe(net)
    return {
        **method.describe(),
        **user_code(type(method)),
        "net": name,
        "start": digest_of(net)[:16],
        "config": config,
        "preprocessing": preprocessing.to_json(),
    }


def read_classifier(classifier: nn.Module, folder: Path) -> None:
    """Give a classifier the weights that `save_classifier` wrote."""
    load_weights(classifier, folder / "classifier")


def fresh_classifier(
    name: str, data: Dataset, training: TrainingConfig, config: JsonObject | None = None
) -> nn.Module:
    """The named classifier for this data, with weights that depend on the seed alone."""
    options = {**infer_classifier_config(name, data.shape, data.num_classes), **(config or {})}
    with fork_rng(key(training.seed, 0)):
        return build_classifier(name, options)


def labelled_images(data: DataLike) -> Dataset:
    """The labelled samples of the data; refused unless they are images with labels."""
    data = as_data(data)
    if not isinstance(data, Dataset) or len(data.shape) != 3 or not data.num_classes:
        raise ConfigError(
            "a classifier needs labelled images, and this data has none: give other data"
        )
    if data.augmentation is not None and data.augmentation.mixes:
        raise ConfigError(
            "mixed images have no label, from which a classifier is trained: leave mixup out, or learn from "
            "a teacher, which answers for them (halfstep distill knowledge)"
        )
    if not data.unlabelled or data.labels is None:
        return data
    if data.unlabelled == len(data):
        raise DataError(
            f"none of these {len(data):,} images has a label, from which a classifier is trained: give "
            "labelled data"
        )
    labelled = data.only((data.labels >= 0).nonzero()[:, 0])
    return replace(labelled, augmentation=data.augmentation)


def held_out_dataset(data: DataLike, trained: Dataset) -> Dataset:
    """The held-out images; refused if they are the training data or have other classes."""
    images = as_data(data)
    if not isinstance(images, Dataset) or images.shape != trained.shape or not images.num_classes:
        raise ConfigError(
            f"held-out data must be labelled images of shape {list(trained.shape)}, got "
            f"{list(images.shape)}{'' if images.num_classes else ' without labels'}: give other data to "
            "validate on"
        )
    if trained.num_classes:
        refuse_other_classes(trained.names, images.names, "the training data", "the held-out data")
    if trained.num_classes and images.num_classes > trained.num_classes:
        raise ConfigError(
            f"the held-out data has {images.num_classes} classes and the training data "
            f"{trained.num_classes}: give data of the same classes"
        )
    if images.fingerprint() == trained.fingerprint():
        raise ConfigError(
            "the held-out data is the training data, on which accuracy says nothing: give other data to "
            "validate on, or a share of it, such as 0.15"
        )
    labels = images.labels
    if images.unlabelled and labels is not None:
        images = images.only((labels >= 0).nonzero()[:, 0])
    return replace(images, augmentation=None, flip=False)


@torch.no_grad()
def refuse_unfit(net: nn.Module, data: Dataset) -> None:
    """`ConfigError` if the network does not map two images of the data to logits of their classes."""
    problem = ""
    example = data.batch(torch.arange(2) % len(data)).x0.to(_device(net))
    try:
        with evaluating(net):
            logits = net(example)
        if logits.ndim != 2 or len(logits) != 2 or logits.shape[1] < data.num_classes:
            problem = f"it answers in the shape {list(logits.shape)}"
    except ConfigError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        problem = str(error).splitlines()[0]
    if problem:
        raise ConfigError(
            f"this {type(net).__name__} does not map images [2, {', '.join(map(str, data.shape))}] to "
            f"logits [2, {data.num_classes}] ({problem}): build it for this data"
        )


def _device(net: nn.Module) -> torch.device:
    return next((p.device for p in net.parameters()), torch.device("cpu"))


def _scaled(trained: nn.Module, data: Dataset) -> nn.Module:
    """A copy of a feature network with features of unit variance; the run itself can still be extended."""
    if not isinstance(trained, Classifier):
        return trained
    copied = copy.deepcopy(trained).to(data.values.device)
    return copied.unit_features(data.batch(torch.arange(min(len(data), SCALED_ON))).x0)
