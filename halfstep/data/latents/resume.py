"""Checks before encoding resumes in a folder: the same latents, and no other process at work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from halfstep import files
from halfstep.data.latents.dataset import ABOUT, About, Identity, is_latents
from halfstep.data.latents.image_stream import Images
from halfstep.data.latents.shards import Entry
from halfstep.data.skipped import LIST
from halfstep.errors import ConfigError
from halfstep.folder_lock import FolderLock

CODEC = ("codec.safetensors", "codec.json")
BEFORE = (files.LOCK, *CODEC, ABOUT, LIST)
"""Files, whole or temporary, that a process killed before it wrote latents.json leaves behind."""
ALONE = (*CODEC, ABOUT, LIST, "*.npy")
"""Files that only the process with the lock writes."""

MADE_OF = {
    "codec": "codec",
    "scale": "scale of the codec",
    "image": "shape of images",
    "latent": "shape of latents",
    "dtype": "precision, --half,",
    "views": "number of views, --mirror,",
    "shard": "size of shards, --shard,",
    "text": "encoder of texts",
}
"""The names of latents.json's keys in error messages."""


def refuse_other_identity(out: Path, about: About, identity: Identity) -> None:
    """`ConfigError` unless latents.json has this identity."""
    for key, value in identity.items():
        if (actual := about.get(key)) != value:
            raise ConfigError(
                f"'{out}' holds latents of another {MADE_OF[key]} ({actual}, not {value}): choose another "
                "--out"
            )


def same_images(entry: Entry, images: Images, rows: range) -> bool:
    """Whether a shard was encoded from these images; reads them only if their stamp has changed.

    The entry then gets the new stamp, so that copied or touched files are read once.
    """
    stamp = images.stamp(rows)
    if entry.get("stamp") != stamp:
        if entry["source"] != images.digest(rows):
            return False
        entry["stamp"] = stamp
    return True


def other_images(out: Path, detail: str) -> ConfigError:
    """The error for other images or captions."""
    return ConfigError(
        f"'{out}' holds latents of other images or captions ({detail}): choose another --out"
    )


@contextmanager
def alone(folder: Path, note: Callable[[str], object]) -> Iterator[None]:
    """Create the folder and lock it; `note` receives warnings where it cannot be locked."""
    try:
        if folder.exists() and not is_latents(folder):
            strange = [p.name for p in folder.iterdir() if not files.matches_names(p.name, *BEFORE)]
            if strange:
                raise ConfigError(
                    f"'{folder}' is not empty and holds no latents (it has '{min(strange)}'): choose "
                    "another --out"
                )
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
    except OSError as error:
        raise ConfigError(
            f"'{folder}' cannot hold latents ({error.strerror}): choose another --out"
        ) from None
    with lock:
        for text in lock.notes:
            note(text)
        files.tidy(folder, *ALONE)
        yield
