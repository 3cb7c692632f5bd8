"""Tar shards as webdataset has them: a sample is the members of one key, `0001.jpg`, `0001.cls`, `0001.txt`.

The image is a .png, .jpg, .webp or another format of `IMAGES`, or an .npy array of bytes; the label is in a
.cls, the captions in a .txt, one a line; a .json may hold both.  Samples are read where they lie, at the
offsets of an index that is made once: it is kept in halfstep's cache, and holds while the shard's size and
time of change do.  Nothing is unpacked, and pickled members are refused.
"""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from halfstep import files, storage
from halfstep.data.sources.columns import classes_of, NAMES, refuse
from halfstep.data.sources.image_folder import stamp_of
from halfstep.errors import CheckpointError, DataError
from halfstep.extras import needed
from halfstep.progress import Progress, SILENT
from halfstep.schema import from_json

FORMAT = 1
IMAGES = frozenset(
    [
        "png",
        "jpg",
        "jpeg",
        "webp",
        "bmp",
        "gif",
        "tif",
        "tiff",
        "ppm",
        "pgm",
        "jp2",
        "tga",
        "avif",
        "npy",
    ]
)
TEXTS = frozenset(["cls", "txt", "text", "caption", "json"])
"""Extensions of members whose content the index holds."""
PICKLES = frozenset(["pyd", "pkl", "pickle", "pth", "pt", "joblib", "dill"])
META = re.compile(r"(^|/)__[^/]*__($|/)")
"""Members that webdataset leaves out."""
MOST = 2**20
"""The most bytes of a text."""


class Sample(TypedDict):
    """A sample in the index: its key, where its images lie by extension, its label and its captions."""

    key: str
    images: dict[str, tuple[int, int]]
    texts: dict[str, Any]


class ShardIndex(TypedDict):
    """The index of a shard of this size and time of change."""

    format: int
    size: int
    changed: int
    samples: Any


@dataclass(frozen=True, eq=False)
class ShardImages:
    """The images of tar shards, in the order of the shards and of their samples."""

    place: Path
    shards: Sequence[Path]
    samples: Sequence[tuple[int, str, int, int]]
    """Of each image the number of its shard, its member's name, offset and bytes."""
    texts: Sequence[tuple[str, ...]] | None
    labels: list[int] | None
    class_names: tuple[str, ...]

    @classmethod
    def open(
        cls,
        place: Path,
        shards: Sequence[Path],
        columns: Mapping[str, str],
        progress: Progress = SILENT,
    ) -> "ShardImages":
        """The images of these shards, which are indexed unless they were before."""
        sizes = [max(1, _stat(shard).st_size >> 20) for shard in shards]
        progress.expect(sum(sizes))
        images = list[tuple[int, str, int, int]]()
        labels, texts = list[Any](), list[tuple[str, ...]]()
        for n, (shard, size) in enumerate(zip(shards, sizes, strict=True)):
            for sample in indexed(shard):
                kind = _image_of(sample, columns, shard)
                images.append((n, f"{sample['key']}.{kind}", *sample["images"][kind]))
                labels.append(_text(sample, "label", columns))
                texts.append(_captions(sample, columns))
            progress.advance(size)
        if not images:
            raise DataError(f"no samples in {place}: name the folder of *.tar shards")
        return cls(place, shards, images, texts if any(texts) else None, *classes_of(labels, place))

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, k: int) -> str:
        shard, name, _, _ = self.samples[k]
        return f"{self.shards[shard].name}/{name}"

    def opened(self, k: int) -> io.BytesIO:
        return io.BytesIO(self.content(k))

    def content(self, k: int) -> bytes:
        shard, _, offset, size = self.samples[k]
        with self.shards[shard].open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def stamp(self, k: int) -> str:
        shard, _, offset, _ = self.samples[k]
        return f"{stamp_of(self.shards[shard].stat())} {offset}"

    def captions(self) -> list[tuple[str, ...]] | None:
        return None if self.texts is None else list(self.texts)


# -- the index -------------------------------------------------------------------------------------


def indexed(shard: Path) -> list[Sample]:
    """The samples of a shard, from its index; a shard without one is scanned."""
    stat, path = _stat(shard), _index_of(shard)
    with suppress(CheckpointError):  # missing, or of another version
        index = storage.read_json(path, ShardIndex, format=FORMAT)
        if (index["size"], index["changed"]) == (stat.st_size, stat.st_mtime_ns):
            samples: list[Sample] = index["samples"]
            return samples
    samples = list(_scanned(shard, stat.st_size))
    with suppress(
        CheckpointError, OSError
    ):  # without a cache that can be written, it is scanned again
        files.make_folder(path.parent)
        content: dict[str, Any] = {
            "format": FORMAT, "size": stat.st_size, "changed": stat.st_mtime_ns, "samples": samples,
        }  # fmt: skip
        storage.write_json(path, content)
    return samples


def _stat(shard: Path) -> os.stat_result:
    try:
        return shard.stat()
    except OSError as error:
        raise DataError(
            f"cannot read {shard}: {error.strerror}; give a shard that exists"
        ) from None


def _index_of(shard: Path) -> Path:
    digest = hashlib.sha256(str(shard.resolve()).encode(errors="surrogateescape")).hexdigest()
    return files.cache_folder() / "shards" / f"{digest[:32]}.json"


