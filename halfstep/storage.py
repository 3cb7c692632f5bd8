"""Tensors and what is known of them, on disk: NAME.safetensors with NAME.json beside it.

Both are written under a temporary name, flushed and renamed, the json last: it holds the checksum of the
other, so a pair either is whole or is not there.  Loading verifies it and never executes anything.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn, Tensor

from halfstep.errors import CheckpointError


def save(stem: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write STEM.safetensors and STEM.json; all or nothing."""
    weights, part = stem.with_suffix(".safetensors"), stem.with_suffix(".part")
    with _writing(weights, part):
        part.unlink(missing_ok=True)
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, part)
        part.chmod(0o666 & ~_umask())  # safetensors writes for the owner alone
        digest = _sha256(part)
        _settle(part, weights)
    write_json(stem.with_suffix(".json"), {**about, "sha256": digest})


def load(stem: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and what is known of them; `CheckpointError` names a file that is missing or damaged."""
    weights, about = stem.with_suffix(".safetensors"), read_json(stem.with_suffix(".json"))
    if not weights.exists():
        raise CheckpointError(
            f"'{weights}' is missing, while '{stem.name}.json' is there: copy it back"
        )
    if _sha256(weights) != about.pop("sha256", None):
        raise CheckpointError(
            f"'{weights}' is damaged: its checksum is not the one in '{stem.name}.json'"
        )
    return load_file(weights), about


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Strictly: every name and shape must be as the module has them."""
    mine = module.state_dict()
    missing, unexpected = sorted(mine.keys() - tensors.keys()), sorted(tensors.keys() - mine.keys())
    shaped = sorted(n for n in mine.keys() & tensors.keys() if mine[n].shape != tensors[n].shape)
    for what, names in (
        ("lacks", missing),
        ("has besides", unexpected),
        ("has other shapes of", shaped),
    ):
        if names:
            raise CheckpointError(
                f"{source} does not fit this network: it {what} {len(names)} tensors "
                f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            )
    module.load_state_dict(dict(tensors), strict=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a json file; all or nothing."""
    part = path.with_suffix(path.suffix + ".part")
    with _writing(path, part):
        part.unlink(missing_ok=True)
        part.write_text(json.dumps(content, indent=2) + "\n")
        _settle(part, path)


def read_json(path: Path) -> dict[str, Any]:
    """A json object; `CheckpointError` names a file that is missing or none."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"'{path}' does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{path}' is damaged: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"'{path}' is damaged: it holds no object")
    return content


@contextmanager
def _writing(path: Path, part: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"cannot write '{path}': {reason}; what was saved before is untouched: make room and run "
            "the same command again"
        ) from error


def _settle(part: Path, final: Path) -> None:
    """Flush `part` to the disk, then give it its name."""
    descriptor = os.open(part, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    part.replace(final)
    flush_folder(final.parent)


def flush_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
