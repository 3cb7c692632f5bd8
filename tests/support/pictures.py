"""Random pictures and arrays for tests of data."""

import numpy as np
import torch
from PIL import Image

from halfstep.data import Dataset

RNG = np.random.default_rng(0)


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def chw(array):
    """What a gray or RGB picture must load as."""
    return torch.from_numpy(array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0).copy())


def images(n=5, labels=None, **options):
    values = torch.from_numpy(pixels(n, 3, 4, 6))
    return Dataset(values, None if labels is None else torch.tensor(labels), **options)


def npy(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    return str(tmp_path / "a.npy")
