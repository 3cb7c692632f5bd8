"""Captions of a folder's images: one table, `metadata.jsonl`, or a .txt beside each image.

`metadata.jsonl` lies in the folder itself, as in Hugging Face's imagefolder, with a line for each image,
{"file_name": "sub/a.png", "text": "a cat"}.  The key may also be `caption`, the value a list of captions,
and several lines may name one image.  In a .txt each line is a caption.  Both are UTF-8; blank lines and
space around a caption are ignored.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

import torch
from torch import Tensor

from halfstep.batch import Cond
from halfstep.data.latents.contexts import formats_of, packed
from halfstep.data.latents.image_stream import Images, ImageStream
from halfstep.data.skipped import some
from halfstep.data.sources.image_folder import FolderImages
from halfstep.errors import ConfigError, DataError
from halfstep.files import read_text
from halfstep.identity import sha256_of
from halfstep.models.codec import Texts
from halfstep.schema import from_json

TABLE = "metadata.jsonl"
KEYS = ("text", "caption")


@dataclass
class Captions:
    """Captions of each image, and the text encoder, which `write_latents` drops once all are encoded.

    digest  the encoder's digest
    """

    texts: Texts | None
    of: Sequence[tuple[str, ...]]
    digest: str

    def chosen(self, rows: range) -> list[str]:
        """All captions of these images; the empty text for an image without any."""
        return [text for k in rows for text in self.of[k] or ("",)]

    def digest_of(self, rows: range) -> str:
        """A digest of these images' captions."""
        return sha256_of(repr(tuple(self.of[k])) for k in rows)

    def on(self, device: torch.device | str) -> AbstractContextManager[None]:
        """Inside it the text encoder is on this device."""
        return nullcontext() if self.texts is None else self.texts.on(device)

    def free_encoder(self) -> None:
        """Free the text encoder."""
        if self.texts is not None:
            self.texts.release()
        self.texts = None

    @property
    def _encoder(self) -> Texts:
        if self.texts is None:
            raise ConfigError(
                "these captions are encoded already: make new Captions, with an encoder"
            )
        return self.texts

    @cached_property
    def null(self) -> Cond:
        """The null condition, in one row."""
        return self._encoder.null()

    def packed(self, texts: list[str]) -> Tensor:
        """The conditions of these texts as rows of bytes."""
        return packed(self._encoder.conditions(texts), formats_of(self.null))

    def offsets(self) -> Tensor:
        """The index of each image's first caption among all, and their number; int64 [N + 1]."""
        counts = [len(texts) or 1 for texts in self.of]
        return torch.tensor([0, *itertools.accumulate(counts)])


def captions_of(images: Images) -> list[tuple[str, ...]] | None:
    """The captions of each image, one or more; None if there are none, also for images in memory.

    `DataError` for an image without a caption where others have one.
    """
    if not isinstance(images, ImageStream):
        return None
    files = images.files
    if isinstance(files, FolderImages):
        if not has_captions(files.place, files.files):
            return None
        captions = read_captions(files.place, files.files)
    elif (read := files.captions()) is None:
        return None
    else:
        captions = read
        if empty := [files.name(k) for k in images.rows if not captions[k]]:
            raise DataError(
                f"{len(empty)} of {len(images)} images in {files.place} have no caption: "
                f"{some(empty)}; caption them, or name other captions as {files.place}:text=NAME"
            )
    return [captions[k] for k in images.rows]


def has_captions(folder: Path, files: Sequence[Path]) -> bool:
    """Whether any of these images has a caption in the folder's table, or in a .txt beside it."""
    beside = _beside(files)
    return (folder / TABLE).exists() or any(file.with_suffix("") in beside for file in files)


def read_captions(folder: Path, files: Sequence[Path]) -> list[tuple[str, ...]]:
    """The captions of each image, one or more, in the order of `files`.

    `DataError` for an image without a caption, and for a caption without its image.

    files    the images: paths that begin with `folder`
    """
    table, beside = folder / TABLE, _beside(files)
    stems = {file.with_suffix("") for file in files}
    if table.exists():
        if both := [path for stem, path in beside.items() if stem in stems]:
            raise DataError(
                f"{folder} has captions twice, in {TABLE} and in {_some(folder, both)}: delete one"
            )
        return _from_table(folder, table, files)
    if not stems & beside.keys():
        raise DataError(
            f"there are no captions in {folder}: write {TABLE} with a line "
            '{"file_name": "a.png", "text": "a cat"} for each image, or a .txt beside each'
        )
    return _from_texts(folder, beside, files)


