"""Files to download from a page, as data: URLs: they work without a script and without a server."""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from halfstep.report.data_tables import DataTable, Rows
from halfstep.report.plots.figures import PageFigure

TYPES = {
    "csv": "text/csv;charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
    "bib": "text/plain;charset=utf-8",
}


@dataclass(frozen=True)
class Download:
    """A file to download: its name and its content as a data: URL."""

    file: str
    url: str

    @property
    def label(self) -> str:
        """CSV, JSON, SVG or BIB."""
        return self.file.rpartition(".")[2].upper()


def download(file: str, content: str) -> Download:
    """A file of this name, whose suffix is one of `TYPES`."""
    kind = TYPES[file.rpartition(".")[2]]
    return Download(file, f"data:{kind};base64,{b64encode(content.encode()).decode('ascii')}")


def file_stem(run: str) -> str:
    """A run's name as the beginning of file names: other characters than letters, digits, . _ - become -."""
    return re.sub(r"[^\w.-]+", "-", run).strip("-.") or "run"


def downloads(
    run: str, tables: Mapping[str, Rows], figures: Mapping[str, PageFigure]
) -> dict[str, Sequence[Download]]:
    """CSV and JSON of each table, and CSV, JSON and SVG of each figure, whose names begin with figure-."""
    stem, files = file_stem(run), dict[str, Sequence[Download]]()
    for name, rows in tables.items():
        files[name] = _numbers(DataTable(f"{stem}-{name}", rows))
    for figure_name, figure in figures.items():
        name = f"figure-{figure_name}"
        drawn = download(f"{stem}-{name}.svg", figure.drawing.file)
        files[name] = [drawn, *_numbers(DataTable(f"{stem}-{name}", figure.data))]
    return files


def _numbers(table: DataTable) -> list[Download]:
    return [
        download(f"{table.name}.csv", table.csv),
        download(f"{table.name}.json", table.json),
    ]
