"""Streams of images, which need not fit into memory."""

import hashlib
import io
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from halfstep.data import BELOW, Dataset, load, WHOLE
from halfstep.data.sources import image_folder as folders
from halfstep.errors import ConfigError, DataError
from halfstep.pixels import scaled
from halfstep.progress import Progress, SILENT

AHEAD = 2
"""The number of batches that are read while one is encoded."""


@dataclass
class ImagesDigest:
    """Digests of some images.

    digest  of names, labels and contents
    stamp   of names, labels, file sizes and times of change; while it stays equal, no file is read again
    """

    digest: str = ""
    stamp: str = ""


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
        """`ImagesDigest.digest` of these images; reads all of them."""

    def stamp(self, rows: range) -> str:
        """`ImagesDigest.stamp` of these images; reads no file of a folder."""

    def batches(
        self, rows: range, size: int, source: ImagesDigest | None = None
    ) -> Iterator[Tensor]:
        """These images, `size` at a time: float32 [B, C, H, W] in [-1, 1].

        source  filled after the last batch with the digests of the images read
        """


def stream(
    spec: str,
    *,
    size: int | None = None,
    channels: int | None = None,
    progress: Progress = SILENT,
) -> Images:
    """The images of this name or place; a folder is streamed, and other data are held in memory.

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
    return ImagesInMemory(data)


@dataclass(frozen=True, eq=False)
class ImagesInMemory:
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

    def stamp(self, rows: range) -> str:
        return self.digest(rows)

    def batches(
        self, rows: range, size: int, source: ImagesDigest | None = None
    ) -> Iterator[Tensor]:
        for part in torch.arange(rows.start, rows.stop).split(size):
            yield self.data.batch(part).x0
        if source is not None:
            source.digest = source.stamp = self.digest(rows)


@dataclass(frozen=True)
class _File:
    """A file as read: its pixels or an error, its checksum and its stamp."""

    image: folders.Pixels | str
    sha256: str = ""
    stamp: str = ""


@dataclass(frozen=True, eq=False)
class Folder:
    """A folder of images, as `halfstep.data.sources.image_folder` reads them.

    files   in sorted order
    shape   the shape of every image
    size    the size to which images are resized; None where all must have the shape
    """

    folder: Path
    files: list[Path]
    shape: tuple[int, int, int]
    size: int | None = None
    labels: Tensor | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: Path, size: int | None, channels: int | None) -> "Folder":
        """The images of a folder; without `size` all must have the size of the first."""
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
        class_labels = None if labels is None else torch.tensor(labels)
        return cls(folder, files, (channels, side, side), size, class_labels, names)

    def __len__(self) -> int:
        return len(self.files)

    def digest(self, rows: range) -> str:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return self._named(rows, pool.map(self._checksum, [self.files[k] for k in rows]))

    def stamp(self, rows: range) -> str:
        return self._named(rows, (self._stamp(self.files[k]) for k in rows))

    def batches(
        self, rows: range, size: int, source: ImagesDigest | None = None
    ) -> Iterator[Tensor]:
        folders.refuse_many(size, self.shape, size=4)
        waiting, sums, stamps = deque[list[Future[_File]]](), list[str](), list[str]()
        chunks = [rows[low : low + size] for low in range(0, len(rows), size)]
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        try:
            for k, chunk in enumerate(chunks):
                while len(waiting) <= AHEAD and k + len(waiting) < len(chunks):
                    ahead = chunks[k + len(waiting)]
                    waiting.append([pool.submit(self._read, self.files[n]) for n in ahead])
                read = [future.result() for future in waiting.popleft()]
                sums += [file.sha256 for file in read]
                stamps += [file.stamp for file in read]
                yield self._stacked(chunk, [file.image for file in read])
        finally:
            pool.shutdown(cancel_futures=True)
        if source is not None:
            source.digest, source.stamp = self._named(rows, sums), self._named(rows, stamps)

    def _read(self, file: Path) -> _File:
        try:
            with file.open("rb") as opened:
                stamp = _stamped(os.fstat(opened.fileno()))  # before the content, which may change
                content = opened.read()
        except OSError as error:
            return _File(error.strerror or "gone")
        stream: Any = io.BytesIO(content)  # what is hashed is what is decoded
        image = folders.read(stream, self.size, self.shape[0])
        return _File(image, hashlib.sha256(content).hexdigest(), stamp)

    def _checksum(self, file: Path) -> str:
        try:
            with file.open("rb") as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(self.folder, {file: error.strerror or "gone"}) from None

    def _stamp(self, file: Path) -> str:
        try:
            return _stamped(file.stat())
        except OSError as error:
            raise _unreadable(self.folder, {file: error.strerror or "gone"}) from None

    def _named(self, rows: range, of: Iterable[str]) -> str:
        """A digest of the names and labels of these files with a text for each."""
        digest = hashlib.sha256()
        for k, contents in zip(rows, of, strict=True):
            label = None if self.labels is None else int(self.labels[k])
            name = self.files[k].relative_to(self.folder).as_posix()
            digest.update(f"{name}\0{label}\0{contents}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _stacked(self, rows: range, pixels: Sequence[folders.Pixels | str]) -> Tensor:
        faults = {self.files[k]: p for k, p in zip(rows, pixels, strict=True) if isinstance(p, str)}
        if faults:
            raise _unreadable(self.folder, faults)
        images = [p for p in pixels if not isinstance(p, str)]
        for k, image in zip(rows, images, strict=True):
            if image.shape != self.shape:
                raise ConfigError(
                    f"images in {self.folder} differ in size ({self.files[0].relative_to(self.folder)} "
                    f"gives {self.shape[-1]} pixels a side and "
                    f"{self.files[k].relative_to(self.folder)} {image.shape[-1]}): say size=, for "
                    "example 256"
                )
        return scaled(torch.from_numpy(np.stack(images)))


def _stamped(stat: os.stat_result) -> str:
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _unreadable(folder: Path, faults: dict[Path, str]) -> DataError:
    files = ", ".join(f"{file.relative_to(folder)} ({why})" for file, why in faults.items())
    return DataError(f"in {folder} cannot be read as images: {files}; replace or remove them")
