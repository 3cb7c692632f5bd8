"""Writing of walks: `write_walks` fills a folder that `halfstep.data.walks.store` reads.

Every file is written whole under a temporary name, then renamed, then entered in walks.json: after any
interruption the same call goes on at the first missing file.  Batches are cut from each file's start, and
the last is walked whole even where fewer walks are asked for, so that files are the same to the bit whether
they were written at once, by several processes, or after more walks were asked for.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from halfstep import files, storage
from halfstep.batch import batches, Cond
from halfstep.data.latents.contexts import bytes_of, formats_of, packed
from halfstep.data.latents.shards import Entry, VERIFIED, whole, written
from halfstep.data.walks.store import (
    ABOUT,
    About,
    DTYPES,
    FORMAT,
    Formats,
    is_walks,
    Key,
    read_about,
    refuse_other_key,
    SHARD,
    Shard,
    unpacked_cond,
)
from halfstep.division import ALONE, Division
from halfstep.errors import ConfigError
from halfstep.folder_lock import FolderLock
from halfstep.progress import Progress, SILENT

BATCH = 64
"""Walks that are walked together, unless memory allows fewer."""
OURS = (files.LOCK, ABOUT, VERIFIED, "points-*.npy", "condition-*.npy", "scale-*.npy")
"""Names of the files of a folder of walks."""


class Walker(Protocol):
    """Walks a teacher from noise to data; a walk is a function of its number alone."""

    @property
    def key(self) -> Key:
        """All that the walks depend on but their number."""

    def conditions(self, numbers: range) -> Cond | None:
        """The conditions of these walks, on the CPU."""

    def walk(self, numbers: range, cond: Cond | None) -> Tensor:
        """The kept points of these walks with these conditions, float [B, points, ...]."""


def write_walks(
    walker: Walker,
    folder: Path,
    count: int,
    *,
    batch: int = BATCH,
    division: Division = ALONE,
    progress: Progress = SILENT,
) -> bool:
    """Walk until the folder has `count` walks; returns whether any was missing.

    batch     walks at a time; fewer may be walked together than the folder was begun with, but no more
    division  divides the files among processes, which all call this function
    progress  advances with every walk, at once for those that were kept before

    `ConfigError` for a folder of walks that something else made, or without room for them.
    """
    if count < 1 or batch < 1:
        raise ConfigError(
            f"walks are kept of one noise or more, some at a time, got {count} and {batch}: write for "
            "example 4096 and 64"
        )
    work = _Work(walker, folder, count, batch)

    def run() -> bool:
        if work.is_whole():  # also in a folder that cannot be written
            return False
        with alone(folder, progress):
            return work.run(division, progress)

    return division.lead(run, work)


@dataclass
class _Work:
    """One call of `write_walks`."""

    walker: Walker
    folder: Path
    count: int
    batch: int

    def is_whole(self) -> bool:
        """Whether the folder has all walks; `ConfigError` for those that something else made."""
        if not is_walks(self.folder):
            return False
        about = read_about(self.folder)
        refuse_other_key(self.folder, about, self.walker.key)
        return not self._missing(about)

    def run(self, division: Division, progress: Progress) -> bool:
        """Write the missing files in order; returns whether any was missing."""
        about = self._resume()
        missing = self._missing(about)
        items = [(k, rows, about["batch"], about["tensors"]) for k, rows in missing.items()]
        progress.expect(self.count)
        progress.advance(self.count - sum(map(len, missing.values())))
        cond = self.walker.conditions(range(1))
        _refuse_small_disk(self.folder, about, cond, sum(map(len, missing.values())))
        for (k, *_), shard in zip(items, division.map(self.written, items, progress), strict=True):
            about["shards"][k : k + 1] = [shard]
            storage.write_json(self.folder / ABOUT, about)
        self._remove_others(about)
        return bool(items)

    def written(self, item: tuple[int, range, int, Formats | None], progress: Progress) -> Shard:
        """Write the files of these walks."""
        k, rows, batch, tensors = item
        end = rows.start + SHARD  # where the file ends, however many walks are asked for
        conds, scales = list[Tensor](), list[Tensor]()

        def points() -> Iterator[Tensor]:
            for low in range(rows.start, rows.stop, batch):
                numbers = range(low, min(low + batch, end))
                kept = min(numbers.stop, rows.stop) - low
                cond, bytes_ = _stored(self.walker.conditions(numbers), tensors)
                states = self.walker.walk(numbers, cond)[:kept]
                yield self._checked(states, numbers)
                conds.append(bytes_[:kept])
                if cond is not None and cond.guidance_scale is not None:
                    scales.append(cond.guidance_scale[:kept].double().cpu())
                progress.advance(kept)

        key, name = self.walker.key, f"{k:05d}-{len(rows)}.npy"
        dtype, shape = DTYPES[key["dtype"]], (len(rows), len(key["points"]), *key["shape"])
        entries: list[Entry] = [written(self.folder / f"points-{name}", shape, dtype, points())]
        if tensors is not None:
            entries.append(whole(self.folder / f"condition-{name}", torch.cat(conds)))
        if scales:
            entries.append(whole(self.folder / f"scale-{name}", torch.cat(scales)))
        return {"rows": len(rows), "files": entries}

    def _checked(self, states: Tensor, numbers: range) -> Tensor:
        """The states in the dtype of the file, on the CPU; `ConfigError` for nan and overflow."""
        name = self.walker.key["dtype"]
        states = states.to(DTYPES[name]).cpu()
        if not states.isfinite().all():
            half = ": leave half out" if name == "float16" else ": give a teacher that is trained"
            raise ConfigError(
                f"a walk of those from {numbers.start:,} on is nan or too large for {name}{half}"
            )
        return states

    def _missing(self, about: About) -> dict[int, range]:
        """The walks of each shard that has too few of them, or a file that is not there."""
        missing, shards = dict[int, range](), about["shards"]
        for k, rows in enumerate(batches(range(self.count), SHARD)):
            names = [entry["file"] for entry in shards[k]["files"]] if k < len(shards) else []
            there = bool(names) and all((self.folder / name).exists() for name in names)
            if not there or shards[k]["rows"] < len(rows):
                missing[k] = rows
        return missing

    def _resume(self) -> About:
        """walks.json of the folder, if the same made it; a new one in a folder without walks."""
        key = self.walker.key
        if is_walks(self.folder):
            about = read_about(self.folder)
            refuse_other_key(self.folder, about, key)
            about["batch"] = min(about["batch"], self.batch)
            return about
        cond = self.walker.conditions(range(1))
        formats = None if cond is None else formats_of(cond) or None
        about = {
            **key, "format": FORMAT, "batch": min(self.batch, SHARD), "tensors": formats,
            "scales": cond is not None and cond.guidance_scale is not None, "shards": [],
        }  # fmt: skip
        storage.write_json(self.folder / ABOUT, about)
        return about

    def _remove_others(self, about: About) -> None:
        """Remove files that walks.json does not name: of a shard before it had more walks."""
        named = {entry["file"] for shard in about["shards"] for entry in shard["files"]}
        for path in self.folder.glob("*-[0-9]*-[0-9]*.npy"):
            if path.name not in named:
                files.remove(path)


def walk_bytes(points: int, shape: Sequence[int], dtype: str, cond: Cond | None) -> int:
    """The bytes of a walk on the disk.

    points  kept of it
    shape   of a sample
    dtype   float32 or float16
    cond    a condition of the walks
    """
    size = points * prod(shape) * DTYPES[dtype].itemsize
    if cond is None:
        return size
    return size + bytes_of(formats_of(cond)) + 8 * (cond.guidance_scale is not None)


def _refuse_small_disk(folder: Path, key: Key, cond: Cond | None, walks: int) -> None:
    size = walks * walk_bytes(len(key["points"]), key["shape"], key["dtype"], cond)
    with suppress(OSError):
        free = shutil.disk_usage(folder).free
        if size > free:
            raise ConfigError(
                f"{walks:,} walks take {size / 1e9:,.1f} GB, and the disk of '{folder}' has "
                f"{free / 1e9:,.1f} GB: keep fewer, or choose another folder"
            )


def _stored(cond: Cond | None, tensors: Formats | None) -> tuple[Cond | None, Tensor]:
    """The condition as it is read back, and its rows of bytes."""
    if cond is None or tensors is None:
        return cond, torch.empty(0)
    rows = packed(cond, tensors)
    return replace(unpacked_cond(rows, tensors), guidance_scale=cond.guidance_scale), rows


@contextmanager
def alone(folder: Path, progress: Progress) -> Iterator[None]:
    """Let one process at a time fill the folder; the others wait, and then find the walks there."""
    try:
        strange = [p.name for p in folder.iterdir() if not files.matches_names(p.name, *OURS)]
    except FileNotFoundError:
        strange = []
    except OSError as error:
        raise ConfigError(
            f"'{folder}' cannot keep walks ({error.strerror}): choose another folder"
        ) from None
    if strange:
        raise ConfigError(
            f"'{folder}' holds something other than walks (it has '{min(strange)}'): choose a folder of "
            "their own"
        )
    files.make_folder(folder)
    with files.writing(folder):
        lock = FolderLock(folder, wait=True)
    with lock:
        for text in lock.notes:
            progress.note(text)
        files.tidy(folder, *OURS)
        yield
