"""A cache of a teacher's logits on disk, computed once for each sample and view.

    FOLDER/view-0000.safetensors   logits of every sample in this view, [samples, classes] in float32 at least
    FOLDER/view-0000.json          digests of teacher and data, and a checksum

Training with the cache gives the same weights as without, to the bit: a teacher computes in padded blocks of
one size, and some cached logits are compared with new ones before they are used.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from halfstep import files, storage
from halfstep.batch import Batch
from halfstep.data import Data, Dataset
from halfstep.errors import CheckpointError, ConfigError
from halfstep.folder_lock import FolderLock
from halfstep.models.classifiers.ensemble import ROWS, Teachers
from halfstep.progress import Progress, SILENT
from halfstep.rng import Draw, key

OURS = (files.LOCK, "view-*.json", "view-*.safetensors")
"""Names of the files of a cache."""

_About = TypedDict(
    "_About",
    {
        "teacher": str,
        "data": str,
        "views": int,
        "augmentation": str,
        "samples": int,
        "dtype": str,
        "rows at a time": int,
    },
)


@dataclass(frozen=True, eq=False)
class CachedLogits:
    """Maps a batch to the logits of its samples and views, [B, classes] in float32 at least.

    table  [views, samples, classes]
    """

    table: Tensor

    def __call__(self, batch: Batch) -> Tensor:
        if batch.ids is None or batch.views is None:
            raise _unkeyed()
        device = self.table.device
        return self.table[batch.views.to(device), batch.ids.to(device)].to(batch.x0.device)


def cached_logits(
    folder: Path,
    teacher: Teachers,
    data: Data,
    *,
    device: torch.device | str = "cpu",
    progress: Progress = SILENT,
) -> CachedLogits:
    """The logits in the folder; missing ones are computed and written first.

    progress  counts the samples and views; those in the folder advance it at once

    `ConfigError` if the views of a sample cannot be told apart, or the folder has the logits of another
    teacher or of other data; `CheckpointError` for damaged files.
    """
    if not isinstance(data, Dataset):
        raise _unkeyed()
    views = views_of(data)
    check_reproducible(teacher, data, device)
    about: _About = {
        "teacher": teacher.digest,
        "data": replace(data, labels=None, names=()).fingerprint(),  # whatever its labels
        "views": views,
        "augmentation": repr(data.augmentation or data.flip),
        "samples": len(data),
        "dtype": str(_wide(teacher(data.batch(torch.arange(1)).x0.to(device))).dtype),
        "rows at a time": teacher.rows,
    }
    tables = list[Tensor]()
    progress.expect(views * len(data))
    with _alone(folder, progress.note):
        _refuse_foreign(folder, about)
        for view in range(views):
            stem = _stem(folder, view)
            if stem.with_suffix(".json").exists():
                progress.advance(len(data))
            else:
                logits = _teacher_logits(teacher, data, view, device, progress)
                storage.save(stem, {"logits": logits}, about)
            tables.append(_read(stem))
    cache = CachedLogits(torch.stack(tables).to(device))
    _compare(cache, teacher, data, device, folder)
    return cache


def check_reproducible(teacher: Teachers, data: Data, device: torch.device | str) -> bool:
    """Whether logits are independent of the place in a batch; if not, the teacher computes one by one."""
    images = data.batch(torch.arange(ROWS) % len(data)).x0
    return teacher.is_reproducible(images.to(device))


def missing(folder: Path, data: Data) -> int:
    """The number of views that are not in the folder."""
    return sum(
        not _stem(folder, view).with_suffix(".json").exists() for view in range(views_of(data))
    )


def _stem(folder: Path, view: int) -> Path:
    return folder / f"view-{view:04d}"


def views_of(data: Data) -> int:
    """The number of views of each sample; `ConfigError` for data with a new view at every draw."""
    if not isinstance(data, Dataset) or data.views is None:
        raise _unkeyed()
    return data.views


def _unkeyed() -> ConfigError:
    return ConfigError(
        "this data is augmented anew at every draw, so a kept answer would be of another picture: give "
        "the augmentation a number of views, or keep no answers (command line: leave --cache out)"
    )


def _teacher_logits(
    teacher: Teachers, data: Dataset, view: int, device: torch.device | str, progress: Progress
) -> Tensor:
    """The teacher's logits of every sample in this view."""
    parts = list[Tensor]()
    for rows in torch.arange(len(data)).split(ROWS):
        batch = data.viewed(rows, torch.full_like(rows, view))
        parts.append(_wide(teacher(batch.x0.to(device))).cpu())
        progress.advance(len(rows))
    logits = torch.cat(parts)
    # -inf excludes a class, but not all of them.
    if not logits.amax(-1).isfinite().all() or logits.isnan().any():
        raise CheckpointError("the teacher answers with nan or infinity: give one that is trained")
    return logits


