"""torch Datasets, read once into memory; other objects are refused."""

from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset as Theirs, IterableDataset

from halfstep.capacity import memory
from halfstep.config.validate import shown
from halfstep.data.dataset import Dataset
from halfstep.errors import DataError

WRITE = "write halfstep.Dataset(values, labels) with uint8 images [N, C, H, W] or float32 values [N, ...]"


def collected(data: object) -> Dataset:
    """The samples of a torch Dataset, each a tensor or a pair (tensor, label), read once into memory.

    `DataError` for other objects, and for samples that change between readings: random views are functions of
    a seed (`Augmentation`).
    """
    if not isinstance(data, Theirs) or isinstance(data, IterableDataset):
        raise DataError(
            f"data is a name, a place or a Dataset, got {_called(data)}: {_instead(data)}"
        )
    count = _length(data)
    value, label = _sample(data, 0)
    if value.nbytes * count > (most := memory()):
        raise DataError(
            f"{count:,} samples of {value.nbytes:,} bytes are more than the {most:,} bytes of memory here: "
            "give fewer, or smaller ones"
        )
    if not _same(value, _sample(data, 0)[0]):
        raise DataError(
            "sample 0 of this torch Dataset is another each time that it is read: leave random transforms "
            "out, and give Dataset an Augmentation"
        )
    values, labels = value.new_empty(count, *value.shape), list[int | None]()
    for k in range(count):
        value, label = _sample(data, k)
        if value.shape != values.shape[1:] or value.dtype != values.dtype:
            raise DataError(
                f"sample {k} of this torch Dataset is {value.dtype} {list(value.shape)} and sample 0 "
                f"{values.dtype} {list(values.shape[1:])}: make them alike"
            )
        values[k] = value
        labels.append(label)
    if len({label is None for label in labels}) > 1:
        k = labels.index(None)
        raise DataError(
            f"sample {k} of this torch Dataset has no label, and others have: label all, with -1 for none"
        )
    class_labels = None if label is None else torch.tensor(labels, dtype=torch.int64)
    return Dataset(values, class_labels, () if class_labels is None else _names(data))


def _length(data: Any) -> int:
    try:
        count = len(data)
    except (TypeError, NotImplementedError):
        raise DataError(f"this torch Dataset has no length: {WRITE}") from None
    if count < 1:
        raise DataError(f"this torch Dataset has no samples: {WRITE}")
    return int(count)


def _sample(data: Any, k: int) -> tuple[Tensor, int | None]:
    """The value and the label of sample k."""
    item = data[k]
    parts = item if isinstance(item, tuple | list) else (item,)
    value, label = parts[0] if len(parts) in (1, 2) else item, parts[1] if len(parts) == 2 else None
    if isinstance(value, np.ndarray):
        with suppress(TypeError):  # torch has no such dtype: refused below
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    if isinstance(label, Tensor | np.ndarray | np.integer) and np.ndim(label) == 0:
        label = label.item()
    if (
        not isinstance(value, Tensor)
        or not isinstance(label, int | None)
        or isinstance(label, bool)
    ):
        description = f"{_called(value)}" + (
            f" with the label {label!r}" if label is not None else ""
        )
        raise DataError(
            f"sample {k} of this torch Dataset is {description}, expected a tensor or (tensor, whole "
            f"number): add a transform, or {WRITE}"
        )
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise DataError(
            f"sample {k} of this torch Dataset is a tensor that holds no plain values ({value.layout}, "
            f"{value.dtype}, on {value.device}): give a dense one, as to_dense() or dequantize() makes it"
        )
    if label is not None and not -(2**63) <= label < 2**63:
        raise DataError(
            f"the label of sample {k} of this torch Dataset is {shown(label)}, beyond 64 bits: number the "
            "classes from 0 on"
        )
    return value.detach().cpu(), label


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two readings agree; nan, which `Dataset` refuses, equals nan."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _names(data: Any) -> tuple[str, ...]:
    """The names of the classes in an attribute `classes`, as torchvision has it."""
    names = getattr(data, "classes", ())
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return ()


def _called(data: object) -> str:
    kind = type(data)
    home = kind.__module__.partition(".")[0]
    return f"a {kind.__name__}" if home in ("builtins", "__main__") else f"a {home} {kind.__name__}"


def _instead(data: object) -> str:
    if isinstance(data, Tensor):
        return "write halfstep.Dataset(values)"
    if isinstance(data, np.ndarray):
        return "write halfstep.Dataset(torch.from_numpy(values))"
    if isinstance(data, DataLoader):
        return "give its data set, loader.dataset"
    return WRITE
