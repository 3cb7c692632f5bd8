"""Tensors and what is known of them, on disk: NAME.safetensors with NAME.json beside it.

Both lie on the disk whole, under temporary names, before either gets its own, the json last: it holds the
checksum of the other, so a pair either is whole or is not there.  Loading verifies it and never executes
anything.
"""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn, Tensor

from halfstep import files
from halfstep.errors import CheckpointError, ConfigError


def save(stem: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write STEM.safetensors and STEM.json; all or nothing."""
    weights, described = stem.with_suffix(".safetensors"), stem.with_suffix(".json")
    with files.replacing(weights, described) as (part, described_part):
        _save_file(_apart(tensors), part)
        files.allow(part)  # safetensors writes for the owner alone
        files.fill(described_part, _json({**about, "sha256": checksum(part)}).encode())


def load(stem: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and what is known of them; `CheckpointError` names a file that is missing or damaged."""
    about = verify(stem)
    return load_file(stem.with_suffix(".safetensors")), about


def verify(stem: Path) -> dict[str, Any]:
    """What is known of the tensors, once their checksum is found right."""
    weights, about = stem.with_suffix(".safetensors"), read_json(stem.with_suffix(".json"))
    if not weights.exists():
        raise CheckpointError(
            f"'{weights}' is missing, while '{stem.name}.json' is there: copy it back"
        )
    if checksum(weights) != about.pop("sha256", None):
        raise CheckpointError(
            f"'{weights}' is damaged: its checksum is not the one in '{stem.name}.json'"
        )
    return about


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from others' file, a .safetensors or what torch.save wrote; nothing in it can run."""
    try:
        if path.suffix == ".safetensors":
            held: Any = load_file(path)
        else:
            # Read from the disk as it is copied, so that a large model lies in memory once.
            mapped = zipfile.is_zipfile(path)
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes the readers raise whatever there is
        reason = getattr(error, "strerror", None) or "it is damaged, or no file of weights"
        raise CheckpointError(
            f"'{path}' cannot be read as tensors alone, and nothing else is read: {reason}"
        ) from error
    entries = held.items() if isinstance(held, Mapping) else [("it", held)]
    other = [(k, v) for k, v in entries if not (isinstance(k, str) and isinstance(v, Tensor))]
    if other or not isinstance(held, Mapping) or not held:
        name, value = (other or [("it", held)])[0]
        raise CheckpointError(
            f"'{path}' is no state dict of tensors by name ({name!r} is a {type(value).__name__}): save "
            "model.state_dict() alone"
        )
    return dict(held)


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Strictly: every name and shape must be as the module has them."""
    check_fits(module.state_dict(), tensors, source)
    module.load_state_dict(dict(tensors), strict=True)


def check_fits(mine: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors of other names or shapes than a network's own."""
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


def rounded(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Those of floating point in this type; refused where one of them would become infinite."""
    found = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    for name, value in found.items():
        if value.is_floating_point() and bool((value.isinf() & tensors[name].isfinite()).any()):
            raise ConfigError(
                f"{name} has weights beyond what {str(dtype).removeprefix('torch.')} can hold: write bfloat16"
            )
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a json file; all or nothing."""
    write_text(path, _json(content))


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; all or nothing."""
    files.write_text(path, text)


def read_json(path: Path) -> dict[str, Any]:
    """A json object; `CheckpointError` names a file that is missing or none."""
    try:
        with reading(path):
            content = json.loads(files.read_text(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{path}' is damaged: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"'{path}' is damaged: it holds no object")
    return content


@contextmanager
def reading(path: Path, *, missing: str = "does not exist") -> Iterator[None]:
    """Around reading `path`: what the disk refuses becomes one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"'{path}' {missing}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read '{path}': {error.strerror}") from None


def checksum(path: Path, *, missing: str = "does not exist") -> str:
    """sha256 of a file."""
    with reading(path, missing=missing), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save_file(tensors: dict[str, Tensor], path: Path) -> None:
    """safetensors' own, whose words for a full disk become the system's."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from None


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, and no two in one memory: safetensors refuses tied weights."""
    found, places = dict[str, Tensor](), set[int]()
    for name, value in tensors.items():
        value = value.detach().contiguous()
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in places else value
        places.add(place)
    return found
