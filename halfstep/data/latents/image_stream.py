"""Streams of images, which need not fit into memory."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from halfstep.batch import batches
from halfstep.data import Dataset, is_streamed, load
from halfstep.data.skipped import Fault, Skipped
from halfstep.data.sources import decoding, image_files
from halfstep.data.sources.image_files import ImageFiles
from halfstep.data.sources.places import open_images
from halfstep.errors import ConfigError, DataError, printable
from halfstep.pixels import scaled
from halfstep.progress import Progress, SILENT


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

    @property
    def skipped(self) -> Skipped:
        """Images that were left out because they cannot be decoded."""

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
    split: str = "train",
    skip_bad: bool = False,
    listed: Path | None = None,
    progress: Progress = SILENT,
) -> Images:
    """The images of this name or place; folders, shards and tables are streamed, others held in memory.

    The options are those of `halfstep.data.load`.  `skip_bad` decodes every image once beforehand, to know
    which remain, unless the folder `listed` has the list of an earlier call.
    """
    if (
        split == "train"
        and is_streamed(spec)
        and (files := open_images(spec, progress=progress)) is not None
    ):
        images = ImageStream.open(files, size, channels, skip_bad=skip_bad)
        return images.without_bad(listed, progress) if skip_bad else images
    data = load(
        spec, size=size, channels=channels, split=split, skip_bad=skip_bad, progress=progress
    )
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

    @property
    def skipped(self) -> Skipped:
        return self.data.skipped

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
    """An image as read: its pixels or an error, the checksum of its content, and its stamp."""

    image: decoding.Pixels | str
    sha256: str = ""
    stamp: str = ""


@dataclass(frozen=True, eq=False)
class ImageStream:
    """Encoded images, decoded when they are needed.

    files   the images of a folder, of shards or of a table
    rows    which of them, in order
    shape   the shape of every image
    size    the size to which images are resized; None where all must have the shape
    """

    files: ImageFiles
    rows: Sequence[int]
    shape: tuple[int, int, int]
    size: int | None = None
    labels: Tensor | None = None
    names: tuple[str, ...] = ()
    skipped: Skipped = Skipped()  # noqa: RUF009  # frozen

    @classmethod
    def open(
        cls, files: ImageFiles, size: int | None, channels: int | None, *, skip_bad: bool = False
    ) -> "ImageStream":
        """All images; without `size` all must have the size of the first, or the first that is not bad."""
        image_files.check_channels(channels)
        if size is not None and size < 1:
            raise ConfigError(f"size is at least 1, got {size}: leave it out, or write size=256")
        channels = channels or image_files.channels_of(files)
        side, faults = size, list[Fault]()
        for k in range(len(files)):
            if side is not None:
                break
            first = image_files.read(files, k, None, channels)
            if not isinstance(first, str):
                side = first.shape[-1]
            elif not skip_bad:
                raise image_files.unreadable(files, [(files.name(k), first)])
            else:
                faults.append((files.name(k), first))
        if side is None:
            raise image_files.unreadable(files, faults)
        labels = None if files.labels is None else torch.tensor(files.labels)
        shape = (channels, side, side)
        return cls(files, range(len(files)), shape, size, labels, files.class_names)

    def without_bad(self, listed: Path | None = None, progress: Progress = SILENT) -> "ImageStream":
        """The images that can be decoded; decodes all of them once, and notes which are left out.

        listed  a folder with the list of an earlier call, which holds while the images are unchanged
        """
        stamp = self._named(range(len(self)), map(self._stamp_of, self.rows))
        skipped = None if listed is None else Skipped.read(listed, len(self), stamp)
        bad: Set[int] = set() if skipped is None else self._listed(skipped)
        if skipped is None or len(bad) != len(
            skipped.faults
        ):  # names that are not of one image each
            faults = dict(self._faults(progress))
            bad = faults.keys()
            named = tuple((self.files.name(k), why) for k, why in faults.items())
            skipped = Skipped(len(self), named, stamp)
        rows = [k for k in self.rows if k not in bad] if bad else self.rows
        if not rows:
            raise image_files.unreadable(self.files, skipped.faults)
        if bad:
            progress.note(str(skipped))
        return replace(self.only(rows), skipped=skipped)

    def _listed(self, skipped: Skipped) -> set[int]:
        """The numbers of the images with the names in a list."""
        bad = {printable(name) for name, _ in skipped.faults}
        return {k for k in self.rows if printable(self.files.name(k)) in bad} if bad else set()

    def only(self, rows: Sequence[int]) -> "ImageStream":
        """These images, by their numbers among all files."""
        place = {k: n for n, k in enumerate(self.rows)}
        labels = self.labels
        if labels is not None:
            labels = labels[torch.tensor([place[k] for k in rows])]
        return replace(self, rows=rows, labels=labels)

    def __len__(self) -> int:
        return len(self.rows)

    def digest(self, rows: range) -> str:
        return self._named(
            rows, image_files.in_threads(self._checksum, [self.rows[k] for k in rows])
        )

    def stamp(self, rows: range) -> str:
        return self._named(rows, (self._stamp(self.rows[k]) for k in rows))

    def batches(
        self, rows: range, size: int, source: ImagesDigest | None = None
    ) -> Iterator[Tensor]:
        image_files.refuse_many(size, self.shape, size=4)
        sums, stamps = list[str](), list[str]()
        files = image_files.in_threads(self._read, [self.rows[k] for k in rows])
        with closing(files):
            for chunk in batches(rows, size):
                read = list(islice(files, len(chunk)))
                sums += [file.sha256 for file in read]
                stamps += [file.stamp for file in read]
                yield self._stacked(chunk, [file.image for file in read])
        if source is not None:
            source.digest, source.stamp = self._named(rows, sums), self._named(rows, stamps)

    def _read(self, k: int) -> _File:
        try:
            stamp = self.files.stamp(k)  # before the content, which may change
            content = self.files.content(k)
        except (OSError, DataError) as error:
            return _File(image_files.reason_of(error))
        image = decoding.read(io.BytesIO(content), self.size, self.shape[0])
        return _File(image, hashlib.sha256(content).hexdigest(), stamp)

    def _faults(self, progress: Progress) -> Iterator[tuple[int, str]]:
        """The numbers of the images that cannot be decoded, and why."""
        progress.expect(len(self))
        for k, why in zip(self.rows, image_files.in_threads(self._fault, self.rows), strict=True):
            progress.advance()
            if why is not None:
                yield k, why

    def _fault(self, k: int) -> str | None:
        """Why an image cannot be decoded; None if it can."""
        pixels = image_files.read(self.files, k, self.size, self.shape[0])
        return pixels if isinstance(pixels, str) else None

    def _checksum(self, k: int) -> str:
        try:
            return hashlib.sha256(self.files.content(k)).hexdigest()
        except (OSError, DataError) as error:
            raise self._unreadable({k: image_files.reason_of(error)}) from None

    def _stamp_of(self, k: int) -> str:
        """The stamp of an image; "" of a file that is gone."""
        try:
            return self.files.stamp(k)
        except OSError:
            return ""

    def _stamp(self, k: int) -> str:
        try:
            return self.files.stamp(k)
        except (OSError, DataError) as error:
            raise self._unreadable({k: image_files.reason_of(error)}) from None

    def _named(self, rows: range, of: Iterable[str]) -> str:
        """A digest of the names and labels of these images with a text for each."""
        digest = hashlib.sha256()
        for k, contents in zip(rows, of, strict=True):
            label = None if self.labels is None else int(self.labels[k])
            name = self.files.name(self.rows[k])
            digest.update(f"{name}\0{label}\0{contents}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _stacked(self, rows: range, pixels: Sequence[decoding.Pixels | str]) -> Tensor:
        numbers = [self.rows[k] for k in rows]
        faults = {k: p for k, p in zip(numbers, pixels, strict=True) if isinstance(p, str)}
        if faults:
            raise self._unreadable(faults)
        images = [p for p in pixels if not isinstance(p, str)]
        for k, image in zip(numbers, images, strict=True):
            if image.shape != self.shape:
                odd = image_files.differing(
                    self.files, self.rows[0], self.shape[-1], k, image.shape[-1]
                )
                raise ConfigError(f"{odd}: say size=, for example 256")
        return scaled(torch.from_numpy(np.stack(images)))

    def _unreadable(self, faults: dict[int, str]) -> DataError:
        named = [(self.files.name(k), why) for k, why in faults.items()]
        return image_files.unreadable(self.files, named)