def _scanned(shard: Path, size: int) -> Iterator[Sample]:
    """The samples of a shard: consecutive members of one key."""
    sample: Sample | None = None
    for name, key, kind, member, content in _members(shard, size):
        if sample is None or sample["key"] != key:
            if sample is not None:
                yield sample
            sample = {"key": key, "images": {}, "texts": {}}
        if kind in sample["images"] or kind in sample["texts"]:
            raise DataError(f"{shard} has two members {name}: give each sample a key of its own")
        if content is None:
            sample["images"][kind] = (member.offset_data, member.size)
        else:
            sample["texts"] |= _parsed(kind, content, f"{name} in {shard}")
    if sample is not None:
        yield sample


def _members(
    shard: Path, size: int
) -> Iterator[tuple[str, str, str, tarfile.TarInfo, bytes | None]]:
    """The members that count: name, key, extension, place, and the content of texts."""
    with needed("webdataset", "to read tar shards"):
        from webdataset.tariterators import base_plus_ext
    try:
        with tarfile.open(
            shard, "r:"
        ) as tar:  # never compressed: members are read at their offsets
            for member in tar:
                key, kind = base_plus_ext(member.name)
                if member.isdir() or key is None or META.search(member.name):
                    continue
                kind = kind.lower()
                last = kind.rpartition(".")[2]
                _refuse_member(shard, member, last, size)
                if last in IMAGES:
                    yield member.name, key, kind, member, None
                elif last in TEXTS:
                    file = tar.extractfile(member)
                    yield member.name, key, kind, member, file.read() if file else b""
            end = tar.offset
        with shard.open("rb") as file:  # tarfile takes a damaged header for the end
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"it breaks off at byte {end:,}")
    except DataError:
        raise
    except Exception as error:  # tarfile raises many types on damaged files
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(
            f"cannot read {shard}: {reason}; give an uncompressed tar file, or fetch it again"
        ) from None


def _refuse_member(shard: Path, member: tarfile.TarInfo, last: str, size: int) -> None:
    """`DataError` for pickles, links and members that are no plain bytes of the shard."""
    if last in PICKLES:
        raise DataError(
            f"{shard} has {member.name}, and a .{last} is a pickle, which may run code: save it as .npy, "
            ".cls or .json"
        )
    if last not in IMAGES | TEXTS:
        return
    if not member.isreg() or member.issparse():
        raise DataError(
            f"{member.name} in {shard} is no plain file (a link, a device or sparse): store its bytes"
        )
    if member.offset_data + member.size > size:
        raise DataError(f"{shard} breaks off in {member.name}: fetch it again")
    if last in TEXTS and member.size > MOST:
        raise DataError(
            f"{member.name} in {shard} has {member.size:,} bytes, and a label or caption at most {MOST:,}: "
            "shorten it"
        )


def _parsed(kind: str, content: bytes, where: str) -> dict[str, Any]:
    """The texts of a member by name; of a .json the labels and captions in it."""
    try:
        text = content.decode("utf-8-sig")
        if kind.rpartition(".")[2] != "json":
            return {kind: text.strip()}
    except ValueError as error:
        raise DataError(f"{where} cannot be read ({error}): write UTF-8") from None
    table = from_json(text, Any, f"the JSON of {where}", error=DataError)
    if not isinstance(table, dict):
        raise DataError(f'{where} is no table: write for example {{"text": "a cat", "label": 3}}')
    usual = (*NAMES["label"], *NAMES["text"])
    return {f"json.{name}": table[name] for name in usual if table.get(name) is not None}


# -- the parts of a sample -------------------------------------------------------------------------


def _image_of(sample: Sample, columns: Mapping[str, str], shard: Path) -> str:
    """The extension of a sample's image."""
    kinds = list(sample["images"])
    if (named := columns.get("image", "").lower()) and named in kinds:
        return named
    if named or not kinds:
        raise DataError(
            f"sample {sample['key']} of {shard} has no {f'.{named}' if named else 'image'} (it has "
            f"{', '.join([*kinds, *sample['texts']]) or 'nothing that halfstep reads'}): name the extension "
            f"of the images as {shard.parent}:image=jpg"
        )
    return kinds[0] if len(kinds) == 1 else refuse("image", kinds, shard.parent)


def _text(sample: Sample, role: str, columns: Mapping[str, str]) -> Any:
    """What a sample says for a role: by the extension named, else by the usual ones, else by its .json."""
    texts = sample["texts"]
    if (named := columns.get(role)) is not None:
        return texts.get(named.lower(), texts.get(f"json.{named}"))
    usual = (*NAMES[role], *(["txt"] if role == "text" else []))
    return next((texts[n] for n in (*usual, *(f"json.{n}" for n in usual)) if n in texts), None)


def _captions(sample: Sample, columns: Mapping[str, str]) -> tuple[str, ...]:
    """The captions of a sample: the lines of a text, or the texts of a list."""
    value = _text(sample, "text", columns)
    lines = value.split("\n") if isinstance(value, str) else value
    if not isinstance(lines, list):
        return ()
    return tuple(line.strip() for line in lines if isinstance(line, str) and line.strip())
