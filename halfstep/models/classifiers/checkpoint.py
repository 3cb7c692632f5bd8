"""A classifier on disk: FOLDER/classifier.json says how it is built, classifier.safetensors has its weights.

    {"net": "cnn", "config": {...}, "preprocessing": {...}, "sha256": ...}

A file never names code that is run: a classifier of the user's own loads when its function is named again.
"""

from pathlib import Path
from typing import NotRequired, TypedDict

import torch
from torch import nn

from halfstep import files, storage
from halfstep.config import JsonObject
from halfstep.errors import CheckpointError, ConfigError, HalfstepError
from halfstep.models.classifiers.efficientnet import Lite0Classifier, published_lite0
from halfstep.models.classifiers.preprocessing import Prepared, Preprocessing
from halfstep.models.classifiers.registry import (
    build_classifier,
    class_names,
    classifier_recipe,
    label_smoothing,
    refuse_changed_classifier,
)
from halfstep.models.compression.int8 import load_quantised, plain_tensors, quantised_entry


class _Preprocessing(TypedDict, total=False):
    resize: int
    gray3: bool
    mean: list[float]
    std: list[float]


class _About(TypedDict):
    """What classifier.json says."""

    net: str
    config: JsonObject
    preprocessing: _Preprocessing
    class_names: NotRequired[list[str]]
    label_smoothing: NotRequired[float]
    quantised: NotRequired[dict[str, str]]


STAGE = Path("stages") / "classifier"
"""Where a run of `halfstep train classifier` has it."""


def save_classifier(
    classifier: nn.Module, folder: Path, *, dtype: torch.dtype | None = None
) -> None:
    """Write FOLDER/classifier.safetensors and FOLDER/classifier.json.

    dtype  of the weights in the file; they are read back into the network's own, float32
    """
    refuse_changed_classifier(classifier)
    name, config, preprocessing = classifier_recipe(classifier)
    about: JsonObject = {
        "net": name,
        "config": config,
        "preprocessing": preprocessing.to_json(),
    }
    if names := class_names(classifier):
        about["class_names"] = list(names)
    if share := label_smoothing(classifier):
        about["label_smoothing"] = share
    tensors = plain_tensors(classifier)
    if dtype is not None:
        tensors = storage.rounded(tensors, dtype)
    storage.save(
        files.make_folder(folder) / "classifier", tensors, about | quantised_entry(classifier)
    )


def load_classifier(folder: Path | str, *, net: str | None = None) -> nn.Module:
    """A classifier in eval mode, from its folder or from the run that made it.

    net  the function, package.module:function, that built a network of one's own: said again, because a
         file does not name code that is run

    `CheckpointError` if there is none, or it is damaged.
    """
    place = classifier_in(Path(folder).expanduser())
    if place is None:
        raise CheckpointError(f"'{folder}' holds no classifier: it has no classifier.json")
    stem = place / "classifier"
    tensors, about = storage.load(stem, _About)
    classifier = _built(stem, about, net)
    load_quantised(classifier, tensors, about, f"'{stem}.safetensors'")
    classifier.class_names = tuple(about.get("class_names", ()))  # type: ignore[assignment]
    share = about.get("label_smoothing", 0.0)
    if not 0 <= share < 1:
        raise CheckpointError(f"'{stem}.json' is damaged: label_smoothing is no share, {share!r}")
    classifier.label_smoothing = share
    return classifier.eval()


def classifier_in(folder: Path) -> Path | None:
    """Where classifier.json is: in this folder, or in the finished stage of this run, of any name.

    `CheckpointError` where a run has several, none of them called as ours.
    """
    if (folder / "classifier.json").exists():
        return folder
    if (folder / STAGE / "classifier.json").exists():
        return folder / STAGE
    found = sorted((folder / "stages").glob("*/classifier.json"))
    if len(found) > 1:
        raise CheckpointError(
            f"'{folder}' holds {len(found)} classifiers: name one of them, for example '{found[-1].parent}'"
        )
    return found[0].parent if found else None


def _built(stem: Path, about: JsonObject, net: str | None) -> nn.Module:
    name = about["net"]
    if ":" in name and net != name:
        raise ConfigError(
            f"the classifier in '{stem.parent}' is built by '{name}', code of your own: say so with "
            f"net='{name}' (--net {name})"
        )
    preprocessing = Preprocessing.from_json(about["preprocessing"])
    try:
        return build_classifier(name, about["config"], preprocessing=preprocessing)
    except HalfstepError:
        raise
    except Exception as error:
        if ":" in name:
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CheckpointError(
            f"'{stem}.json' says config of '{name}', and no such classifier can be built ({reason}): copy "
            "the file back from where it is whole"
        ) from error


def initialise(classifier: nn.Module, source: nn.Module | Path | str) -> list[str]:
    """Give a classifier trained weights, in place; returns the names of what starts afresh.

    source  another classifier, or a file of its state dict (.safetensors, or what torch.save wrote), or
            `imagenet` for EfficientNet-Lite0

    All names must be there, and all shapes equal, but for a last layer of another number of classes: that
    stays as it is.  `CheckpointError` otherwise.
    """
    mine = _inner(classifier)
    if any(quantised_entry(net) for net in (classifier, source) if isinstance(net, nn.Module)):
        raise ConfigError(
            "int8 weights cannot be trained: start from the classifier that they were made from"
        )
    if isinstance(source, nn.Module):
        tensors, said = dict(_inner(source).state_dict()), f"this {type(source).__name__}"
    elif source == "imagenet":
        if not isinstance(mine, Lite0Classifier):
            raise ConfigError(
                "the weights 'imagenet' are those of efficientnet-lite0: choose that network, or give a file"
            )
        tensors, said = published_lite0(), "the package of efficientnet-lite0"
    else:
        path = Path(source).expanduser()
        tensors, said = storage.read_state_dict(path), f"'{path}'"
    own = mine.state_dict()
    head = [
        name
        for name, value in tensors.items()
        if name in own and value.shape != own[name].shape and value.shape[1:] == own[name].shape[1:]
    ]
    classes = {own[name].shape[0] for name in head}
    if len(classes) == 1 and len(head) <= 2:  # the weight and the bias of one layer
        tensors = {**tensors, **{name: own[name] for name in head}}
    storage.load_into(mine, tensors, said)
    return head


def _inner(classifier: nn.Module) -> nn.Module:
    """Without its preprocessing, which is no part of others' weights."""
    return classifier.model if isinstance(classifier, Prepared) else classifier
