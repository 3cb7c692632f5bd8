"""A teacher's answers kept on the disk, one a sample and view, so that it is asked once and not every time.

    FOLDER/view-0000.safetensors   its logits for every sample seen so, [samples, classes] in float32 at least
    FOLDER/view-0000.json          whose they are, of what data, and a checksum

Training with them gives the weights that it gives without, to the bit: a teacher answers in padded blocks
of one size (`Teachers.settled`), and before they are used some are compared with what it answers now.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

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
class KeptAnswers:
    """Called with a batch, the logits of its samples in its views: [B, classes] in float32 at least.

    table  [views, samples, classes]
    """

    table: Tensor

    def __call__(self, batch: Batch) -> Tensor:
        if batch.ids is None or batch.views is None:
            raise _unkeyed()
        at = self.table.device
        return self.table[batch.views.to(at), batch.ids.to(at)].to(batch.x0.device)


def kept_answers(
    folder: Path,
    teacher: Teachers,
    data: Data,
    *,
    device: torch.device | str = "cpu",
    progress: Progress = SILENT,
) -> KeptAnswers:
    """Those in the folder, after what is missing of them was asked and written.

    progress  told of every answer; those that are there already are done at once

    `ConfigError` where a sample's views cannot be told apart, or the folder keeps what another teacher
    answered or of other data; `CheckpointError` for damaged files.
    """
    if not isinstance(data, Dataset):
        raise _unkeyed()
    views = views_of(data)
    settle(teacher, data, device)
    about = {
        "teacher": teacher.digest,
        "data": replace(data, labels=None, names=()).fingerprint(),  # no teacher sees a label
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
                found = _asked(teacher, data, view, device, progress)
                storage.save(stem, {"logits": found}, about)
            tables.append(_read(stem))
    answers = KeptAnswers(torch.stack(tables).to(device))
    _compare(answers, teacher, data, device, folder)
    return answers


def settle(teacher: Teachers, data: Data, device: torch.device | str) -> bool:
    """Whether the teacher can be asked many rows at a time; if not, it is asked one by one from now on."""
    some = data.batch(torch.arange(ROWS) % len(data)).x0
    return teacher.is_reproducible(some.to(device))


def missing(folder: Path, data: Data) -> int:
    """How many of the views are not there yet."""
    return sum(
        not _stem(folder, view).with_suffix(".json").exists() for view in range(views_of(data))
    )


def _stem(folder: Path, view: int) -> Path:
    return folder / f"view-{view:04d}"


def views_of(data: Data) -> int:
    """How many views of each sample there are; `ConfigError` where nobody can count them."""
    if not isinstance(data, Dataset) or data.views is None:
        raise _unkeyed()
    return data.views


def _unkeyed() -> ConfigError:
    return ConfigError(
        "this data is augmented anew at every draw, so a kept answer would be of another picture: give "
        "the augmentation a number of views, or keep no answers (command line: leave --cache out)"
    )


def _asked(
    teacher: Teachers, data: Dataset, view: int, device: torch.device | str, progress: Progress
) -> Tensor:
    """What it answers for every sample in this view."""
    found = list[Tensor]()
    for rows in torch.arange(len(data)).split(ROWS):
        seen = data.viewed(rows, torch.full_like(rows, view))
        found.append(_wide(teacher(seen.x0.to(device))).cpu())
        progress.advance(len(rows))
    logits = torch.cat(found)
    # -inf excludes a class, and is an answer; of all classes it is none.
    if not logits.amax(-1).isfinite().all() or logits.isnan().any():
        raise CheckpointError("the teacher answers with nan or infinity: give one that is trained")
    return logits


def _wide(logits: Tensor) -> Tensor:
    """As losses take them."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _read(stem: Path) -> Tensor:
    try:
        tensors, _ = storage.load(stem, _About)
        return tensors["logits"]
    except (CheckpointError, KeyError) as error:
        said = error if isinstance(error, CheckpointError) else f"'{stem}.safetensors' is no answer"
        raise CheckpointError(
            f"{said}; or delete it and its .json, and the same command asks the teacher again"
        ) from None


def _refuse_foreign(folder: Path, about: Mapping[str, Any]) -> None:
    """What any of the files there say of themselves must be what this one would say."""
    for path in sorted(folder.glob("view-*.json")):
        said = storage.read_about(path.with_suffix(""), _About)
        other = [name for name in about if said[name] != about[name]]
        if other:
            raise ConfigError(
                f"'{folder}' keeps answers with another {other[0]} ({_short(said[other[0]])}, now "
                f"{_short(about[other[0]])}): choose another folder, or delete that one"
            )


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 40 else str(value)


def _compare(
    answers: KeptAnswers, teacher: Teachers, data: Data, device: torch.device | str, folder: Path
) -> None:
    """Two batches as training draws them, against what is kept: the same bits, or nothing is kept."""
    for size in (ROWS, 7):
        generator = torch.Generator().manual_seed(key(size))
        rows = torch.randint(len(data), (size,), generator=generator)
        place = torch.Generator(torch.device(device)).manual_seed(key(size))
        batch = data.training_batch(rows, Draw.all(place, size)).to(device)
        now, kept = _wide(teacher(batch.x0)), answers(batch)
        if not torch.equal(now, kept):
            off = float((now - kept).nan_to_num().abs().max())
            raise ConfigError(
                f"the teacher answers here by up to {off:.1g} other than what '{folder}' keeps of it "
                "(another machine, device or version made it): choose another folder, or keep no answers"
            )


def check_folder(folder: Path) -> None:
    """`ConfigError` where answers cannot be kept: the folder is of something else, or cannot be written."""
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
    """One process at a time: the others wait, and find the answers there."""
    check_folder(folder)
    files.make_folder(folder)
    with files.writing(folder):
        lock = FolderLock(folder, wait=True)
    with lock:
        for text in lock.notes:
            note(text)
        files.tidy(folder, *OURS)
        yield
