"""RUN/config.toml: the options of a run's command, as `--config` reads them."""

import hashlib
from pathlib import Path
from typing import TypedDict

from halfstep import files, storage
from halfstep.config import JsonObject
from halfstep.config.toml import toml
from halfstep.errors import CheckpointError
from halfstep.schema import from_toml, SchemaError, validated_partly


class RunConfig(TypedDict, total=False):
    """The options that halfstep reads from a run's own config.toml."""

    data: str
    size: int
    channels: int
    teacher: str | list[str]
    teacher_config: str
    family: str
    model: str
    weights: str
    codec: str
    text: str


def read_config(folder: Path) -> JsonObject:
    """Content of FOLDER/config.toml, which `write_config` wrote; {} without the file."""
    path = folder / "config.toml"
    if not path.exists():
        return {}
    with storage.reading(path):
        text = path.read_bytes()
    content = from_toml(text, JsonObject, f"'{path}'")
    try:
        body, mark, digest = text.rpartition(MARK.encode())
        if not mark or digest.strip() != _digest(body):
            raise SchemaError(
                "it is not as the run wrote it; run the same command again, which writes it"
            )
        return validated_partly(content, RunConfig)
    except SchemaError as wrong:
        raise CheckpointError(f"'{path}' is damaged: {wrong}") from None


MARK = "# checksum "
"""Begins the last line of a config.toml, which has the checksum of the lines above."""


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def write_config(folder: Path, options: JsonObject) -> None:
    """Write FOLDER/config.toml, with which `--config` asks for the same run again.

    options  of the command, by name

    The folder must exist: a run whose folder went away does not get another.
    """
    lines = [f"{name} = {toml(value)}" for name, value in options.items() if value is not None]
    text = "\n".join(lines) + "\n"
    digest = _digest(files.encoded(text, f"cannot write '{folder / 'config.toml'}'")).decode()
    files.write_text(folder / "config.toml", f"{text}{MARK}{digest}\n")
