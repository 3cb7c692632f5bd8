"""Kept walks: the points of a teacher's trajectories on the disk, and what made them.

    WALKS/walks.json              what made the walks, checksums
    WALKS/points-00000-256.npy    float [rows, points, ...]: the states of the first 256 walks, noise first
    WALKS/condition-00000-256.npy with conditions: of each walk a row of bytes, uint8 (see `latents.contexts`)
    WALKS/scale-00000-256.npy     float64 [rows], of a network that takes its guidance scale as an input
    WALKS/verified.json           files whose checksums were compared (see `latents.shards`)

A method reads a store so::

    walks = open_walks(folder)
    walks.times                  # the times of the kept points: noise first, 0 last
    len(walks)                   # walks of the numbers 0, 1, ...: more walks later leave these as they are
    i = torch.tensor([0, 5, 7])  # numbers of walks, one a sample
    walks.at(i, k)               # the states at times[k], float32 [3, ...]; k is int64 [3]
    walks.cond(i)                # their labels, texts and guidance scales, a `Cond` or None
    walks.places(times)          # the numbers k of these times; refused where one is not kept

`halfstep.data.walks.writing` writes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from halfstep import storage
from halfstep.batch import Cond
from halfstep.data.latents.contexts import as_cond, bytes_of, TensorFormat, unpacked
from halfstep.data.latents.shards import Entry, mapped, Shards, verify as verify_files
from halfstep.diffusion.time_grids import Times
from halfstep.errors import CheckpointError, ConfigError
from halfstep.progress import Progress, SILENT

ABOUT = "walks.json"
FORMAT = "halfstep walks 1"
SHARD = 256
"""Walks in a file."""
SAME = 1e-9
"""Times closer than this are equal."""
AGAIN = "run the same command again"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
Formats = dict[str, TensorFormat]


class Key(TypedDict):
    """What made the walks: all that their numbers depend on but their number.

    teacher     digest of the network's weights
    network     its schedule, parameterisation and time input
    conditions  digest of the labels or texts; empty without
    times       the solver's grid
    points      numbers of the grid's points that are kept
    """

    teacher: str
    network: str
    solver: str
    times: list[float]
    points: list[int]
    seed: int
    conditions: str
    guidance_scale: float
    guidance_range: list[float] | None
    guidance_norm: int
    clip: float | None
    clipping: str
    shape: list[int]
    precision: str
    dtype: Literal["float32", "float16"]


class Shard(TypedDict):
    """The files of as many walks as there are rows."""

    rows: int
    files: list[Entry]


class About(Key):
    """The contents of walks.json.

    batch   walks that were walked together, which changes the rounding of sums
    tensors the tensors of a condition; None without
    scales  whether each walk has a guidance scale
    """

    format: str
    batch: int
    tensors: Formats | None
    scales: bool
    shards: list[Shard]


MADE_OF = {
    "teacher": "teacher",
    "network": "schedule or parameterisation",
    "solver": "solver",
    "times": "time grid or number of steps",
    "points": "choice of points, which follows from first,",
    "seed": "seed",
    "conditions": "labels or texts",
    "guidance_scale": "guidance scale",
    "guidance_range": "range of guidance scales",
    "guidance_norm": "norm of guidance",
    "clip": "clip",
    "clipping": "clipping",
    "shape": "shape of samples",
    "precision": "precision",
    "dtype": "precision of the files",
}
"""The names of a key's parts in error messages."""


@dataclass(frozen=True, eq=False)
class Walks:
    """Kept walks of a teacher, read by number; `open_walks` makes it.

    states      row len(times) * i + k is the state of walk i at times[k]
    times       of the kept points: noise first, 0 last
    conditions  of each walk a row of bytes, or None
    tensors     of a row of bytes
    scales      float64 [walks], the guidance scale that the network took as an input, or None
    """

    states: Shards
    times: Times
    conditions: Shards | None = None
    tensors: Formats | None = None
    scales: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states) // len(self.times)

    @property
    def nbytes(self) -> int:
        """The number of bytes that `in_memory` takes."""
        return self.states.nbytes + (self.conditions.nbytes if self.conditions else 0)

    def in_memory(self, device: torch.device | str) -> "Walks":
        """The walks in the memory of a device, in one piece: many files take a gather each."""
        return replace(
            self,
            states=_whole(self.states, device),
            conditions=self.conditions and _whole(self.conditions, device),
            scales=None if self.scales is None else self.scales.to(device),
        )

    def places(self, times: Sequence[float]) -> Tensor:
        """The numbers of these times among the kept ones, int64; `ConfigError` for one that is not kept."""
        places = list[int]()
        for t in times:
            k = next((k for k, kept in enumerate(self.times) if abs(kept - t) < SAME), None)
            if k is None:
                kept = ", ".join(f"{each:g}" for each in self.times)
                raise ConfigError(
                    f"these walks keep no points at t = {t:g}, but at {kept}: keep more points, or take "
                    "students whose steps begin there"
                )
            places.append(k)
        return torch.tensor(places)

    def at(self, walks: Tensor, places: Tensor) -> Tensor:
        """The states of these walks at these kept times, [B, ...] in float32 at least.

        walks   int64 [B], numbers of walks
        places  int64 [B], numbers of kept times
        """
        device = self.states.parts[0].device
        states = self.states.rows(len(self.times) * walks.to(device) + places.to(device))
        return states.to(torch.promote_types(states.dtype, torch.float32))

    def cond(self, walks: Tensor) -> Cond | None:
        """The conditions of these walks, one row a walk, or None."""
        cond = None
        if self.conditions is not None and self.tensors is not None:
            cond = unpacked_cond(self.conditions.rows(walks), self.tensors)
        if self.scales is not None:
            scale = self.scales[walks.to(self.scales.device)]
            cond = replace(cond or Cond(), guidance_scale=scale)
        return cond


