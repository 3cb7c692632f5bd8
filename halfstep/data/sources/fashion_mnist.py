"""Fashion-MNIST (Xiao et al. 2017) from its four IDX files, gzipped or not."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from halfstep.data.dataset import Dataset
from halfstep.errors import ConfigError, DataError

NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
STEMS = {"train": "train", "test": "t10k"}
LAYOUTS = (".", "raw", "FashionMNIST/raw")
"""Sub-folders that may hold the files: torchvision makes FashionMNIST/raw."""


def load(folder: Path, split: str, size: int | None = None) -> Dataset:
    """60,000 or 10,000 gray images of 28x28 in ten classes.

    A `size` above 28 pads evenly with background (0) instead of enlarging, so every pixel is kept.
    """
    stem = STEMS[split]
    images = read_idx(_find(folder, f"{stem}-images-idx3-ubyte"), dims=3)
    labels = read_idx(_find(folder, f"{stem}-labels-idx1-ubyte"), dims=1)
    values = torch.from_numpy(_padded(images, size)[:, None])
    try:
        return Dataset(values, torch.from_numpy(labels.astype(np.int64)), NAMES)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from None


def _find(folder: Path, name: str) -> Path:
    for layout in LAYOUTS:
        for file in (folder / layout / name, folder / layout / f"{name}.gz"):
            if file.is_file():
                return file
    raise DataError(
        f"no {name} or {name}.gz in {folder}, its raw or FashionMNIST/raw: put the four IDX files "
        "there"
    )


def read_idx(file: Path, dims: int) -> NDArray[np.uint8]:
    """An IDX file of bytes with this many axes: 0, 0, 8, dims, big-endian lengths, the data."""
    try:
        raw = file.read_bytes()
        raw = gzip.decompress(raw) if file.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {file}: {error}; fetch it again") from None
    head = 4 + 4 * dims
    if len(raw) < head or raw[:4] != bytes([0, 0, 8, dims]):
        raise DataError(f"{file} is not an IDX file of bytes with {dims} axes: fetch it again")
    shape = [int(n) for n in np.frombuffer(raw[4:head], ">u4")]
    if len(raw) - head != math.prod(shape):
        raise DataError(
            f"{file} should hold {math.prod(shape):,} bytes of shape {shape}, it holds "
            f"{len(raw) - head:,}: fetch it again"
        )
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape).copy()


def _padded(images: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    height, width = images.shape[1:]
    if size is None or size == height == width:
        return images
    down, right = size - height, size - width
    if min(down, right) < 0 or down % 2 or right % 2:
        raise ConfigError(
            f"images of {height}x{width} cannot be padded evenly to size {size}: write "
            f"size={height} or, with a margin, size={max(height, width) + 4}"
        )
    margins = (0, 0), (down // 2, down // 2), (right // 2, right // 2)
    return np.pad(images, margins)
