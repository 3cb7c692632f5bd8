"""A folder of images, in any format that Pillow reads.

Files below the folder are images, except hidden ones (a leading dot), those with an extension in `ASIDE`
(notes, tables, sidecars of other tools) and system files (`JUNK`: thumbnails of a NAS, bins, previews):
every other file must be readable, with any extension.  Where the folder has images in sub-folders, each
sub-folder is a class, at any depth of its images.  Classes are sorted by code point, or by number where all
names are whole numbers: '9' before '10', so that folders 0 to n - 1 are those labels.  Links to folders are
followed at the top only.

An image is turned as its EXIF says, put on white where transparent, brought to 8 bits (16-bit gray
is scaled, not clipped), made gray or RGB, cropped to its central square and resized, up or down, by
Lanczos with antialiasing.  Of an animation the first frame counts.  Colour profiles are ignored.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from halfstep.capacity import refuse_too_large
from halfstep.data.dataset import Dataset
from halfstep.errors import ConfigError, DataError
from halfstep.files import is_text
from halfstep.progress import Progress, SILENT

Pixels = NDArray[np.uint8]

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
GRAY = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})
NAMED = 5
"""How many faulty files an error names; it counts the rest."""


def load(
    folder: Path,
    size: int | None = None,
    channels: int | None = None,
    progress: Progress = SILENT,
) -> Dataset:
    """Every image of the folder, uint8 [N, C, size, size], in sorted order.

    size       pixels a side; None keeps the images' sizes, which must be equal
    channels   1 (gray) or 3 (RGB); None is 1 where every image is gray
    """
    check_channels(channels)
    files, labels, names = listed(folder)
    channels = channels or channels_of(files)
    if size is not None:
        refuse_many(len(files), (channels, size, size))
    values = torch.from_numpy(_read_all(folder, files, size, channels, progress))
    return Dataset(values, None if labels is None else torch.tensor(labels), names)


def check_channels(channels: int | None) -> None:
    """`ConfigError` for other channels than 1 and 3."""
    if channels not in (None, 1, 3):
        raise ConfigError(f"images have 1 channel or 3, not {channels}: write channels=3")


def refuse_many(count: int, shape: tuple[int, ...], *, size: int = 1) -> None:
    """`ConfigError` for images that do not fit into memory, with `size` bytes per value."""
    images = f"{count:,} images of {shape[-1]} pixels a side"
    refuse_too_large(images, (count, *shape), "write a smaller size", size=size)


# -- which files -----------------------------------------------------------------------------------


def listed(folder: Path) -> tuple[list[Path], list[int] | None, tuple[str, ...]]:
    """The files, their labels, and the names of the classes."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if _visible(entry.name))
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
        folders[:] = [name for name in folders if _visible(name)]
        yield from (path for name in files if _visible(name) and _counts(path := Path(root, name)))


def _visible(name: str) -> bool:
    small = name.lower()
    return not small.startswith(".") and small not in JUNK and not small.endswith(PREVIEWS)


def _counts(file: Path) -> bool:
    return file.suffix.lower() not in ASIDE


def channels_of(files: list[Path]) -> int:
    """1 if every image is gray, else 3; reads headers until the first in colour."""
    for file in files:
        try:
            with Image.open(file) as image:
                if image.mode not in GRAY:
                    return 3
        except Exception:  # the error is reported when the file is read
            continue
    return 1


def side_of(folder: Path) -> int | None:
    """Pixels a side of the first image; None if it cannot be read."""
    pixels = read(listed(folder)[0][0], None, 1)
    return None if isinstance(pixels, str) else int(pixels.shape[-1])


# -- their pixels ----------------------------------------------------------------------------------


def _read_all(
    folder: Path, files: list[Path], size: int | None, channels: int, progress: Progress
) -> Pixels:
    """All images, uint8 [N, C, side, side]; reads every file first, so that the error names all faults."""
    values: Pixels | None = None
    faults: list[str] = []
    odd: str | None = None
    progress.expect(len(files))
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        results = pool.map(partial(read, size=size, channels=channels), files)
        for k, (file, pixels) in enumerate(zip(files, results, strict=True)):
            if isinstance(pixels, str):
                faults.append(f"{file.relative_to(folder)} ({pixels})")
            else:
                if values is None:
                    refuse_many(len(files), pixels.shape)
                    values = np.empty((len(files), *pixels.shape), np.uint8)
                    first, side = file, pixels.shape[-1]
                if pixels.shape == values.shape[1:]:
                    values[k] = pixels
                else:
                    odd = odd or (
                        f"{first.relative_to(folder)} gives {side} pixels a side and "
                        f"{file.relative_to(folder)} {pixels.shape[-1]}"
                    )
            progress.advance()
    finally:
        pool.shutdown(cancel_futures=True)
    if faults or values is None:
        more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise DataError(
            f"{len(faults)} of {len(files)} files in {folder} cannot be read as images: "
            f"{', '.join(faults[:NAMED])}{more}; replace or remove them"
        )
    if odd:
        raise ConfigError(f"images in {folder} differ in size ({odd}): say size=, for example 64")
    return values


def read(file: Path, size: int | None, channels: int) -> Pixels | str:
    """The pixels of a file, [C, side, side], or the reason why it cannot be read."""
    try:
        with Image.open(file) as opened:
            opened.load()
            image = _opaque(ImageOps.exif_transpose(opened), opened.format)
        image = _square(image.convert("L" if channels == 1 else "RGB"), size)
    except UnidentifiedImageError:
        return "not an image"
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise many types on damaged files
        return str(error).partition("\n")[0] or type(error).__name__
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else np.moveaxis(pixels, -1, 0)


def _opaque(image: Image.Image, kind: str | None) -> Image.Image:
    """The image in 8 bits a channel, transparent parts on white."""
    clear = "transparency" in image.info
    if image.mode.startswith("I"):
        if clear or (image.mode == "I" and kind not in ("PNG", "PPM")):
            raise DataError("gray of 32 bits or 16 with transparency; save it with 8 bits")
        wide = np.asarray(image).astype(np.float64)  # `convert` would clip at 255
        return Image.fromarray(np.rint(wide / 257).astype(np.uint8))
    if image.mode == "F":
        raise DataError("pixels are floats of unknown range; save it with 8 bits")
    if clear or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _square(image: Image.Image, size: int | None) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    if width != height:
        image = image.crop((left, top, left + side, top + side))
    if size is None or size == side:
        return image
    return image.resize((size, size), Image.Resampling.LANCZOS)
