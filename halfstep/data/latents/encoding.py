"""Encoding of images: `write_latents` fills a folder that `halfstep.data.latents.dataset` reads.

Every shard is written whole under a temporary name, then renamed, then entered in latents.json: after any
interruption the same call goes on at the first missing shard.  Batches are cut from each shard's start, so a
resumed run has the same batches as an uninterrupted one, and its files are the same to the bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn, Tensor

from halfstep import storage
from halfstep.batch import batches
from halfstep.config.validate import Count, Validated
from halfstep.data.latents.captions import Captions
from halfstep.data.latents.contexts import bytes_of, formats_of, packed
from halfstep.data.latents.dataset import (
    ABOUT,
    About,
    FORMAT,
    Identity,
    is_latents,
    read_about,
    TextIdentity,
)
from halfstep.data.latents.image_stream import Images, ImagesDigest
from halfstep.data.latents.resume import (
    alone,
    CODEC,
    other_images,
    refuse_other_identity,
    same_images,
)
from halfstep.data.latents.shards import Entry, whole, written
from halfstep.division import ALONE, Division
from halfstep.errors import ConfigError
from halfstep.models.codec import Codec
from halfstep.progress import Progress, SILENT

_File = tuple[str, range, Entry | None]
"""Name and images of a file, and its earlier entry."""


@dataclass(frozen=True, kw_only=True)
class Layout(Validated):
    """The layout of latents on the disk."""

    half: bool = False
    """float16 moments, half as large."""
    mirror: bool = True
    """Encode each image's mirror image too."""
    shard: Count = 4096
    """Images per file."""


def write_latents(
    images: Images,
    codec: Codec,
    out: Path,
    *,
    layout: Layout | None = None,
    captions: Captions | None = None,
    batch: int = 64,
    device: torch.device | str = "cpu",
    division: Division = ALONE,
    progress: Progress = SILENT,
) -> bool:
    """Encode the images, and with `captions` their texts, into `out`; return whether anything was missing.

    batch     images at a time
    device    the device of codec and texts
    division  divides the files among processes, which all call this function
    progress  advances with every image, at once for those that were encoded before
    """
    if batch < 1:
        raise ConfigError(f"batch is at least 1, got {batch}: write --batch-size 64")
    if captions is not None and len(captions.of) != len(images):
        raise ConfigError(
            f"{len(captions.of)} captions for {len(images)} images: give every image its captions"
        )
    if isinstance(codec, nn.Module):
        codec.eval()
    work = _Work(images, codec, out, layout or Layout(), captions, batch, device)

    def run() -> bool:
        with alone(out, progress.note):
            return work.run(division, progress)

    with torch.inference_mode():
        missing = division.lead(run, work)
    if captions is not None:
        captions.free_encoder()
    return missing


