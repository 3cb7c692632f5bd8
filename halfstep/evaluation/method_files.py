"""Read and write OUT/compare.json and OUT/compare.npz."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from halfstep import files, storage
from halfstep.config import JsonObject
from halfstep.errors import CheckpointError, ConfigError
from halfstep.evaluation.method_data import MethodComparison
from halfstep.evaluation.report_files import pictures_in
from halfstep.schema import build, plain, SchemaError

FORMAT = 1
COMPARISON, PICTURES = "compare.json", "compare.npz"
MEND = "write halfstep compare again"


def save_comparison(comparison: MethodComparison, folder: Path) -> None:
    """Write FOLDER/compare.json and FOLDER/compare.npz."""
    storage.write_json(folder / COMPARISON, {"format": FORMAT, **plain(comparison)})
    with files.replacing(folder / PICTURES) as (part,), part.open("wb") as file:
        np.savez_compressed(file, **comparison.pictures)  # type: ignore[arg-type]


def read_comparison(folder: Path) -> MethodComparison:
    """Read the comparison that `save_comparison` wrote.

    `ConfigError` for a folder without one, `CheckpointError` if a file is damaged or changed.
    """
    path = folder / COMPARISON
    if not path.exists():
        raise ConfigError(
            f"'{folder}' holds no comparison (it has no {COMPARISON}): write halfstep compare --out {folder}"
        )
    content = storage.read_json(path, JsonObject, format=FORMAT, mend=MEND)
    content.pop("format", None)
    try:
        comparison = build(content, MethodComparison)
    except SchemaError as wrong:
        raise CheckpointError(f"'{path}' is damaged: {wrong}; {MEND}") from None
    return replace(comparison, pictures=pictures_in(folder / PICTURES, MEND))
