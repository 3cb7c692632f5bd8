"""Latents on the disk, encoded once and read as training needs them.

    LATENTS/latents.json            their sources, checksums, and whether they are complete
    LATENTS/codec.safetensors, .json   the codec that encoded them
    LATENTS/shard-00000.npy ...     moments [rows, views, 2 c, h, w]: of an image, and of its mirror image
    LATENTS/labels.npy              int64 [N], if there are classes
    LATENTS/verified.json           sizes, times of change and inodes of files whose checksums were compared
    LATENTS/context-00000.npy ...   with texts: of each caption of the shard a row of bytes, uint8
                                    [captions, bytes]: its states and named tensors (see `contexts`)
    LATENTS/offsets.npy, null.npy   with texts: image n has the captions from offsets[n] to offsets[n + 1];
                                    the row of the empty text

`halfstep.data.latents.encoding` writes them.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypedDict

import torch
from torch import Tensor

from halfstep import storage
from halfstep.batch import Batch, completed, Cond, null_values
from halfstep.data.latents.contexts import as_cond, bytes_of, Contexts, TensorFormat, unpacked
from halfstep.data.latents.shards import AGAIN, Entry, mapped, Shards, verify as verify_files
from halfstep.errors import CheckpointError
from halfstep.identity import sha256_of
from halfstep.models import codec
from halfstep.progress import Progress, SILENT
from halfstep.rng import Draw

ABOUT = "latents.json"
FORMAT = "halfstep latents 1"


class TextIdentity(TypedDict):
    tensors: dict[str, TensorFormat]
    digest: str


class Identity(TypedDict):
    """The part of latents.json that must stay the same when encoding is resumed."""

    format: str
    codec: str
    scale: float
    image: list[int]
    latent: tuple[int, int, int]
    dtype: Literal["float32", "float16"]
    views: Literal[1, 2]
    shard: int
    text: TextIdentity | None


class About(Identity):
    """The contents of latents.json."""

    count: int
    names: list[str]
    shards: list[Entry]
    contexts: list[Entry]
    others: list[Entry]
    complete: bool


DTYPES = {"float32": torch.float32, "float16": torch.float16, "int64": torch.int64}


def is_latents(folder: Path) -> bool:
    """Whether a folder holds latents, complete or not."""
    return (folder / ABOUT).is_file()


@dataclass(frozen=True, eq=False)
class Latents:
    """Moments of images in a codec's latent space, read like a `Dataset`; `open_latents` makes it.

    Args:
        moments: row `views` n has the moments of image n, and with `views` 2 the next row those of its
            mirror image; unscaled [2 c, h, w], mean, then log-variance.
        views: 1, or 2 with mirror images.
        scale: factor on latents.
        labels: int64 [N], the class of each image, or None.
        names: the names of the classes, or ().
        contexts: states of the images' captions, or None.
        source: digest of the files' checksums.
        folder: the folder of the latents and of the codec.
        codec: the codec's digest, `Codec.digest`.
        defaults: conditions of every sample, in one row, in place of those that the data lacks.
    """

    moments: Shards
    views: int
    scale: float
    labels: Tensor | None = None
    names: tuple[str, ...] = ()
    contexts: Contexts | None = None
    source: str = ""
    folder: Path = Path()
    codec: str = ""
    defaults: Cond | None = None
    is_images = False

    def __len__(self) -> int:
        return len(self.moments) // self.views

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one latent."""
        twice, *sides = self.moments.shape
        return twice // 2, *sides

    @property
    def flip(self) -> bool:
        """Whether `training_batch` draws from mirror images too."""
        return self.views == 2

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 without labels."""
        if self.labels is None:
            return 0
        return len(self.names) or int(self.labels.max()) + 1

    @property
    def null_context(self) -> Cond | None:
        """The condition of the empty text, in one row; None without texts."""
        return None if self.contexts is None else self.contexts.null

    @property
    def nbytes(self) -> int:
        """The number of bytes that `to` moves."""
        return self.moments.nbytes + (self.contexts.captions.nbytes if self.contexts else 0)

    def to(self, device: torch.device | str) -> "Latents":
        return replace(
            self,
            moments=self.moments.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            contexts=None if self.contexts is None else self.contexts.to(device),
            defaults=None if self.defaults is None else self.defaults.to(device),
        )

    def batch(self, rows: Tensor) -> Batch:
        """The means of these images' latents, scaled, with labels and first captions; deterministic.

        Args:
            rows: int64 [B].
        """
        mean = self.moments.rows(self.views * rows).float().chunk(2, dim=1)[0]
        texts = None if self.contexts is None else self.contexts.rows(rows)
        ids = rows.to(mean.device)
        cond = self._cond(rows, texts, mean.device)
        return Batch(mean * self.scale, cond, ids, torch.zeros_like(ids))

    def training_batch(self, rows: Tensor, draw: Draw) -> Batch:
        """Latents of these images for training, drawn anew at each call.

        A random half is of mirror images, and the caption is a random one of the image's captions.

        Args:
            rows: int64 [B].
            draw: the randomness of the update.
        """
        device, rows = draw.generator.device, rows.to(self.moments.parts[0].device)
        view = (draw.uniform() < 0.5).to(rows.device) if self.flip else 0
        moments = self.moments.rows(self.views * rows + view).to(device).float()
        noise = draw.normal(moments[:, : self.shape[0]])
        texts = None
        if self.contexts is not None:
            texts = self.contexts.rows(rows, draw.uniform())
        x0 = codec.sample_latents(moments, noise, self.scale)
        return Batch(x0, self._cond(rows, texts, device), rows.to(device))

    def _cond(self, rows: Tensor, texts: Cond | None, device: torch.device) -> Cond | None:
        cond = texts
        if self.labels is not None:
            cond = replace(texts or Cond(), label=self.labels[rows.to(self.labels.device)])
        cond = completed(cond, self.defaults, len(rows))
        return None if cond is None else cond.to(device)

    def fingerprint(self) -> str:
        """sha256 of the data (not of names), computed from the checksums."""
        texts = None if self.contexts is None else sorted(null_values(self.contexts.null))
        read = f"{self.source} {self.scale!r} {self.views} {texts}"
        return sha256_of((read, self.labels))


def open_latents(
    folder: Path | str,
    *,
    verify: bool | None = None,
    progress: Progress = SILENT,
) -> Latents:
    """The latents of a folder, memory-mapped; `CheckpointError` names a file that is damaged.

    verify    True compares all checksums, which reads every file; False none; None only those of files that
              were written since the last comparison
    progress  advances with every verified file
    """
    folder = Path(folder).expanduser()
    about = read_about(folder)
    if not about["complete"]:
        raise CheckpointError(
            f"'{folder}' holds {sum(entry['rows'] for entry in about['shards']):,} of "
            f"{about['count']:,} latents: {AGAIN}"
        )
    entries = [*about["shards"], *about["contexts"], *about["others"]]
    if verify is not False:
        verify_files(folder, entries, progress, anew=verify is True)
    latents = _latents(folder, about)
    digest = hashlib.sha256(" ".join(entry["sha256"] for entry in entries).encode())
    return replace(latents, source=digest.hexdigest())


def read_about(folder: Path) -> About:
    """The contents of latents.json."""
    path = folder / ABOUT
    again = "encode the images again, into another folder"
    about = storage.read_json(path, About, format=FORMAT, mend=again)
    if about["complete"] and sum(entry["rows"] for entry in about["shards"]) != about["count"]:
        raise CheckpointError(
            f"'{path}' is damaged: its shards do not have {about['count']:,} images; {again}"
        )
    for entry in (*about["shards"], *about["contexts"], *about["others"]):
        if Path(entry["file"]).name != entry["file"]:
            raise CheckpointError(f"'{path}' names a file outside its folder: {entry['file']!r}")
    return about


def _latents(folder: Path, about: About) -> Latents:
    channels, *sides = about["latent"]
    views, row, dtype = about["views"], (2 * channels, *sides), DTYPES[about["dtype"]]
    moments = [
        mapped(folder / entry["file"], (entry["rows"], views, *row), dtype).flatten(0, 1)
        for entry in about["shards"]
    ]
    others = {entry["file"]: entry["rows"] for entry in about["others"]}
    labels = None
    if "labels.npy" in others:
        labels = mapped(folder / "labels.npy", (about["count"],), torch.int64).clone()
    contexts = None
    if (text := about["text"]) is not None:
        formats = text["tensors"]
        size = bytes_of(formats)
        captions = [
            mapped(folder / entry["file"], (entry["rows"], size), torch.uint8)
            for entry in about["contexts"]
        ]
        offsets = mapped(folder / "offsets.npy", (about["count"] + 1,), torch.int64).clone()
        null = mapped(folder / "null.npy", (1, size), torch.uint8)
        null_cond = as_cond(unpacked(null, formats))
        contexts = Contexts(Shards(tuple(captions)), formats, offsets, null_cond)
    return Latents(
        Shards(tuple(moments)),
        views,
        about["scale"],
        labels,
        tuple(about["names"]),
        contexts,
        folder=folder,
        codec=about["codec"],
    )
