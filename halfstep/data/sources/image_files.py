"""Encoded images, one by one: the files of a folder, the members of tar shards, the rows of a table."""

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, Protocol, TypeVar

import numpy as np
import torch

from halfstep.capacity import refuse_too_large
from halfstep.data.dataset import Dataset
from halfstep.data.skipped import Fault, named, Skipped
from halfstep.data.sources import decoding
from halfstep.errors import ConfigError, DataError
from halfstep.progress import Progress, SILENT

T = TypeVar("T")
THREADS = min(8, os.cpu_count() or 1)
AHEAD = 16 * THREADS
"""Images that are read ahead of their use."""
SKIP = "replace or remove them, or skip them (--skip-bad, in Python skip_bad=True)"


class ImageFiles(Protocol):
    """Encoded images in a fixed order, with their names and classes."""

    @property
    def place(self) -> Path:
        """The folder, file or pattern that sentences name."""

    @property
    def labels(self) -> list[int] | None: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def name(self, k: int) -> str:
        """The name of an image within its place."""

    def opened(self, k: int) -> Path | IO[bytes]:
        """An image's file, or its content; `OSError` or `DataError` where it cannot be read."""

    def content(self, k: int) -> bytes:
        """The bytes of an image, as `opened`."""

    def stamp(self, k: int) -> str:
        """A text that changes when the image may have been written anew; reads no image."""

    def captions(self) -> list[tuple[str, ...]] | None:
        """The captions of each image; None if there are none."""


def load(
    images: ImageFiles,
    size: int | None = None,
    channels: int | None = None,
    *,
    skip_bad: bool = False,
    progress: Progress = SILENT,
) -> Dataset:
    """Every image, uint8 [N, C, size, size], in order, with the labels.

    size       pixels a side; None keeps the images' sizes, which must be equal
    channels   1 (gray) or 3 (RGB); None is 1 where every image is gray
    skip_bad   leave images out that cannot be decoded, and note them
    """
    check_channels(channels)
    channels = channels or channels_of(images)
    if size is not None:
        refuse_many(len(images), (channels, size, size))
    values, rows, skipped = _read_all(images, size, channels, skip_bad, progress)
    labels = None if images.labels is None else torch.tensor([images.labels[k] for k in rows])
    return Dataset(torch.from_numpy(values), labels, images.class_names, skipped=skipped)


def check_channels(channels: int | None) -> None:
    """`ConfigError` for other channels than 1 and 3."""
    if channels not in (None, 1, 3):
        raise ConfigError(f"images have 1 channel or 3, not {channels}: write channels=3")


def refuse_many(count: int, shape: tuple[int, ...], *, size: int = 1) -> None:
    """`ConfigError` for images that do not fit into memory, with `size` bytes per value."""
    images = f"{count:,} images of {shape[-1]} pixels a side"
    refuse_too_large(images, (count, *shape), "write a smaller size", size=size)


def channels_of(images: ImageFiles) -> int:
    """1 if every image is gray, else 3; reads headers until the first in colour."""
    for k in range(len(images)):
        try:
            if not decoding.is_gray(images.opened(k)):
                return 3
        except Exception:  # the error is reported when the file is read
            continue
    return 1


def read(images: ImageFiles, k: int, size: int | None, channels: int) -> decoding.Pixels | str:
    """The pixels of an image, or the reason why it cannot be read."""
    try:
        file = images.opened(k)
    except (OSError, DataError) as error:
        return reason_of(error)
    return decoding.read(file, size, channels)


def reason_of(error: Exception) -> str:
    """Why an image cannot be opened, in a few words."""
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or str(error).partition("\n")[0] or type(error).__name__


def in_threads(work: Callable[[int], T], rows: Sequence[int]) -> Generator[T, None, None]:
    """The results for these images, in order, from several threads; a few are worked on ahead."""
    pool = ThreadPoolExecutor(THREADS)
    waiting = deque[Future[T]]()
    try:
        for n in range(len(rows) + AHEAD):
            if n < len(rows):
                waiting.append(pool.submit(work, rows[n]))
            if n >= AHEAD:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read_all(
    images: ImageFiles, size: int | None, channels: int, skip_bad: bool, progress: Progress
) -> tuple[decoding.Pixels, list[int], Skipped]:
    """All images, uint8 [N, C, side, side], and which they are; the error names all faults."""
    values: decoding.Pixels | None = None
    faults, rows = list[Fault](), list[int]()
    odd: str | None = None
    progress.expect(len(images))
    reading = partial(read, images, size=size, channels=channels)
    for k, pixels in enumerate(in_threads(reading, range(len(images)))):
        progress.advance()
        if isinstance(pixels, str):
            faults.append((images.name(k), pixels))
            continue
        if values is None:
            refuse_many(len(images), pixels.shape)
            values = np.empty((len(images), *pixels.shape), np.uint8)
        if pixels.shape == values.shape[1:]:
            values[len(rows)] = pixels
        else:
            odd = odd or differing(images, rows[0], values.shape[-1], k, pixels.shape[-1])
        rows.append(k)
    if values is None or (faults and not skip_bad):
        raise unreadable(images, faults)
    if odd:
        raise ConfigError(f"{odd}: say size=, for example 64")
    skipped = Skipped(len(images), tuple(faults))
    if faults:
        progress.note(str(skipped))
    return values[: len(rows)], rows, skipped


def differing(images: ImageFiles, one: int, side: int, other: int, other_side: int) -> str:
    """Two images of different sizes, in words."""
    return (
        f"images in {images.place} differ in size ({images.name(one)} gives {side} pixels a side and "
        f"{images.name(other)} {other_side})"
    )


def unreadable(images: ImageFiles, faults: Sequence[Fault]) -> DataError:
    """The error for images that cannot be read, each with its reason."""
    instead = SKIP if len(faults) < len(images) else "give other images"
    return DataError(
        f"{len(faults)} of {len(images)} files in {images.place} cannot be read as images: "
        f"{named(faults)}; {instead}"
    )
