"""A folder of images, in any format that Pillow reads.

Files below the folder are images, except hidden ones (a leading dot), those with an extension in `ASIDE`
(notes, tables, sidecars of other tools) and system files (`JUNK`: thumbnails of a NAS, bins, previews):
every other file must be readable, with any extension.  Where the folder has images in sub-folders, each
sub-folder is a class, at any depth of its images.  Classes are sorted by code point, or by number where all
names are whole numbers: '9' before '10', so that folders 0 to n - 1 are those labels.  Links to folders are
followed at the top only.

Images are decoded as `halfstep.data.sources.decoding` says.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from halfstep.errors import DataError
from halfstep.files import is_text

NOTES = (".txt", ".md", ".rst", ".html", ".log", ".py")
TABLES = (".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".ini", ".db")
SIDECARS = (".xmp", ".aae", ".lnk", ".url", ".lrcat")
ASIDE = frozenset(NOTES + TABLES + SIDECARS)
JUNK = frozenset(
    {
        "__macosx", "network trash folder", "temporary items", "icon\r",  # macOS
        "$recycle.bin", "system volume information",  # Windows
        "lost+found", "__pycache__",
        "@eadir", "@tmp", "@sharesnap", "@synoresource", "#recycle", "#snapshot",  # Synology
        "@recycle", "@recently-snapshot", "@downloadstationtempfiles", "@transcode",  # QNAP
    }
)  # fmt: skip
"""Names, in small letters, of what no user has put there."""
PREVIEWS = (".lrdata", ".photoslibrary")
"""Endings of the names of folders in which photo editors keep previews."""
SPLITS = frozenset({"train", "test", "val", "valid", "validation"})


@dataclass(frozen=True, eq=False)
class FolderImages:
    """The images of a folder, in sorted order, and their classes.

    files  paths that begin with `place`
    """

    place: Path
    files: list[Path]
    labels: list[int] | None = None
    class_names: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: Path) -> "FolderImages":
        """List the images of a folder."""
        return cls(folder, *listed(folder))

    def __len__(self) -> int:
        return len(self.files)

    def name(self, k: int) -> str:
        return self.files[k].relative_to(self.place).as_posix()

    def opened(self, k: int) -> Path:
        return self.files[k]

    def content(self, k: int) -> bytes:
        return self.files[k].read_bytes()

    def stamp(self, k: int) -> str:
        return stamp_of(self.files[k].stat())

    def captions(self) -> list[tuple[str, ...]] | None:
        """None: captions lie beside the images, where `halfstep.data.latents.captions` reads them."""
        return None


def stamp_of(stat: os.stat_result) -> str:
    """A file's size and time of change."""
    return f"{stat.st_size} {stat.st_mtime_ns}"


def listed(folder: Path) -> tuple[list[Path], list[int] | None, tuple[str, ...]]:
    """The files, their labels, and the names of the classes."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if is_visible(entry.name))
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}") from None
    inside = {e.name: sorted(_below(e)) for e in _in_order([e for e in entries if e.is_dir()])}
    loose = [e for e in entries if not e.is_dir() and _counts(e)]
    if not any(inside.values()):
        if not loose:
            raise DataError(f"no images in {folder}: name the folder that holds them")
        return loose, None, ()
    if loose:
        raise DataError(
            f"{folder} has images beside sub-folders of images ('{loose[0].name}' beside "
            f"'{next(name for name, files in inside.items() if files)}'): put every image in a "
            "sub-folder, one for each class, or none"
        )
    if len(SPLITS & inside.keys()) > 1:
        both = " and ".join(sorted(SPLITS & inside.keys()))
        raise DataError(
            f"the sub-folders {both} of {folder} look like splits, not classes: name one of them, "
            f"for example {folder / min(SPLITS & inside.keys())}"
        )
    if odd := [name for name in inside if not is_text(name)]:
        raise DataError(f"sub-folder {odd[0]!a} of {folder} is not UTF-8: rename it")
    empty = [name for name, files in inside.items() if not files]
    if empty:
        raise DataError(
            f"sub-folder '{empty[0]}' of {folder} is a class without images: remove it or fill it"
        )
    labels = [k for k, files in enumerate(inside.values()) for _ in files]
    return [file for files in inside.values() for file in files], labels, tuple(inside)


def _in_order(folders: list[Path]) -> list[Path]:
    """The classes' folders in order: by number where all names are numbers."""
    if all(folder.name.isascii() and folder.name.isdecimal() for folder in folders):
        return sorted(folders, key=lambda folder: int(folder.name))
    return folders


def _below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"cannot list {error.filename}: {error.strerror}")

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if is_visible(name)]
        yield from (
            path for name in files if is_visible(name) and _counts(path := Path(root, name))
        )


def is_visible(name: str) -> bool:
    small = name.lower()
    return not small.startswith(".") and small not in JUNK and not small.endswith(PREVIEWS)


def _counts(file: Path) -> bool:
    return file.suffix.lower() not in ASIDE
