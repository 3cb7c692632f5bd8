"""Whether a folder of latents may be gone on with: nobody else works on it, and it is of the same."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from halfstep import files
from halfstep.data.latents.dataset import ABOUT, is_latents
from halfstep.data.latents.image_stream import Images
from halfstep.data.latents.shards import Entry
from halfstep.errors import ConfigError
from halfstep.folder_lock import FolderLock

CODEC = ("codec.safetensors", "codec.json")
BEFORE = (files.LOCK, *CODEC, ABOUT)
"""What is left, whole or as a temporary file, of a process that was killed before it wrote latents.json."""
ALONE = (*CODEC, ABOUT, "*.npy")
"""What nobody writes but the process that holds the lock."""

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
"""What a key of latents.json is called in a refusal."""


def refuse_other_identity(out: Path, about: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse unless latents.json says what is asked for."""
    for key, value in identity.items():
        if about.get(key) != value:
            raise ConfigError(
                f"'{out}' holds latents of another {MADE_OF[key]} ({about.get(key)} there, "
                f"{value} asked for): choose another --out"
            )


def same_images(entry: Entry, images: Images, rows: range) -> bool:
    """Whether a shard was made of these images; reads them only where their stamp is another.

    If it was, the entry gets the new stamp: files that were copied or touched are read once.
    """
    stamp = images.stamp(rows)
    if entry.get("stamp") != stamp:
        if entry["source"] != images.digest(rows):
            return False
        entry["stamp"] = stamp
    return True


def other_images(out: Path, what: str) -> ConfigError:
    """The refusal of other images or captions."""
    return ConfigError(
        f"'{out}' holds latents of other images or captions ({what}): choose another --out"
    )


@contextmanager
def alone(folder: Path, note: Callable[[str], object]) -> Iterator[None]:
    """Make the folder, and keep other processes out of it; `note` hears where that cannot be done."""
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
