"""What lies at a place: a folder of images, tar shards, or tables; by files, a folder or a pattern.

A pattern has `*` or a range, `{000..003}`, in the names of files: `shards/{000..003}.tar`,
`data/train-*.parquet`.
"""

import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from halfstep.data.sources.columns import split_spec
from halfstep.data.sources.image_files import ImageFiles
from halfstep.data.sources.image_folder import FolderImages, is_visible, SPLITS
from halfstep.errors import ConfigError, DataError
from halfstep.progress import Progress, SILENT

SHARDS, TABLES = (".tar",), (".parquet", ".arrow")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST = 10**6
"""The most files of a range."""
LOOKS = 20
"""Entries of a sub-folder that show whether it holds shards or tables."""
SPLIT = re.compile(rf"(?:^|[-_])({'|'.join(sorted(SPLITS))})(?=[-_.]|$)")


def open_images(
    spec: str, *, first: bool = False, progress: Progress = SILENT
) -> ImageFiles | None:
    """The encoded images at a place; None where there are none: data by name, and arrays.

    first     of several shards or tables the first alone, to look at an image
    progress  advances while shards are indexed

    `DataError` for a place that holds several splits, or shards beside images; `ConfigError` for a pattern
    without files.
    """
    text, columns = split_spec(spec)
    place = Path(text).expanduser()
    files = _files(text, place)
    if files is None:
        if place.is_dir():
            if columns:
                raise ConfigError(
                    f"'{text}' is a folder of images, which has no columns: leave "
                    f"'{spec.removeprefix(text)}' out"
                )
            return FolderImages.open(place)
        return None
    if (split := _splits(place, files)) is not None:
        raise DataError(f"{place} holds several splits: name one of them, for example {split}")
    files = files[:1] if first else files
    if files[0].suffix.lower() in SHARDS:
        from halfstep.data.sources.tar_shards import ShardImages

        return ShardImages.open(place, files, columns, progress)
    from halfstep.data.sources.table_files import part_of
    from halfstep.data.sources.tables import TableImages

    return TableImages.open(place, [part_of(file) for file in files], columns, progress)


def is_collection(spec: str) -> bool:
    """Whether a place holds encoded images: a folder, shards, or tables."""
    text, _ = split_spec(spec)
    place = Path(text).expanduser()
    return bool(text) and (place.is_dir() or _files(text, place) is not None)


def _files(text: str, place: Path) -> list[Path] | None:
    """The shards or tables at a place, in order; None where there are none."""
    if place.is_file():
        return [place] if place.suffix.lower() in SHARDS + TABLES else None
    if place.is_dir():
        return _in_folder(place)
    if "*" not in text and not RANGE.search(text):
        return None
    files = [file for name in _expanded(str(place)) for file in _matches(Path(name))]
    if not files:
        raise ConfigError(f"no file matches '{text}': name files that exist")
    kinds = {file.suffix.lower() for file in files}
    if len(kinds) > 1 or not kinds <= {*SHARDS, *TABLES}:
        raise ConfigError(
            f"'{text}' names files {', '.join(sorted(kinds))}: a pattern is of .tar, of .parquet or of .arrow"
        )
    return files


def _in_folder(folder: Path) -> list[Path] | None:
    """The shards or tables in a folder and in its sub-folders; None for a folder of images."""
    from halfstep.data.sources.table_files import SAVED, saved_splits

    if (folder / SAVED).is_file():
        return [folder]
    if (splits := saved_splits(folder)) is not None:
        if len(splits) == 1:
            return [folder / splits[0]]
        raise DataError(
            f"{folder} holds the splits {', '.join(splits)}: name one of them, for example "
            f"{folder / (splits or ['train'])[0]}"
        )
    files, pictures = list[Path](), list[str]()
    for entry in _entries(folder):
        name = entry.name.lower()
        if entry.is_dir() and any(_counts(e) for e in _entries(Path(entry.path), LOOKS)):
            files += [Path(e.path) for e in _entries(Path(entry.path)) if _counts(e)]
        elif _counts(entry):
            files.append(Path(entry.path))
        elif name.endswith(PICTURES):
            pictures.append(entry.name)
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) > 1:
        raise DataError(
            f"{folder} has files {' and '.join(kinds)}: name one kind, as {folder}/*{kinds[0]}"
        )
    if files and pictures:
        raise DataError(
            f"{folder} has {pictures[0]} beside {files[0].name}: put images into a folder of their own, or "
            f"name the files as {folder}/*{kinds[0]}"
        )
    return sorted(files) or None


def _entries(folder: Path, most: int | None = None) -> list[os.DirEntry[str]]:
    """The visible entries of a folder, at most so many."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in islice(entries, most) if is_visible(entry.name)]
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}") from None


def _counts(entry: os.DirEntry[str]) -> bool:
    """Whether this is a shard or a table."""
    return entry.name.lower().endswith(SHARDS + TABLES) and entry.is_file()


def _splits(place: Path, files: Sequence[Path]) -> str | None:
    """A pattern of one split, where the files belong to several; None where they do not."""
    names: dict[str, Path] = {}
    for file in files:
        below = file.relative_to(place).as_posix() if file.is_relative_to(place) else file.name
        folder, _, name = below.rpartition("/")
        found = SPLIT.search(name.lower()) or SPLIT.search(folder.lower())
        if found and place.is_dir():
            names.setdefault(found[1], file)
    if len(names) < 2:
        return None
    split, file = min(names.items())
    if split in file.name.lower():
        return str(file.parent / f"*{split}*{file.suffix}")
    return str(file.parent)


def _expanded(pattern: str) -> list[str]:
    """The names that a pattern's ranges stand for: {000..003} is 000, 001, 002 and 003."""
    if (match := RANGE.search(pattern)) is None:
        return [pattern]
    low, high, width = int(match[1]), int(match[2]), len(match[1])
    if high < low or high - low >= MOST:
        raise ConfigError(f"'{match[0]}' is no range of at most {MOST:,} files: write {{000..003}}")
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [
        name for n in range(low, high + 1) for name in _expanded(f"{before}{n:0{width}}{after}")
    ]


def _matches(pattern: Path) -> list[Path]:
    """The files of a pattern with `*` in its last part, sorted; of a name that file."""
    if "*" not in str(pattern):
        if not pattern.is_file():
            raise DataError(f"there is no file {pattern}: give one that exists")
        return [pattern]
    if "*" in str(pattern.parent):
        raise ConfigError(
            f"'{pattern}' has a * in the name of a folder: write it in the name of files"
        )
    return sorted(file for file in pattern.parent.glob(pattern.name) if is_visible(file.name))
