"""Prompts of walks, encoded once: their conditions on the disk, which a resumed run reads without an encoder.

PROMPTS/prompts.json             the prompts' digest, the tensors of a condition, checksums
PROMPTS/context-00000.npy ...    of each prompt a row of bytes (see `halfstep.data.latents.contexts`)
PROMPTS/null.npy                 the row of the empty text
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch

from halfstep import files, storage
from halfstep.batch import batches
from halfstep.data.latents.contexts import (
    as_cond,
    bytes_of,
    Contexts,
    formats_of,
    packed,
    TensorFormat,
    unpacked,
)
from halfstep.data.latents.shards import Entry, mapped, Shards, verify, whole, written
from halfstep.errors import CheckpointError, ConfigError
from halfstep.identity import sha256_of
from halfstep.models.codec import Texts
from halfstep.progress import Progress, SILENT

ABOUT, NULL = "prompts.json", "null.npy"
FORMAT = "halfstep prompts 1"
SHARD, AT_ONCE = 4096, 16
"""Prompts in a file, and prompts that are encoded at once."""


class About(TypedDict):
    """The contents of prompts.json."""

    format: str
    prompts: str
    tensors: dict[str, TensorFormat]
    null: str
    contexts: list[Entry]
    complete: bool


def are_encoded(prompts: Sequence[str], folder: Path) -> bool:
    """Whether the folder has the conditions of all of these prompts; `ConfigError` for those of others."""
    about = _read(folder)
    if about is None:
        return False
    if about["prompts"] != _digest(prompts):
        raise ConfigError(
            f"'{folder}' has the conditions of other prompts: give those, or choose another --out"
        )
    return about["complete"]


@torch.inference_mode()
def encode_prompts(
    texts: Texts, prompts: Sequence[str], folder: Path, *, progress: Progress = SILENT
) -> None:
    """Encode the prompts that are not encoded yet, file by file.

    progress  advances with every prompt
    """
    null = texts.null()
    formats = formats_of(null)
    empty = packed(null, formats)
    if are_encoded(prompts, folder):
        return
    files.make_folder(folder)
    files.tidy(folder, ABOUT, "*.npy")
    about = _read(folder) or _begun(prompts, formats, sha256_of((empty,)))
    if (about["tensors"], about["null"]) != (formats, sha256_of((empty,))):
        raise ConfigError(
            f"'{folder}' was begun with another encoder of texts: give that one, or choose another --out"
        )
    progress.expect(len(prompts))
    for k, rows in enumerate(batches(range(len(prompts)), SHARD)):
        if k >= len(about["contexts"]):
            chosen = [prompts[row] for row in rows]
            parts = (
                packed(texts.conditions(chosen[part.start : part.stop]), formats)
                for part in batches(range(len(chosen)), AT_ONCE)
            )
            shape = len(chosen), bytes_of(formats)
            entry = written(folder / f"context-{k:05d}.npy", shape, torch.uint8, parts)
            about["contexts"].append(entry)
            storage.write_json(folder / ABOUT, about)
        progress.advance(len(rows))
    about["contexts"].append(whole(folder / NULL, empty))
    storage.write_json(folder / ABOUT, {**about, "complete": True})


def open_prompts(folder: Path, *, progress: Progress = SILENT) -> Contexts:
    """The conditions of a folder's prompts, memory-mapped; `CheckpointError` names a file that is damaged."""
    about = _read(folder)
    if about is None or not about["complete"]:
        raise CheckpointError(
            f"'{folder}' has no conditions of prompts: run the same command again"
        )
    *entries, null = about["contexts"]
    verify(folder, about["contexts"], progress)
    formats = about["tensors"]
    size = bytes_of(formats)
    parts = [mapped(folder / e["file"], (e["rows"], size), torch.uint8) for e in entries]
    empty = as_cond(unpacked(mapped(folder / null["file"], (1, size), torch.uint8), formats))
    offsets = torch.arange(sum(e["rows"] for e in entries) + 1)
    return Contexts(Shards(tuple(parts)), formats, offsets, empty)


@torch.inference_mode()
def contexts_of(texts: Texts, prompts: Sequence[str]) -> Contexts:
    """The conditions of a few prompts in memory."""
    null = texts.null()
    return Contexts.of(texts.conditions(prompts), torch.arange(len(prompts) + 1), null)


def _digest(prompts: Sequence[str]) -> str:
    return sha256_of(prompts)


def _begun(prompts: Sequence[str], formats: dict[str, TensorFormat], null: str) -> About:
    return {
        "format": FORMAT, "prompts": _digest(prompts), "tensors": formats, "null": null,
        "contexts": [], "complete": False,
    }  # fmt: skip


def _read(folder: Path) -> About | None:
    """The contents of prompts.json; None before it is written."""
    path = folder / ABOUT
    if not path.exists():
        return None
    about: About = storage.read_json(path, About, format=FORMAT, mend=f"delete '{folder}'")
    for entry in about["contexts"]:
        if Path(entry["file"]).name != entry["file"]:
            raise CheckpointError(f"'{path}' names a file outside its folder: {entry['file']!r}")
    return about
