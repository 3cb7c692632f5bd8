"""Large arrays in memory-mapped .npy files, one after the other."""

import hashlib
import io
import itertools
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

from halfstep import files, storage
from halfstep.errors import CheckpointError
from halfstep.progress import Progress


class Entry(TypedDict):
    """A file's entry in latents.json: its name, rows, sha256, and the digest and stamp of its images."""

    file: str
    rows: int
    sha256: str
    source: NotRequired[str]
    stamp: NotRequired[str]


State = tuple[int, int, int, int, str]
"""Size, modification time, change time, inode and sha256 of a verified file."""
VERIFIED = "verified.json"
AGAIN = "run the same halfstep latents command again"


@dataclass(frozen=True, eq=False)
class Shards:
    """Tensors that form one long tensor: rows are counted across all."""

    parts: tuple[Tensor, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return tuple(self.parts[0].shape[1:])

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @cached_property
    def _ends(self) -> Tensor:
        lengths = torch.tensor([len(part) for part in self.parts], device=self.parts[0].device)
        return lengths.cumsum(0)

    def rows(self, rows: Tensor) -> Tensor:
        """These rows, int64 [B], in their order, with one gather per shard."""
        rows = rows.to(self.parts[0].device)
        if len(self.parts) == 1:
            return self.parts[0].index_select(0, rows)
        shard_of = torch.bucketize(rows, self._ends, right=True)
        gathered = self.parts[0].new_empty(len(rows), *self.shape)
        for k in shard_of.unique().tolist():
            places = (shard_of == k).nonzero()[:, 0]
            part = self.parts[k]
            gathered[places] = part.index_select(0, rows[places] - (self._ends[k] - len(part)))
        return gathered

    def to(self, device: torch.device | str) -> "Shards":
        """The shards on another device, as one tensor; on the CPU the files stay mapped."""
        if self.parts[0].device == torch.device(device):
            return self
        return Shards((torch.cat([part.to(device) for part in self.parts]),))


# -- files -----------------------------------------------------------------------------------------


def written(path: Path, shape: Sequence[int], dtype: torch.dtype, parts: Iterable[Tensor]) -> Entry:
    """Write an .npy file of these parts, one after the other, atomically."""
    head, digest = io.BytesIO(), hashlib.sha256()
    descr = np.lib.format.dtype_to_descr(np.dtype(str(dtype).removeprefix("torch.")))
    about = {"descr": descr, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(head, about)
    arrays = (x.contiguous().numpy().tobytes() for x in parts)
    with files.replacing(path) as (part,), part.open("wb") as file:
        for piece in itertools.chain([head.getvalue()], arrays):
            digest.update(piece)
            file.write(piece)
    return {"file": path.name, "rows": shape[0], "sha256": digest.hexdigest()}


def whole(path: Path, x: Tensor) -> Entry:
    """Write an .npy file of one tensor, atomically."""
    return written(path, x.shape, x.dtype, [x])


def mapped(path: Path, shape: Sequence[int], dtype: torch.dtype, *, again: str = AGAIN) -> Tensor:
    """The array of an .npy file, memory-mapped, without an open file.

    again  what makes a missing file again, in an error

    `CheckpointError` unless it has this shape and dtype, and the file the right length.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"version {version}")
            header = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
        length = math.prod(shape) * dtype.itemsize
        size = path.stat().st_size
        expected = np.dtype(str(dtype).removeprefix("torch."))
        if header != (tuple(shape), False, expected) or size != start + length:
            raise ValueError(f"{size:,} bytes, of shape {list(header[0])} and {header[2]}")
        # Private to this process: changes of the tensor do not reach the file.
        raw = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except FileNotFoundError:
        raise CheckpointError(f"'{path}' is missing: {again}") from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"'{path}' is damaged ({reason}): delete it, and {again}") from None
    return raw[start:].view(dtype).view(*shape)


def verify(
    folder: Path,
    entries: list[Entry],
    progress: Progress,
    *,
    anew: bool = False,
    about: str = "latents.json",
    again: str = AGAIN,
) -> None:
    """Compare checksums; `CheckpointError` names a file that is damaged.

    A file that was verified before and not written since is skipped: verified.json has its size, inode and
    times, among them the change time, which programs cannot set.  Silent disk errors leave no such trace.

    anew   compare all files again
    about  the file that has the entries, in an error
    again  what makes a missing file again, in an error
    """
    before, now = {} if anew else _verified(folder), dict[str, State]()

    def compare(entry: Entry) -> tuple[State, bool]:
        path = folder / entry["file"]
        state = (
            *_state(path, again),
            entry["sha256"],
        )  # before the content, which may change meanwhile
        if before.get(entry["file"]) == state:
            return state, True
        checksum = storage.checksum(path, missing=f"is missing: {again}")
        return state, checksum == entry["sha256"]

    progress.expect(len(entries))
    with ThreadPoolExecutor(4) as pool:  # hashing releases Python's lock
        results = pool.map(compare, entries)
        for entry, (state, right) in zip(entries, results, strict=True):
            if not right:
                path = folder / entry["file"]
                raise CheckpointError(
                    f"'{path}' is damaged: its checksum is not the one in {about}; delete it, and {again}"
                )
            now[entry["file"]] = state
            progress.advance()
    if now != before:
        _remember(folder, now)


def _verified(folder: Path) -> dict[str, State]:
    """The states of the verified files; {} without a readable verified.json."""
    try:
        states = storage.read_json(folder / VERIFIED, dict[str, State])
    except CheckpointError:
        return {}
    return {name: tuple(state) for name, state in states.items()}  # type: ignore[misc]  # json has lists


def _remember(folder: Path, verified: dict[str, State]) -> None:
    """Write verified.json; in a read-only folder, every opening compares all checksums instead."""
    with suppress(CheckpointError):
        storage.write_json(folder / VERIFIED, verified)


def _state(path: Path, again: str) -> tuple[int, int, int, int]:
    with storage.reading(path, missing=f"is missing: {again}"):
        stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
