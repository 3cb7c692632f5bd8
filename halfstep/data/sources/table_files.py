"""The files of a table: parquet by row groups, arrow memory-mapped, and data sets of `save_to_disk`."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from halfstep.capacity import memory
from halfstep.config import JsonObject
from halfstep.errors import DataError, HalfstepError
from halfstep.extras import needed
from halfstep.schema import from_json

GROUPS = 3
"""Row groups of a parquet file that are held in memory."""
SAVED, SPLITS = "state.json", "dataset_dict.json"
"""Files that `save_to_disk` writes into the folder of a data set, and into one of several splits."""


class Part(Protocol):
    """One file of a table, or a data set that was saved to the disk."""

    @property
    def path(self) -> Path: ...

    @property
    def features(self) -> Mapping[str, Any]:
        """The features of the columns, as the `datasets` library has them."""

    def __len__(self) -> int: ...

    def column(self, name: str) -> list[Any]:
        """All values of a column."""

    def cell(self, name: str, row: int) -> Any:
        """One value of a column."""


@dataclass(frozen=True, eq=False)
class ParquetFile:
    """A parquet file; of the column of images a few row groups are held in memory."""

    path: Path
    _groups: "OrderedDict[tuple[str, int], Any]" = field(default_factory=OrderedDict)
    _lock: Any = field(default_factory=Lock)

    @cached_property
    def features(self) -> Mapping[str, Any]:
        with reading(self.path):
            import datasets

            features: Mapping[str, Any] = datasets.Features.from_arrow_schema(
                self._opened().schema_arrow
            )
            return features

    @cached_property
    def _ends(self) -> list[int]:
        """The row after each row group."""
        with reading(self.path):
            about, ends = self._opened().metadata, [0]
            for k in range(about.num_row_groups):
                group = about.row_group(k)
                if group.total_byte_size > memory():
                    raise DataError(
                        f"row group {k} of {self.path} has {group.total_byte_size:,} bytes, more than the "
                        "memory here: write it with a smaller row_group_size"
                    )
                ends.append(ends[-1] + group.num_rows)
            return ends[1:]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def column(self, name: str) -> list[Any]:
        with reading(self.path):
            values: list[Any] = self._opened().read(columns=[name]).column(name).to_pylist()
            return values

    def cell(self, name: str, row: int) -> Any:
        k = bisect_right(self._ends, row)
        group = self._group(name, k)
        return group[row - (self._ends[k - 1] if k else 0)].as_py()

    def _group(self, name: str, k: int) -> Any:
        with self._lock:  # of the threads that read, one reads a group for all
            if (group := self._groups.pop((name, k), None)) is None:
                with reading(self.path):
                    group = self._opened().read_row_group(k, columns=[name]).column(name)
            self._groups[name, k] = group
            while len(self._groups) > GROUPS:
                self._groups.popitem(last=False)
            return group

    def _opened(self) -> Any:
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(self.path)


@dataclass(frozen=True, eq=False)
class ArrowData:
    """A data set of the `datasets` library, memory-mapped: an arrow file, or a folder of `save_to_disk`."""

    path: Path
    _columns: dict[str, Any] = field(default_factory=dict)
    _lock: Any = field(default_factory=Lock)

    @cached_property
    def _data(self) -> Any:
        with reading(self.path):
            import datasets

            if self.path.is_dir():
                data = datasets.load_from_disk(str(self.path))
            else:
                data = datasets.Dataset.from_file(str(self.path))
            return data.with_format("arrow")

    @property
    def features(self) -> Mapping[str, Any]:
        features: Mapping[str, Any] = self._data.features
        return features

    def __len__(self) -> int:
        return len(self._data)

    def column(self, name: str) -> list[Any]:
        with reading(self.path):
            values: list[Any] = self._of(name)[:].column(name).to_pylist()
            return values

    def cell(self, name: str, row: int) -> Any:
        with reading(self.path):
            return self._of(name)[row : row + 1].column(name)[0].as_py()

    def _of(self, name: str) -> Any:
        """The data with this column alone."""
        with self._lock:
            if name not in self._columns:
                self._columns[name] = self._data.select_columns([name])
            return self._columns[name]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around the reading of a table's file: `DataError` for a damaged one."""
    try:
        with needed("datasets", f"to read {path.name}"):
            yield
    except (HalfstepError, MemoryError):
        raise
    except Exception as error:  # pyarrow and datasets raise many types on damaged files
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"cannot read {path}: {reason}; fetch it again") from None


def part_of(path: Path) -> Part:
    """The part of a table at this place: a parquet file, an arrow file, or a folder of `save_to_disk`."""
    return ParquetFile(path) if path.suffix.lower() == ".parquet" else ArrowData(path)


def saved_splits(folder: Path) -> list[str] | None:
    """The splits of a folder that `DatasetDict.save_to_disk` wrote; None for another folder."""
    try:
        text = (folder / SPLITS).read_bytes()
        about = from_json(text, JsonObject, str(folder / SPLITS), error=DataError)
        return sorted(str(name) for name in about["splits"])
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError) as error:
        raise DataError(f"cannot read {folder / SPLITS}: {error}; save the data again") from None
