"""RUN/config.toml: the options of a run's command, as `--config` reads them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from halfstep import files, storage
from halfstep.config.toml import toml
from halfstep.errors import CheckpointError
from halfstep.schema import from_toml, SchemaError, validated_partly


class RunConfig(TypedDict, total=False):
    """What is read again of a run's own config.toml."""

    data: str
    size: int
    channels: int
    teacher: str
    model: str
    weights: str
    codec: str
    text: str


def read_config(folder: Path) -> dict[str, Any]:
    """What FOLDER/config.toml says, which `write_config` wrote; {} where there is none."""
    path = folder / "config.toml"
    if not path.exists():
        return {}
    with storage.reading(path):
        text = path.read_bytes()
    content = from_toml(text, dict[str, Any], f"'{path}'")
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
"""Of the lines above, on the last line of a config.toml."""


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def write_config(folder: Path, options: Mapping[str, Any]) -> None:
    """FOLDER/config.toml: the same command with `--config` and it asks for the same run again.

    options  of the command, by name

    The folder is there: a run whose folder went away does not get another.
    """
    lines = [f"{name} = {toml(value)}" for name, value in options.items() if value is not None]
    text = "\n".join(lines) + "\n"
    digest = _digest(files.encoded(text, f"cannot write '{folder / 'config.toml'}'")).decode()
    files.write_text(folder / "config.toml", f"{text}{MARK}{digest}\n")
