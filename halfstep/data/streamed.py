"""Images that are read as they are needed: what is encoded once need not fit into memory."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from halfstep.data import BELOW, Dataset, folder as folders, load, WHOLE
from halfstep.errors import ConfigError, DataError

AHEAD = 2
"""Batches that are read while one is encoded."""


class Images(Protocol):
    """Images in a fixed order, and their classes."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def labels(self) -> Tensor | None: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def digest(self, rows: range) -> str:
        """A name for these images and their labels: others have another."""

    def batches(self, rows: range, size: int) -> Iterator[Tensor]:
        """These images, `size` at a time: float32 [B, C, H, W] in [-1, 1]."""


def stream(
    spec: str,
    *,
    size: int | None = None,
    channels: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Images:
    """The images of that name or place; a folder is never held in memory, the others are.

    The options are those of `halfstep.data.load`.
    """
    place = Path(spec).expanduser()
    if spec and spec not in WHOLE and spec.partition(":")[0] not in BELOW and place.is_dir():
        return Folder.open(place, size, channels)
    data = load(spec, size=size, channels=channels, progress=progress)
    if not isinstance(data, Dataset) or not data.is_images:
        raise ConfigError(
            f"'{spec}' holds samples of shape {list(data.shape)}, not images: name images"
        )
    return Held(data)


@dataclass(frozen=True, eq=False)
class Held:
    """The images of a data set in memory."""

    data: Dataset

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def labels(self) -> Tensor | None:
        return self.data.labels

    @property
    def names(self) -> tuple[str, ...]:
        return self.data.names

    def __len__(self) -> int:
        return len(self.data)

    def digest(self, rows: range) -> str:
        some, labels = slice(rows.start, rows.stop), self.data.labels
        part = Dataset(self.data.values[some], None if labels is None else labels[some])
        return part.fingerprint()

    def batches(self, rows: range, size: int) -> Iterator[Tensor]:
        for part in torch.arange(rows.start, rows.stop).split(size):
            yield self.data.batch(part).x0


@dataclass(frozen=True, eq=False)
class Folder:
    """A folder of images, as `halfstep.data.folder` reads them.

    files   in sorted order
    shape   every image's
    size    to which images are resized; None where all must have it
    """

    folder: Path
    files: list[Path]
    shape: tuple[int, int, int]
    size: int | None = None
    labels: Tensor | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: Path, size: int | None, channels: int | None) -> "Folder":
        """Lists the folder; without `size` the first image says it, and the others must agree."""
        folders.check_channels(channels)
        if size is not None and size < 1:
            raise ConfigError(f"size is at least 1, got {size}: leave it out, or write size=256")
        files, labels, names = folders.listed(folder)
        channels = channels or folders.channels_of(files)
        side = size
        if side is None:
            first = folders.read(files[0], None, channels)
            if isinstance(first, str):
                raise _unreadable(folder, {files[0]: first})
            side = first.shape[-1]
        known = None if labels is None else torch.tensor(labels)
        return cls(folder, files, (channels, side, side), size, known, names)

    def __len__(self) -> int:
        return len(self.files)

    def digest(self, rows: range) -> str:
        """Of names and sizes of the files, which is what can be known without reading them."""
        found = hashlib.sha256()
        for k in rows:
            file, label = self.files[k], None if self.labels is None else int(self.labels[k])
            try:
                size = file.stat().st_size
            except OSError as error:
                raise _unreadable(self.folder, {file: error.strerror or "gone"}) from None
            found.update(f"{file.relative_to(self.folder).as_posix()}\0{size}\0{label}\n".encode())
        return found.hexdigest()

    def batches(self, rows: range, size: int) -> Iterator[Tensor]:
        waiting = deque[list[Future[folders.Pixels | str]]]()
        chunks = [rows[low : low + size] for low in range(0, len(rows), size)]
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        try:
            for k, chunk in enumerate(chunks):
                while len(waiting) <= AHEAD and k + len(waiting) < len(chunks):
                    ahead = chunks[k + len(waiting)]
                    waiting.append([pool.submit(self._read, self.files[n]) for n in ahead])
                yield self._stacked(chunk, [future.result() for future in waiting.popleft()])
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, file: Path) -> folders.Pixels | str:
        return folders.read(file, self.size, self.shape[0])

    def _stacked(self, rows: range, got: list[folders.Pixels | str]) -> Tensor:
        faults = {self.files[k]: g for k, g in zip(rows, got, strict=True) if isinstance(g, str)}
        if faults:
            raise _unreadable(self.folder, faults)
        images = [g for g in got if not isinstance(g, str)]
        for k, image in zip(rows, images, strict=True):
            if image.shape != self.shape:
                raise ConfigError(
                    f"images in {self.folder} differ in size ({self.files[0].relative_to(self.folder)} "
                    f"gives {self.shape[-1]} pixels a side and "
                    f"{self.files[k].relative_to(self.folder)} {image.shape[-1]}): say size=, for "
                    "example 256"
                )
        return torch.from_numpy(np.stack(images)).float().div_(127.5).sub_(1)


def _unreadable(folder: Path, faults: dict[Path, str]) -> DataError:
    said = ", ".join(f"{file.relative_to(folder)} ({why})" for file, why in faults.items())
    return DataError(f"in {folder} cannot be read as images: {said}; replace or remove them")