def _whole(shards: Shards, device: torch.device | str) -> Shards:
    return Shards((torch.cat(shards.parts).to(device),))


def unpacked_cond(rows: Tensor, tensors: Formats) -> Cond:
    """The condition in rows of bytes, labels too."""
    named = unpacked(rows, tensors)
    label = named.pop("label", None)
    return replace(as_cond(named), label=label)


def is_walks(folder: Path) -> bool:
    """Whether a folder holds walks."""
    return (folder / ABOUT).is_file()


def read_about(folder: Path) -> About:
    """The contents of walks.json."""
    path = folder / ABOUT
    about: About = storage.read_json(
        path, About, format=FORMAT, mend=f"delete '{folder}', and {AGAIN}"
    )
    for shard in about["shards"]:
        for entry in shard["files"]:
            if Path(entry["file"]).name != entry["file"]:
                raise CheckpointError(
                    f"'{path}' names a file outside its folder: {entry['file']!r}"
                )
    return about


def open_walks(
    folder: Path | str, *, key: Key | None = None, verify: bool = True, progress: Progress = SILENT
) -> Walks:
    """The walks of a folder, memory-mapped; `CheckpointError` names a file that is damaged.

    key       what must have made them: `ConfigError` says what differs
    verify    compare the checksums of files that were written since the last comparison
    progress  advances with every verified file
    """
    folder = Path(folder).expanduser()
    if not is_walks(folder):
        raise ConfigError(
            f"'{folder}' holds no walks: give a folder that distill cached-walks made"
        )
    about = read_about(folder)
    if key is not None:
        refuse_other_key(folder, about, key)
    if verify:
        entries = [entry for shard in about["shards"] for entry in shard["files"]]
        verify_files(folder, entries, progress, about=ABOUT, again=AGAIN)
    return _walks(folder, about)


def kept_times(times: Sequence[float], points: Sequence[int]) -> Times:
    """The times of the kept points: the walk's last is data, t = 0, wherever the solver's grid ends."""
    last = len(times) - 1
    return tuple(0.0 if k == last else times[k] for k in points)


def refuse_other_key(folder: Path, about: Key, key: Key) -> None:
    """`ConfigError` unless the walks of a folder were made by the same."""
    for name, value in key.items():
        if (before := about.get(name)) != value:
            raise ConfigError(
                f"'{folder}' holds walks with another {MADE_OF[name]} ({_short(before)}, now "
                f"{_short(value)}): choose another folder, or delete that one"
            )


def _short(value: Any) -> str:
    text = f"{value[:12]}..." if isinstance(value, str) and len(value) > 40 else str(value)
    return f"{len(value) - 1} steps" if isinstance(value, list) and len(text) > 60 else text


def _walks(folder: Path, about: About) -> Walks:
    shape, points = about["shape"], about["points"]

    def parts(kind: str, row: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
        files = [
            (shard["rows"], entry["file"])
            for shard in about["shards"]
            for entry in shard["files"]
            if entry["file"].startswith(kind)
        ]
        return [mapped(folder / name, (rows, *row), dtype, again=AGAIN) for rows, name in files]

    states = parts("points", (len(points), *shape), DTYPES[about["dtype"]])
    if not states:
        raise CheckpointError(f"'{folder}' holds no walk yet: {AGAIN}")
    walks = Walks(
        Shards(tuple(part.flatten(0, 1) for part in states)), kept_times(about["times"], points)
    )
    if (tensors := about["tensors"]) is not None:
        rows = parts("condition", (bytes_of(tensors),), torch.uint8)
        walks = replace(walks, conditions=Shards(tuple(rows)), tensors=tensors)
    if about["scales"]:
        walks = replace(walks, scales=torch.cat(parts("scale", (), torch.float64)))
    return walks
