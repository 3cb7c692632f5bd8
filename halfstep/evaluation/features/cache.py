"""Features of a data set, kept on disk by their content: computed once a data set and network."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from halfstep import files, storage
from halfstep.data import Data
from halfstep.errors import CheckpointError
from halfstep.evaluation.features.registry import Features
from halfstep.identity import sha256_of
from halfstep.pixels import as_floats
from halfstep.version import __version__

CHUNK = 1024


def data_features(features: Features, data: Data | Tensor, *, cache: Path | None) -> Tensor:
    """The features of all of a data set, float64 [N, D], from the cache where it has them.

    data   a data set, or its images in [-1, 1], float [N, C, H, W], or uint8: the same images are the
           same entry
    cache  the folder, such as `cache_folder()`; None computes them

    An entry belongs to the bytes of the images, the weights of the network, its preprocessing and this
    version of halfstep: when one of them changes, it is computed anew.  So is an entry that is damaged,
    and one of features without a digest; a cache that cannot be written is done without.
    """
    if cache is None or not features.digest:
        return _computed(features, data)
    about = {
        "data": fingerprint(data),
        "network": features.digest,
        "preprocessing": features.preprocessing,
        "halfstep": __version__,
    }
    key = sha256_of((repr(sorted(about.items())),))
    stem = cache / f"features-{key[:32]}"
    with suppress(CheckpointError):  # none yet, or damaged
        tensors, known = storage.load(stem)
        if known == about and set(tensors) == {"features"}:
            return tensors["features"].double()
    found = _computed(features, data)
    with suppress(CheckpointError, OSError):
        files.make_folder(cache)
        storage.save(stem, {"features": _smallest(found)}, about)
    return found


def fingerprint(data: Data | Tensor) -> str:
    """sha256 of the images as a network sees them, in [-1, 1], with their type and shape, in order."""
    return sha256_of(_parts(data))


def cache_folder() -> Path:
    """Where features are kept: HALFSTEP_CACHE, or halfstep in XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("HALFSTEP_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "halfstep"


def _computed(features: Features, data: Data | Tensor) -> Tensor:
    return torch.cat([features(part) for part in _parts(data)])


def _parts(data: Data | Tensor) -> Iterator[Tensor]:
    """The images in [-1, 1], some at a time."""
    if isinstance(data, Tensor):
        for part in data.split(CHUNK):
            yield as_floats(part)
        return
    for rows in torch.arange(len(data)).split(CHUNK):
        yield data.batch(rows).x0


def _smallest(features: Tensor) -> Tensor:
    """In float32 where that loses nothing, as with every network that computes in it."""
    short = features.float()
    return short if torch.equal(short.double(), features) else features
