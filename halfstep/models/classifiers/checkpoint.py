"""Save and load a classifier: its recipe in FOLDER/classifier.json, its weights in classifier.safetensors.

    {"net": "cnn", "config": {...}, "preprocessing": {...}, "sha256": ...}

Code named in a file is not run: to load a user's own classifier its function must be named again.
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
    """The content of classifier.json."""

    net: str
    config: JsonObject
    preprocessing: _Preprocessing
    class_names: NotRequired[list[str]]
    label_smoothing: NotRequired[float]
    quantised: NotRequired[dict[str, str]]


STAGE = Path("stages") / "classifier"
"""Its folder in a run of `halfstep train classifier`."""


def save_classifier(
    classifier: nn.Module, folder: Path, *, dtype: torch.dtype | None = None
) -> None:
    """Write FOLDER/classifier.safetensors and FOLDER/classifier.json.

    dtype  of the weights in the file; they are read back into the network's own, float32
    """
    refuse_changed_classifier(classifier)
    name, config, preprocessing = classifier_recipe(classifier)
    about: JsonObject = {"net": name, "config": config, "preprocessing": preprocessing.to_json()}
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
    """Load a classifier in eval mode, from its folder or from the run that made it.

    Args:
        folder: the folder.
        net: the function, package.module:function, that builds a user's own network: code named in a file
            is not run.

    Returns:
        A module that maps images float [B, C, H, W] to logits [B, classes].

    Raises:
        CheckpointError: it is missing or damaged.
        ConfigError: its network is your own code, and `net` does not name it.
    """
    classifier_folder = classifier_in(Path(folder).expanduser())
    if classifier_folder is None:
        raise CheckpointError(f"'{folder}' holds no classifier: it has no classifier.json")
    stem = classifier_folder / "classifier"
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
    """The folder of classifier.json: this one, or a finished stage of this run.

    `CheckpointError` if a run has several, none of them in the usual stage.
    """
    if (folder / "classifier.json").exists():
        return folder
    if (folder / STAGE / "classifier.json").exists():
        return folder / STAGE
    stages = [path.parent for path in sorted((folder / "stages").glob("*/classifier.json"))]
    if len(stages) > 1:
        raise CheckpointError(
            f"'{folder}' holds {len(stages)} classifiers: name one of them, for example '{stages[-1]}'"
        )
    return stages[0] if stages else None


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
    """Give a classifier trained weights, in place; returns the names of tensors that keep their values.

    source  another classifier, a file of its state dict (.safetensors, or of torch.save), or `imagenet` for
            EfficientNet-Lite0

    All names and shapes must agree, except a last layer for another number of classes, which is not
    changed.  `CheckpointError` otherwise.
    """
    net = _without_preprocessing(classifier)
    if any(quantised_entry(net) for net in (classifier, source) if isinstance(net, nn.Module)):
        raise ConfigError(
            "int8 weights cannot be trained: start from the classifier that they were made from"
        )
    if isinstance(source, nn.Module):
        tensors = dict(_without_preprocessing(source).state_dict())
        source_name = f"this {type(source).__name__}"
    elif source == "imagenet":
        if not isinstance(net, Lite0Classifier):
            raise ConfigError(
                "the weights 'imagenet' are those of efficientnet-lite0: choose that network, or give a file"
            )
        tensors, source_name = published_lite0(), "the package of efficientnet-lite0"
    else:
        path = Path(source).expanduser()
        tensors, source_name = storage.read_state_dict(path), f"'{path}'"
    state = net.state_dict()
    head = [
        name
        for name, value in tensors.items()
        if name in state
        and value.shape != state[name].shape
        and value.shape[1:] == state[name].shape[1:]
    ]
    classes = {state[name].shape[0] for name in head}
    if len(classes) == 1 and len(head) <= 2:  # the weight and the bias of one layer
        tensors = {**tensors, **{name: state[name] for name in head}}
    storage.load_into(net, tensors, source_name)
    return head


def _without_preprocessing(classifier: nn.Module) -> nn.Module:
    return classifier.model if isinstance(classifier, Prepared) else classifier
