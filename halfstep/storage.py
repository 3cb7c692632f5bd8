"""Tensors and what is known of them, on disk: NAME.safetensors with NAME.json beside it.

Both lie on the disk whole, under temporary names, before either gets its own, the json last: it holds the
checksum of the other and its own, so a pair either is whole or is not there.  Loading verifies both and
never executes anything.  Every json that halfstep writes and reads again has its own checksum.
"""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn, Tensor

from halfstep import files
from halfstep.errors import CheckpointError, ConfigError
from halfstep.schema import (
    from_json,
    SchemaError,
    SEAL,
    sealed,
    unsealed,
    validated,
    validated_partly,
)

T = TypeVar("T")


def save(stem: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write STEM.safetensors and STEM.json; all or nothing."""
    weights, described = stem.with_suffix(".safetensors"), stem.with_suffix(".json")
    with files.replacing(weights, described) as (part, described_part):
        _save_file(_apart(tensors), part)
        files.apply_umask(part)  # safetensors writes for the owner alone
        text = _json(described, {**about, "sha256": checksum(part)})
        files.fill(described_part, text.encode())


def load(
    stem: Path, schema: Any = dict[str, Any], *, format: object = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and what is known of them; `CheckpointError` names a file that is missing or damaged.

    schema  of what is known, as `halfstep.schema` reads it, besides the weights' sha256
    format  of the files that this halfstep reads, where they say one
    """
    about = verify(stem, schema, format=format)
    weights = stem.with_suffix(".safetensors")
    try:
        return load_file(weights), about
    except SafetensorError as error:
        raise CheckpointError(f"'{weights}' holds no tensors: {error}") from None


def verify(stem: Path, schema: Any = dict[str, Any], *, format: object = None) -> dict[str, Any]:
    """What is known of the tensors, once both checksums are found right."""
    weights, about = stem.with_suffix(".safetensors"), read_about(stem, schema, format=format)
    if not weights.exists():
        raise CheckpointError(
            f"'{weights}' is missing, while '{stem.name}.json' is there: copy it back"
        )
    if checksum(weights) != about.pop("sha256"):
        raise CheckpointError(
            f"'{weights}' is damaged: its checksum is not the one in '{stem.name}.json'"
        )
    return about


def read_about(
    stem: Path, schema: Any = dict[str, Any], *, format: object = None
) -> dict[str, Any]:
    """What STEM.json says, `sha256` of the tensors among it, which are not read."""
    found: dict[str, Any] = _read(stem.with_suffix(".json"), schema, format, tensors=True)
    return found


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
    """Write a json file, with its own checksum; all or nothing."""
    write_text(path, _json(path, content))


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; all or nothing."""
    files.write_text(path, text)


def read_json(
    path: Path,
    schema: type[T],
    *,
    format: object = None,
    mend: str = "copy it back, or make it again",
) -> T:
    """What `write_json` wrote; `CheckpointError` names a file that is missing, damaged or was changed.

    schema  of it, as `halfstep.schema` reads it
    format  that this halfstep reads, where it says one
    mend    what to do about one that is damaged
    """
    found: T = _read(path, schema, format, mend)
    return found


def _read(
    path: Path,
    schema: Any,
    format: object,
    mend: str = "copy it back from where it is whole",
    *,
    tensors: bool = False,
) -> Any:
    """With `tensors` it says besides what the checksum of those is."""
    content = _parsed(path, mend)
    if format is not None and content.get("format", format) != format:
        raise CheckpointError(
            f"'{path}' has format {content['format']!r:.60} and this halfstep reads {format!r}: use the "
            f"version that wrote it, or {mend}"
        )
    own = {name: content[name] for name in content if name in _Weights.__annotations__ and tensors}
    rest = {name: content[name] for name in content if name not in (SEAL, *own)}
    try:
        validated(rest, schema)
        validated(own, _Weights if tensors else dict)
        return unsealed(content)
    except SchemaError as wrong:
        raise CheckpointError(f"'{path}' is damaged: {wrong}; {mend}") from None


class _Weights(TypedDict):
    sha256: str


def read_unsealed_json(path: Path, schema: Any) -> dict[str, Any]:
    """All that a json of others says, of whose keys those are held to the schema that it has."""
    mend = "copy it from where it is whole"
    content = _parsed(path, mend)
    try:
        return validated_partly(content, schema)
    except SchemaError as wrong:
        raise CheckpointError(f"'{path}' cannot be: {wrong}; {mend}") from None


def _parsed(path: Path, mend: str) -> dict[str, Any]:
    with reading(path):
        text = path.read_bytes()
    try:
        return from_json(text, dict[str, Any], f"'{path}'")
    except CheckpointError as damaged:
        raise CheckpointError(f"{damaged}; {mend}") from None


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


def _json(path: Path, content: Mapping[str, Any]) -> str:
    """With its own checksum; what would not be read again is not written."""
    try:
        return json.dumps(sealed(content), indent=2) + "\n"
    except SchemaError as wrong:
        raise ConfigError(f"'{path}' cannot be written: {wrong}; give another") from None


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, and no two in one memory: safetensors refuses tied weights."""
    found, places = dict[str, Tensor](), set[int]()
    for name, value in tensors.items():
        value = value.detach().contiguous()
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in places else value
        places.add(place)
    return found