def _wide(logits: Tensor) -> Tensor:
    """The logits in the precision of the losses, float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _read(stem: Path) -> Tensor:
    try:
        tensors, _ = storage.load(stem, _About)
        return tensors["logits"]
    except (CheckpointError, KeyError) as error:
        lacks = f"'{stem}.safetensors' has no logits"
        reason = error if isinstance(error, CheckpointError) else lacks
        raise CheckpointError(
            f"{reason}; or delete it and its .json, and the same command asks the teacher again"
        ) from None


def _refuse_foreign(folder: Path, about: Mapping[str, object]) -> None:
    """`ConfigError` if a file in the folder is of another teacher or of other data."""
    for path in sorted(folder.glob("view-*.json")):
        before = storage.read_about(path.with_suffix(""), _About)
        different = next((name for name in about if before[name] != about[name]), None)
        if different is not None:
            raise ConfigError(
                f"'{folder}' keeps answers with another {different} ({_short(before[different])}, now "
                f"{_short(about[different])}): choose another folder, or delete that one"
            )


def _short(value: object) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 40 else str(value)


def _compare(
    cache: CachedLogits, teacher: Teachers, data: Data, device: torch.device | str, folder: Path
) -> None:
    """`ConfigError` unless cached and new logits of two training batches are equal to the bit."""
    for size in (ROWS, 7):
        generator = torch.Generator().manual_seed(key(size))
        rows = torch.randint(len(data), (size,), generator=generator)
        generator = torch.Generator(torch.device(device)).manual_seed(key(size))
        batch = data.training_batch(rows, Draw.all(generator, size)).to(device)
        now, cached = _wide(teacher(batch.x0)), cache(batch)
        if not torch.equal(now, cached):
            off = float((now - cached).nan_to_num().abs().max())
            raise ConfigError(
                f"the teacher answers here by up to {off:.1g} other than what '{folder}' keeps of it "
                "(another machine, device or version made it): choose another folder, or keep no answers"
            )


def check_folder(folder: Path) -> None:
    """`ConfigError` for a folder that cannot be written or holds other files."""
    files.check_writable(folder, "choose another folder")
    try:
        strange = [p.name for p in folder.iterdir() if not files.matches_names(p.name, *OURS)]
    except FileNotFoundError:
        strange = []
    except OSError as error:
        raise ConfigError(
            f"'{folder}' cannot keep answers ({error.strerror}): choose another folder"
        ) from None
    if strange:
        raise ConfigError(
            f"'{folder}' holds something other than a teacher's answers (it has '{min(strange)}'): "
            "choose a folder of their own"
        )


@contextmanager
def _alone(folder: Path, note: Callable[[str], object]) -> Iterator[None]:
    """Let one process at a time fill the cache; the others wait, and then read it."""
    check_folder(folder)
    files.make_folder(folder)
    with files.writing(folder):
        lock = FolderLock(folder, wait=True)
    with lock:
        for text in lock.notes:
            note(text)
        files.tidy(folder, *OURS)
        yield