def _from_table(folder: Path, table: Path, files: Sequence[Path]) -> list[tuple[str, ...]]:
    captions_of: dict[str, list[str]] = {}
    names = [_key(file.relative_to(folder).as_posix()) for file in files]
    for number, line in enumerate(_lines(table), start=1):
        if line:
            name, captions = _entry(f"line {number} of {table}", line)
            captions_of.setdefault(_key(name), []).extend(captions)
    if strange := [Path(name) for name in captions_of.keys() - set(names)]:
        raise DataError(
            f"{table} has captions for {len(strange)} missing images: {_some(folder, strange)}; remove those "
            "lines, or write file_name as the path below its folder"
        )
    uncaptioned = [file for file, name in zip(files, names, strict=True) if name not in captions_of]
    _refuse_uncaptioned(folder, uncaptioned, len(files), f"add them to {TABLE}")
    return [tuple(captions_of[name]) for name in names]


def _entry(where: str, line: str) -> tuple[str, list[str]]:
    """The image's name and its captions."""
    try:
        entry = from_json(line, Any, where, error=DataError)
    except DataError as damaged:
        raise DataError(f"{damaged}; mend or remove the line") from None
    example = 'write {"file_name": "a.png", "text": "a cat"}'
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise DataError(f"{where} names no image: {example}")
    keys = [key for key in KEYS if key in entry]
    if len(keys) != 1:
        raise DataError(f"{where} has {' and '.join(keys) or 'no text'}: {example}")
    return entry["file_name"], list(_captions(where, entry[keys[0]]))


def _captions(where: str, value: Any) -> Iterator[str]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise DataError(f"{where} has an empty list of captions: write one, or remove the line")
    for caption in values:
        if not isinstance(caption, str):
            raise DataError(f"{where} has the caption {caption!r}, which is no text: write a text")
        if not caption.strip():
            raise DataError(f"{where} has an empty caption: write one, or remove it")
        if any("\ud800" <= letter <= "\udfff" for letter in caption):
            raise DataError(
                f"{where} has a caption with an unpaired surrogate (\\ud800): correct it"
            )
        yield caption.strip()


def _from_texts(
    folder: Path, beside: dict[Path, Path], files: Sequence[Path]
) -> list[tuple[str, ...]]:
    owners: dict[Path, Path] = {}
    for file in files:
        if (other := owners.setdefault(file.with_suffix(""), file)) != file:
            raise DataError(
                f"the captions of {_some(folder, [other])} and of {_some(folder, [file])} would be "
                f"the same file: rename one, or write {TABLE}"
            )
    if strange := [path for stem, path in beside.items() if stem not in owners]:
        raise DataError(
            f"{len(strange)} files of captions in {folder} have no image: {_some(folder, strange)}; "
            "remove them, or name each after its image"
        )
    uncaptioned = [file for stem, file in owners.items() if stem not in beside]
    _refuse_uncaptioned(folder, uncaptioned, len(files), "write a .txt beside each")
    captions_of = {stem: tuple(filter(None, _lines(path))) for stem, path in beside.items()}
    if empty := [beside[stem] for stem, captions in captions_of.items() if not captions]:
        raise DataError(
            f"{len(empty)} files of captions in {folder} are empty: {_some(folder, empty)}; write a "
            "caption into each"
        )
    return [captions_of[file.with_suffix("")] for file in files]


def _beside(files: Sequence[Path]) -> dict[Path, Path]:
    """Every .txt in the folders that hold images, by its path without the extension."""
    return {
        path.with_suffix(""): path
        for parent in sorted({file.parent for file in files})
        for path in sorted(parent.glob("*.txt"))
        if not path.name.startswith(".")
    }


def _lines(path: Path) -> list[str]:
    """The lines of a file, split at line ends alone: a caption may contain other separators (U+2028)."""
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return [line.strip() for line in text.split("\n")]


def _key(name: str) -> str:
    """A file name in composed form, because some systems separate accents from their letters."""
    return normalize("NFC", str(PurePosixPath(name)))


def _refuse_uncaptioned(folder: Path, files: Sequence[Path], images: int, remedy: str) -> None:
    if files:
        raise DataError(
            f"{len(files)} of {images} images in {folder} have no caption: {_some(folder, files)}; {remedy}"
        )


def _some(folder: Path, paths: Sequence[Path]) -> str:
    """The first names, below the folder, and the number of the others."""
    names = sorted(str(p.relative_to(folder) if p.is_relative_to(folder) else p) for p in paths)
    return some(names)
