"""Read and write RUN/report.json and RUN/report.npz."""

from dataclasses import replace
from pathlib import Path
from sys import float_info
from zipfile import BadZipFile
from zlib import error as BadStream

import numpy as np

from halfstep import files, storage
from halfstep.config import JsonObject
from halfstep.errors import CheckpointError, ConfigError
from halfstep.evaluation.report_data import AnyReport, EncoderReport, Pictures, Report, Row
from halfstep.schema import build, plain, SchemaError

FORMAT = 3
REPORT, PICTURES = "report.json", "report.npz"
MEND = "write halfstep evaluate again"


def save_report(report: AnyReport, folder: Path) -> None:
    """Write FOLDER/report.json and FOLDER/report.npz."""
    storage.write_json(folder / REPORT, {"format": FORMAT, **plain(report)})
    with files.replacing(folder / PICTURES) as (part,), part.open("wb") as file:
        np.savez_compressed(file, **report.pictures)  # type: ignore[arg-type]


def read_report(folder: Path) -> AnyReport:
    """Read the report that `save_report` wrote.

    `ConfigError` if the run was not evaluated, `CheckpointError` if a file is damaged or changed.
    """
    path = folder / REPORT
    if not path.exists():
        raise ConfigError(
            f"'{folder}' is not evaluated yet (it has no {REPORT}): write halfstep evaluate {folder}"
        )
    content = storage.read_json(path, JsonObject, format=FORMAT, mend=MEND)
    return parse_report(content, f"'{path}'", read_pictures(folder))


def parse_report(content: JsonObject, source: str, pictures: Pictures) -> AnyReport:
    """The report of the content of report.json; `source` names the file in an error."""
    table = {name: value for name, value in content.items() if name != "format"}
    try:
        report: AnyReport
        if "reconstruction" in table:
            report = build(table, EncoderReport)
        else:
            report = build(table, Report)
            _check_rows(report.rows)
    except SchemaError as wrong:
        raise CheckpointError(f"{source} is damaged: {wrong}; {MEND}") from None
    return replace(report, pictures=pictures)


def _check_rows(rows: tuple[Row, ...]) -> None:
    """Raise `SchemaError` for rows without a teacher, a part of their role, or a positive distance."""
    if not rows or rows[0].role != "teacher":
        raise SchemaError("it has no rows that begin with the teacher")
    baselines = {row.name for row in rows if row.role == "baseline"}
    for k, row in enumerate(rows):
        if row.baseline is not None and not baselines.issuperset(row.baseline.names or ("",)):
            raise SchemaError(f"rows[{k}].baseline names no row of a baseline")
        if row.role == "compressed" and row.compressed is None:
            raise SchemaError(f"it lacks rows[{k}].compressed")
        if row.role == "other" and row.network is None:
            raise SchemaError(f"it lacks rows[{k}].network")
        if (value := row.distances.frechet_distance.value) < float_info.min:
            raise SchemaError(f"rows[{k}].distances.frechet_distance is too small, got {value}")


def read_pictures(folder: Path) -> Pictures:
    """The arrays of FOLDER/report.npz; empty if the file does not exist."""
    return pictures_in(folder / PICTURES, f"write halfstep evaluate {folder} again")


def pictures_in(path: Path, mend: str) -> Pictures:
    """The arrays of a file of pictures; empty if it does not exist.

    mend  what to write where it is damaged
    """
    if not path.exists():
        return {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, BadZipFile, BadStream) as error:
        raise CheckpointError(f"'{path}' is damaged ({error}): {mend}") from None