@dataclass(frozen=True)
class _Work:
    """One call of `write_latents`."""

    images: Images
    codec: Codec
    out: Path
    layout: Layout
    captions: Captions | None
    batch: int
    device: torch.device | str

    def run(self, division: Division, progress: Progress) -> bool:
        """Write the missing files in order, all texts before the images; returns whether any was missing.

        The text encoder leaves memory before the first image is encoded.
        """
        about, worked = self._resume(), False
        entries = {entry["file"]: entry for entry in [*about["shards"], *about["contexts"]]}
        progress.expect(len(self.images))
        for kind in ("shard",) if self.captions is None else ("context", "shard"):
            files = list[_File]()
            for k, rows in enumerate(self._ranges()):
                name = f"{kind}-{k:05d}.npy"
                if name not in entries or not (self.out / name).exists():
                    files.append((name, rows, entries.get(name)))
                elif kind == "shard":
                    progress.advance(len(rows))
            for entry in division.map(self._written, files, progress):
                worked, about["complete"] = True, False
                entries[entry["file"]] = entry
                names = sorted(entries, key=lambda file: (len(file), file))
                about["shards"] = [entries[file] for file in names if file.startswith("shard")]
                about["contexts"] = [entries[file] for file in names if file.startswith("context")]
                storage.write_json(self.out / ABOUT, about)
        missing = [entry for entry in about["others"] if not (self.out / entry["file"]).exists()]
        if worked or missing or not about["complete"]:
            self._complete(about)
            return True
        return False

    def _ranges(self) -> list[range]:
        """The images of each shard."""
        return batches(range(len(self.images)), self.layout.shard)

    # -- writing -----------------------------------------------------------------------------------

    def _written(self, file: _File, progress: Progress) -> Entry:
        """Write a file of these images."""
        name, rows, before = file
        if self.captions is not None and name.startswith("context"):
            with self.captions.on(self.device):
                return self._states(self.captions, self.out / name, rows)
        if self.captions is not None:
            self.captions.free_encoder()
        return self._moments(self.out / name, rows, before, progress)

    def _moments(self, path: Path, rows: range, before: Entry | None, progress: Progress) -> Entry:
        views, dtype = 1 + self.layout.mirror, torch.float16 if self.layout.half else torch.float32
        source = ImagesDigest()

        def encoded() -> Iterator[Tensor]:
            for images in self.images.batches(rows, self.batch, source):
                both = [images, images.flip(-1)][:views]
                moments = torch.stack([self.codec.moments(x.to(self.device)) for x in both], 1)
                yield _stored(moments, dtype, "moments", "leave --half out")
                progress.advance(len(images))
            # The file still has its temporary name, so the last batch is compared too.
            if before is not None and before["source"] != source.digest:
                raise other_images(self.out, f"the images of {path.name} have changed")

        shape = (len(rows), views, *self._latent(twice=True))
        entry = written(path, shape, dtype, encoded())
        entry |= {"source": source.digest, "stamp": source.stamp}
        return entry

    def _states(self, captions: Captions, path: Path, rows: range) -> Entry:
        chosen = captions.chosen(rows)
        lows = range(0, len(chosen), self.batch)
        parts = (captions.packed(chosen[low : low + self.batch]) for low in lows)
        shape = len(chosen), bytes_of(formats_of(captions.null))
        entry = written(path, shape, torch.uint8, parts)
        entry["source"] = captions.digest_of(rows)
        return entry

    def _complete(self, about: About) -> None:
        """Write the files that belong to all images, and mark the folder as complete."""
        labels, others = self.images.labels, list[Entry]()
        if labels is not None:
            others.append(whole(self.out / "labels.npy", labels.long()))
        if self.captions is not None:
            others.append(whole(self.out / "offsets.npy", self.captions.offsets()))
            null = packed(self.captions.null, formats_of(self.captions.null))
            others.append(whole(self.out / "null.npy", null))
        more = {"count": len(self.images), "names": list(self.images.names), "others": others}
        storage.write_json(self.out / ABOUT, {**about, **more, "complete": True})

    # -- resuming ----------------------------------------------------------------------------------

    def _resume(self) -> About:
        """latents.json of the folder, if it has the same identity; a new one in a folder without shards."""
        if self.captions is not None:
            with self.captions.on(self.device):
                _ = self.captions.null  # made once
        identity = self._identity()
        about = read_about(self.out) if is_latents(self.out) else None
        if about is None or not (about["shards"] or about["contexts"]):
            self._try_one()
            self.images.skipped.write(self.out)
            self.codec.save(self.out)
            about = {
                **identity,
                "count": len(self.images), "names": list(self.images.names),
                "shards": [], "contexts": [], "others": [], "complete": False,
            }  # fmt: skip
            storage.write_json(self.out / ABOUT, about)
            return about
        self._check_same(about, identity)
        self.images.skipped.write(self.out)
        if not all((self.out / name).exists() for name in CODEC):
            self.codec.save(self.out)
        return about

    def _check_same(self, about: About, identity: Identity) -> None:
        """`ConfigError` for latents of other images; writes new stamps of files with the same contents."""
        refuse_other_identity(self.out, about, identity)
        ranges, count = self._ranges(), len(self.images)
        before = [entry.get("stamp") for entry in about["shards"]]
        for entry in [*about["shards"], *about["contexts"]]:
            k = int(Path(entry["file"]).stem.rpartition("-")[2])
            if k >= len(ranges) or not self._same(entry, ranges[k]):
                raise other_images(self.out, f"the images of {entry['file']} have changed")
        if about["complete"] and about["count"] != count:
            raise other_images(self.out, f"it has {about['count']:,}, not {count:,}")
        if [entry.get("stamp") for entry in about["shards"]] != before:
            storage.write_json(self.out / ABOUT, about)

    def _same(self, entry: Entry, rows: range) -> bool:
        """Whether a file was encoded from these images."""
        if entry["file"].startswith("shard"):
            return same_images(entry, self.images, rows)
        assert self.captions is not None
        return bool(entry["source"] == self.captions.digest_of(rows))

    def _try_one(self) -> None:
        """Encode one image and the empty text, so that an error leaves no folder behind."""
        image = next(iter(self.images.batches(range(1), 1))).to(self.device)
        actual, expected = self.codec.moments(image).shape[1:], self._latent(twice=True)
        if tuple(actual) != expected:
            raise ConfigError(
                f"the codec encodes one image to moments of shape {list(actual)}, and its factor and "
                f"channels give {list(expected)}: mend the codec"
            )
        if self.captions is not None:
            packed(self.captions.null, formats_of(self.captions.null))

    def _identity(self) -> Identity:
        """The part of latents.json that must stay the same when encoding is resumed."""
        latent: Any = list(self._latent())  # a list, as JSON has it
        text: TextIdentity | None = None
        if self.captions is not None:
            formats = formats_of(self.captions.null)
            text = {"tensors": formats, "digest": self.captions.digest}
        return {
            "format": FORMAT,
            "codec": self.codec.digest(),
            "scale": self.codec.scale,
            "image": list(self.images.shape),
            "latent": latent,
            "dtype": "float16" if self.layout.half else "float32",
            "views": 2 if self.layout.mirror else 1,
            "shard": self.layout.shard,
            "text": text,
        }

    def _latent(self, *, twice: bool = False) -> tuple[int, ...]:
        """The shape of a latent, or of its moments."""
        sides, factor = self.images.shape[1:], self.codec.factor
        if any(side % factor for side in sides):
            near = max(factor, min(sides) // factor * factor)
            raise ConfigError(
                f"this codec divides sides by {factor}, and images of {'x'.join(map(str, sides))} do not "
                f"divide by that: write --size {near}"
            )
        return (1 + twice) * self.codec.channels, *(side // factor for side in sides)


def _stored(x: Tensor, dtype: torch.dtype, name: str, remedy: str) -> Tensor:
    """`x` on the CPU in the dtype of the file; `ConfigError` for nan and overflow."""
    x = x.to(dtype).cpu()
    if not x.isfinite().all():
        dtype_name = str(dtype).removeprefix("torch.")
        raise ConfigError(f"some {name} are nan or too large for {dtype_name}: {remedy}")
    return x
