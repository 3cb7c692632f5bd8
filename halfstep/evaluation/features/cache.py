"""Cache of the features of data sets on disk, by content."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from halfstep import files, storage
from halfstep.data import Data
from halfstep.division import ALONE, Division
from halfstep.errors import CheckpointError
from halfstep.evaluation.features.registry import Features
from halfstep.identity import sha256_of
from halfstep.pixels import as_floats
from halfstep.progress import Progress
from halfstep.version import __version__

CHUNK = 1024


def data_features(
    features: Features, data: Data | Tensor, *, cache: Path | None, division: Division = ALONE
) -> Tensor:
    """Features of a whole data set, float64 [N, D], read from the cache if it has them.

    data   a data set, or images [N, C, H, W], float in [-1, 1] or uint8; the same images share an entry
    cache  the folder, such as `cache_folder()`; None disables the cache
    division  divides them among processes, which share the features

    The key of an entry contains the bytes of the images, the weights of the network, its preprocessing and
    the version of halfstep.  Damaged entries and features without a digest are computed again; a cache that
    cannot be written is skipped.
    """
    if cache is None or not features.digest:
        return _computed(features, data, division)
    about = {
        "data": fingerprint(data),
        "network": features.digest,
        "preprocessing": features.preprocessing,
        "halfstep": __version__,
    }
    key = sha256_of((repr(sorted(about.items())),))
    stem = cache / f"features-{key[:32]}"
    with suppress(CheckpointError):  # missing or damaged
        tensors, stored = storage.load(stem)
        if stored == about and set(tensors) == {"features"}:
            return tensors["features"].double()
    computed = _computed(features, data, division)
    with suppress(CheckpointError, OSError):
        files.make_folder(cache)
        storage.save(stem, {"features": _smallest(computed)}, about)
    return computed


def fingerprint(data: Data | Tensor) -> str:
    """sha256 of the images in [-1, 1], in order, with their type and shape."""
    return sha256_of(_parts(data))


def _computed(features: Features, data: Data | Tensor, division: Division) -> Tensor:
    return torch.cat(list(division.map(partial(_of_part, features), _parts(data))))


def _of_part(features: Features, part: Tensor, progress: Progress) -> Tensor:
    return features(part)


def _parts(data: Data | Tensor) -> Iterator[Tensor]:
    """The images in [-1, 1], in parts."""
    if isinstance(data, Tensor):
        for part in data.split(CHUNK):
            yield as_floats(part)
        return
    for rows in torch.arange(len(data)).split(CHUNK):
        yield data.batch(rows).x0


def _smallest(features: Tensor) -> Tensor:
    """The features in float32 if that is exact, as for networks that compute in it."""
    short = features.float()
    return short if torch.equal(short.double(), features) else features
