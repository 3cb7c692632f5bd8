"""Latents on the disk, encoded once and read as training needs them.

    LATENTS/latents.json            their sources, checksums, and whether they are complete
    LATENTS/codec.safetensors, .json   the codec that encoded them
    LATENTS/shard-00000.npy ...     moments [rows, views, 2 c, h, w]: of an image, and of its mirror image
    LATENTS/labels.npy              int64 [N], if there are classes
    LATENTS/verified.json           sizes, times of change and inodes of files whose checksums were compared
    LATENTS/context-00000.npy ...   with texts: states of the shard's captions, [captions, tokens, width]
    LATENTS/offsets.npy, null.npy   with texts: image n has the captions from offsets[n] to offsets[n + 1];
                                    the states of the empty text

`halfstep.data.latents.encoding` writes them.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypedDict

import torch
from torch import Tensor

from halfstep import storage
from halfstep.batch import Batch, Cond
from halfstep.data.latents.shards import Entry, mapped, MEND, Shards, verify as verify_files
from halfstep.errors import CheckpointError
from halfstep.identity import sha256_of
from halfstep.models import codec
from halfstep.progress import Progress, SILENT
from halfstep.rng import Draw

ABOUT = "latents.json"
FORMAT = "halfstep latents 1"


class TextIdentity(TypedDict):
    tokens: int
    width: int
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
class Contexts:
    """Text encoder states of captions, several per image.

    states   the states of all captions, [captions, tokens, width]
    offsets  int64 [N + 1]: image n has the captions from offsets[n] to offsets[n + 1]
    null     the states of the empty text, float32 [tokens, width]
    """

    states: Shards
    offsets: Tensor
    null: Tensor

    def rows(self, rows: Tensor, chance: Tensor | None = None) -> Tensor:
        """The states of one caption of each image, float32 [B, tokens, width]: the first, or a random one.

        chance  [B] in [0, 1): chooses among the image's captions
        """
        rows = rows.to(self.offsets.device)
        first = self.offsets[rows]
        if chance is not None:
            count = self.offsets[rows + 1] - first
            first = first + (chance.to(first.device) * count).long()
        return self.states.rows(first).float()

    def to(self, device: torch.device | str) -> "Contexts":
        return Contexts(self.states.to(device), self.offsets.to(device), self.null.to(device))


@dataclass(frozen=True, eq=False)
class Latents:
    """Moments of images in a codec's latent space, read like a `Dataset`; `open_latents` makes it.

    moments   row `views` n has the moments of image n, and with `views` 2 the next row those of its mirror
              image; unscaled [2 c, h, w], mean, then log-variance
    scale     factor on latents
    labels    int64 [N], the class of each image, or None
    names     the names of the classes, or ()
    contexts  states of the images' captions, or None
    source    digest of the files' checksums
    folder    the folder of the latents and of the codec
    codec     the codec's digest, `Codec.digest`
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
    def null_context(self) -> Tensor | None:
        """States of the empty text, float32 [tokens, width]; None without texts."""
        return None if self.contexts is None else self.contexts.null

    @property
    def nbytes(self) -> int:
        """The number of bytes that `to` moves."""
        return self.moments.nbytes + (self.contexts.states.nbytes if self.contexts else 0)

    def to(self, device: torch.device | str) -> "Latents":
        return replace(
            self,
            moments=self.moments.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            contexts=None if self.contexts is None else self.contexts.to(device),
        )

    def batch(self, rows: Tensor) -> Batch:
        """The means of these images' latents, scaled, with labels and first captions; deterministic.

        rows  int64 [B]
        """
        mean = self.moments.rows(self.views * rows).float().chunk(2, dim=1)[0]
        encoder_hidden_states = None if self.contexts is None else self.contexts.rows(rows)
        ids = rows.to(mean.device)
        cond = self._cond(rows, encoder_hidden_states, mean.device)
        return Batch(mean * self.scale, cond, ids, torch.zeros_like(ids))

    def training_batch(self, rows: Tensor, draw: Draw) -> Batch:
        """Latents of these images for training, drawn anew at each call.

        A random half is of mirror images, and the caption is a random one of the image's captions.
        """
        device, rows = draw.generator.device, rows.to(self.moments.parts[0].device)
        view = (draw.uniform() < 0.5).to(rows.device) if self.flip else 0
        moments = self.moments.rows(self.views * rows + view).to(device).float()
        noise = draw.normal(moments[:, : self.shape[0]])
        encoder_hidden_states = None
        if self.contexts is not None:
            encoder_hidden_states = self.contexts.rows(rows, draw.uniform()).to(device)
        x0 = codec.sample_latents(moments, noise, self.scale)
        return Batch(x0, self._cond(rows, encoder_hidden_states, device), rows.to(device))

    def _cond(
        self, rows: Tensor, encoder_hidden_states: Tensor | None, device: torch.device
    ) -> Cond | None:
        if self.labels is None and encoder_hidden_states is None:
            return None
        label = None
        if self.labels is not None:
            label = self.labels[rows.to(self.labels.device)].to(device)
        return Cond(label=label, encoder_hidden_states=encoder_hidden_states)

    def fingerprint(self) -> str:
        """sha256 of the data (not of names), computed from the checksums."""
        read = f"{self.source} {self.scale!r} {self.views} {self.contexts is not None}"
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
            f"{about['count']:,} latents: {MEND}"
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
        state = text["tokens"], text["width"]
        states = [
            mapped(folder / entry["file"], (entry["rows"], *state), torch.float16)
            for entry in about["contexts"]
        ]
        offsets = mapped(folder / "offsets.npy", (about["count"] + 1,), torch.int64).clone()
        null = mapped(folder / "null.npy", state, torch.float16).float()
        contexts = Contexts(Shards(tuple(states)), offsets, null)
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
