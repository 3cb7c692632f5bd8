"""Save and load tensors with a description: NAME.safetensors and NAME.json.

Both files are whole on the disk, under temporary names, before either is renamed, the json last: it holds
the checksum of the tensors and its own, so that a pair is complete or absent.  Loading verifies both and
executes nothing.  Every json that halfstep writes and reads has its own checksum.
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
from safetensors import safe_open, SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn, Tensor

from halfstep import files
from halfstep.config import JsonObject
from halfstep.errors import CheckpointError, ConfigError
from halfstep.schema import (
    add_checksum,
    CHECKSUM,
    from_json,
    remove_checksum,
    SchemaError,
    validated,
    validated_partly,
)

T = TypeVar("T")
Content = Mapping[str, Any]
"""The keys and values of a json file."""


def save(
    stem: Path,
    tensors: Mapping[str, Tensor],
    about: Content,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write STEM.safetensors, with this metadata for other libraries, and STEM.json; all or nothing."""
    weights, description = stem.with_suffix(".safetensors"), stem.with_suffix(".json")
    with files.replacing(weights, description) as (weights_part, description_part):
        _save_file(_unshared(tensors), weights_part, metadata)
        files.apply_umask(weights_part)  # safetensors writes for the owner alone
        text = _json(description, {**about, "sha256": checksum(weights_part)})
        files.fill(description_part, text.encode())


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a .safetensors file alone, which other libraries read; all or nothing."""
    with files.replacing(path) as (part,):
        _save_file(_unshared(tensors), part, metadata)
        files.apply_umask(part)


def load(
    stem: Path, schema: Any = JsonObject, *, format: object = None
) -> tuple[dict[str, Tensor], JsonObject]:
    """Load the tensors and their description; `CheckpointError` names a missing or damaged file.

    schema  of the description (see `halfstep.schema`), without the tensors' sha256
    format  that the description must have, if it has one
    """
    about = verify(stem, schema, format=format)
    weights = stem.with_suffix(".safetensors")
    with _tensors_in(weights):
        return load_file(weights), about


@contextmanager
def opened(
    stem: Path, schema: Any = JsonObject
) -> Iterator[tuple[Mapping[str, Tensor], JsonObject]]:
    """As `load`, but each tensor is read when it is named: no more than are used are in memory."""
    about = verify(stem, schema)
    weights = stem.with_suffix(".safetensors")
    # Not mapped into memory, where all that was read would stay until the file is closed.
    with _tensors_in(weights), safe_open(weights, "pt", backend="pread") as file:
        yield _Tensors(file), about


class _Tensors(Mapping[str, Tensor]):
    """The tensors of an open file by name."""

    def __init__(self, file: Any):
        self._file, self._names = file, dict.fromkeys(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextmanager
def _tensors_in(weights: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(f"'{weights}' holds no tensors: {error}") from None


def verify(stem: Path, schema: Any = JsonObject, *, format: object = None) -> JsonObject:
    """The description of the tensors, after verifying both checksums."""
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


def read_about(stem: Path, schema: Any = JsonObject, *, format: object = None) -> JsonObject:
    """The description in STEM.json, with the `sha256` of the tensors, which are not read."""
    about: JsonObject = _read(stem.with_suffix(".json"), schema, format, tensors=True)
    return about


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file, or from one of torch.save; nothing in it can run."""
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            # Memory-mapped, so that a large model is in memory only once.
            mapped = zipfile.is_zipfile(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes the readers raise many kinds
        reason = getattr(error, "strerror", None) or "it is damaged, or no file of weights"
        raise CheckpointError(
            f"'{path}' cannot be read as tensors alone, and nothing else is read: {reason}"
        ) from error
    entries = content.items() if isinstance(content, Mapping) else [("it", content)]
    other = [(k, v) for k, v in entries if not (isinstance(k, str) and isinstance(v, Tensor))]
    if other or not isinstance(content, Mapping) or not content:
        name, value = (other or [("it", content)])[0]
        raise CheckpointError(
            f"'{path}' is no state dict of tensors by name ({name!r} is a {type(value).__name__}): save "
            "model.state_dict() alone"
        )
    return dict(content)


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict strictly: all names and shapes must be the module's."""
    check_fits(module.state_dict(), tensors, source)
    module.load_state_dict(dict(tensors), strict=True)


def check_fits(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors whose names or shapes are not those of a network's state dict."""
    missing, unexpected = (
        sorted(state.keys() - tensors.keys()),
        sorted(tensors.keys() - state.keys()),
    )
    shaped = sorted(n for n in state.keys() & tensors.keys() if state[n].shape != tensors[n].shape)
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
    """Cast the floating-point tensors to this type; `ConfigError` if a value would become infinite."""
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    for name, value in cast.items():
        if value.is_floating_point() and bool((value.isinf() & tensors[name].isfinite()).any()):
            raise ConfigError(
                f"{name} has weights beyond what {str(dtype).removeprefix('torch.')} can hold: write bfloat16"
            )
    return cast


def write_json(path: Path, content: Content) -> None:
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
    """Read a file of `write_json`; `CheckpointError` if it is missing, damaged or changed.

    schema  of its content (see `halfstep.schema`)
    format  that it must have, if it has one
    mend    the error's advice for a damaged file
    """
    content: T = _read(path, schema, format, mend)
    return content


def _read(
    path: Path,
    schema: Any,
    format: object,
    mend: str = "copy it back from where it is whole",
    *,
    tensors: bool = False,
) -> Any:
    """With `tensors` the file also holds their sha256."""
    content = _parsed(path, mend)
    if format is not None and content.get("format", format) != format:
        raise CheckpointError(
            f"'{path}' has format {content['format']!r:.60} and this halfstep reads {format!r}: use the "
            f"version that wrote it, or {mend}"
        )
    weights = {k: content[k] for k in content if k in _Weights.__annotations__ and tensors}
    others = {k: content[k] for k in content if k not in (CHECKSUM, *weights)}
    try:
        validated(others, schema)
        validated(weights, _Weights if tensors else dict)
        return remove_checksum(content)
    except SchemaError as wrong:
        raise CheckpointError(f"'{path}' is damaged: {wrong}; {mend}") from None


class _Weights(TypedDict):
    sha256: str


def read_unsealed_json(path: Path, schema: Any) -> JsonObject:
    """Read another library's json, which has no checksum; the keys that the schema has must fit it."""
    mend = "copy it from where it is whole"
    content = _parsed(path, mend)
    try:
        return validated_partly(content, schema)
    except SchemaError as wrong:
        raise CheckpointError(f"'{path}' is invalid: {wrong}; {mend}") from None


def _parsed(path: Path, mend: str) -> JsonObject:
    with reading(path):
        text = path.read_bytes()
    try:
        return from_json(text, JsonObject, f"'{path}'")
    except CheckpointError as damaged:
        raise CheckpointError(f"{damaged}; {mend}") from None


@contextmanager
def reading(path: Path, *, missing: str = "does not exist") -> Iterator[None]:
    """Turn errors of the disk into one sentence, around reading `path`."""
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


def link(file: Path, path: Path, sha256: str) -> bool:
    """Hard-link a file of this sha256 to `path`; False if the file system cannot, or the file has changed."""
    part = files.temporary_path(path)
    try:
        os.link(file, part)
        same = checksum(part) == sha256
        if same:
            part.replace(path)
        files.remove(part)  # renaming between two links of one file does nothing
    except (OSError, CheckpointError):
        return False
    return same


def _save_file(
    tensors: dict[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """safetensors' `save_file`, with its error for a full disk turned into `OSError`."""
    try:
        save_file(tensors, path, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from None


def _json(path: Path, content: Content) -> str:
    """The content as JSON with its own checksum; `ConfigError` if it could not be read again."""
    try:
        return json.dumps(add_checksum(content), indent=2) + "\n"
    except SchemaError as wrong:
        raise ConfigError(f"'{path}' cannot be written: {wrong}; give another") from None


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory: safetensors refuses tied weights."""
    unshared, places = dict[str, Tensor](), set[int]()
    for name, value in tensors.items():
        value = value.detach().contiguous()
        place = value.untyped_storage().data_ptr()
        unshared[name] = value.clone() if place in places else value
        places.add(place)
    return unshared
