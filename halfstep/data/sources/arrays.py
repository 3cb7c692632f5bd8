"""Arrays that numpy saved: .npy with values, .npz with values and labels."""

import math
from pathlib import Path
from typing import Any, IO

import numpy as np
import torch
from numpy.lib.format import (
    MAGIC_PREFIX,
    read_array_header_1_0,
    read_array_header_2_0,
    read_magic,
)
from numpy.typing import NDArray

from halfstep.capacity import memory
from halfstep.data.dataset import Dataset
from halfstep.errors import DataError

Array = NDArray[Any]

VALUES, LABELS = ("images", "x", "arr_0"), ("labels", "y")
"""The keys that are read from an .npz; others are ignored, but a second unnamed array is refused."""

MAPPED = 2**30
"""Bytes from which an .npy file is memory-mapped: float32 values, channels first, are never copied."""


def load(file: Path, channels: int | None = None) -> Dataset:
    """uint8 images [N, H, W, C], [N, C, H, W] or [N, H, W], or floats in [-1, 1] of any shape.

    Latents may have any range, as in `Dataset`.
    Floats with four axes are images or latents, channels first unless only the last axis is 1 or 3.
    Floats with three axes stay as they are, and become images when `channels` is 1.
    """
    values, labels = _read(file)
    try:
        class_labels = None if labels is None else torch.from_numpy(_whole(labels))
        return Dataset(torch.from_numpy(_values(values, channels)), class_labels)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None


def check_classes(data: Dataset, file: Path) -> None:
    """`DataError` unless labels without names use every class from 0 on; -1 does not count."""
    if data.labels is None:
        return
    used = data.labels[data.labels >= 0].unique().tolist()
    unused = next((k for k, label in enumerate(used) if k != label), None)
    if unused is not None:
        raise DataError(
            f"{file}: class {unused} has no samples though labels go to {used[-1]}; number the "
            f"{len(used)} classes from 0 on, as np.unique(labels, return_inverse=True)[1] does"
        )


def _read(file: Path) -> tuple[Array, Array | None]:
    """Values and labels; pickled objects are never loaded."""
    try:
        with file.open("rb") as stream:  # numpy leaves a damaged .npz open when it opens it itself
            plain = stream.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX
            stream.seek(0)
            if plain:
                is_large = file.stat().st_size >= MAPPED
                _refuse_false(stream, file.stat().st_size, mapped=is_large)
                if is_large:  # private to this process: changes do not reach the file
                    return np.load(file, mmap_mode="c", allow_pickle=False), None
                stream.seek(0)
            opened = np.load(stream, allow_pickle=False)
            return (opened, None) if isinstance(opened, np.ndarray) else _picked(opened, file)
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds on damaged files
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(
            f"cannot read {file}: {reason}; save plain arrays with np.save or np.savez"
        ) from None


def _picked(arrays: Any, file: Path) -> tuple[Array, Array | None]:
    values = [key for key in VALUES if key in arrays]
    labels = [key for key in LABELS if key in arrays]
    if len(values) != 1 or len(labels) > 1 or "arr_1" in arrays:
        raise DataError(
            f"{file} holds the keys {', '.join(arrays)}: expected one of {', '.join(VALUES)}, and "
            f"for labels one of {', '.join(LABELS)}; save as np.savez(file, images=..., labels=...)"
        )
    for key in values + labels:
        name = f"{key}.npy" if f"{key}.npy" in arrays.zip.namelist() else key
        with arrays.zip.open(name) as member:
            _refuse_false(member, arrays.zip.getinfo(name).file_size)
    return arrays[values[0]], arrays[labels[0]] if labels else None


def read_array(stream: IO[bytes], size: int) -> Array:
    """The array of an .npy file; ValueError if it is damaged, or holds pickled objects.

    size  bytes of the file
    """
    stream.seek(0)
    _refuse_false(stream, size)
    stream.seek(0)
    array: Array = np.load(stream, allow_pickle=False)
    return array


def _refuse_false(stream: IO[bytes], size: int, *, mapped: bool = False) -> None:
    """ValueError for an array whose header gives more bytes than the file or the memory has.

    size    bytes of the file
    mapped  the array stays on the disk, as float32, and may exceed the memory
    """
    read = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}
    shape, _, dtype = read[read_magic(stream)](stream)
    expected, actual = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if min(shape, default=0) < 0 or expected > actual:
        raise ValueError(
            f"its header says {expected:,} bytes of shape {list(shape)}, it has {actual:,}"
        )
    if expected > (most := memory()) and not (mapped and dtype == np.float32):
        raise ValueError(f"its {expected:,} bytes are more than the {most:,} of memory here")


def _values(x: Array, channels: int | None) -> Array:
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise DataError(
            f"values are uint8 from 0 to 255 or floats from -1 to 1, got {x.dtype}: convert them"
        )
    if x.ndim == 3 and (x.dtype == np.uint8 or channels == 1):
        x = x[:, None]
    elif x.ndim == 4:
        x = _channels_first(x, channels)
    if x.dtype.kind != "f":
        return np.ascontiguousarray(x)
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are refused
        return np.ascontiguousarray(x, dtype=np.float32)


def _channels_first(x: Array, channels: int | None) -> Array:
    counts = (1, 3) if channels is None else (channels,)
    first, last = x.shape[1] in counts, x.shape[3] in counts
    if first and last:
        raise DataError(
            f"shape {list(x.shape)} may be channels first or channels last: only one of axis 1 and "
            "axis 3 may be 1 or 3 long, or write channels=1 or channels=3"
        )
    return np.moveaxis(x, 3, 1) if last else x


def _whole(labels: Array) -> Array:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"labels are whole numbers [N], got {labels.dtype} {list(labels.shape)}: save for "
            "example labels.astype('int64').ravel()"
        )
    return labels.astype(np.int64)
