"""Feature networks: what a distance between sets of images looks through."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import nn, Tensor

from halfstep import storage
from halfstep.errors import CheckpointError
from halfstep.nets.classifier import Classifier


@dataclass(frozen=True)
class Features:
    """A named map from images in [-1, 1], float [N, C, H, W], to features, float64 [N, D]."""

    name: str
    net: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, images: Tensor, *, batch: int = 512) -> Tensor:
        return torch.cat([self.net(part).double() for part in images.split(batch)])


def classifier_features(folder: Path) -> Features:
    """The penultimate layer of a classifier that `halfstep train classifier` wrote."""
    classifier = load_classifier(folder).eval().requires_grad_(False)
    return Features(f"classifier {folder.name}", classifier.features)


def digits_features() -> Features:
    """The digits classifier that comes with halfstep (presets/digits-classifier.toml made it)."""
    with as_file(files("halfstep") / "assets" / "digits-classifier") as folder:
        return classifier_features(folder)


def load_classifier(folder: Path) -> Classifier:
    """A classifier from its folder; `CheckpointError` if there is none."""
    stem = folder / "classifier"
    if not stem.with_suffix(".json").exists():
        raise CheckpointError(f"'{folder}' holds no classifier: it has no classifier.json")
    tensors, about = storage.load(stem)
    classifier = Classifier(**about["config"])
    storage.load_into(classifier, tensors, f"'{stem}.safetensors'")
    return classifier


def save_classifier(classifier: nn.Module, folder: Path) -> None:
    """Write FOLDER/classifier.safetensors and FOLDER/classifier.json."""
    folder.mkdir(parents=True, exist_ok=True)
    storage.save(folder / "classifier", classifier.state_dict(), {"config": classifier.config})
