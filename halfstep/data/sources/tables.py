"""Tables of images: Hugging Face data sets saved to the disk, parquet and arrow files.

The image is the column of the Image feature, of {"bytes", "path"} or of bytes; the label a ClassLabel, or
whole numbers or names in a column called label; the captions a text, or a list of texts, in a column called
text or caption.  Rows are read where they lie: nothing is copied into a cache, and nothing is fetched.
"""

import io
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from halfstep.data.sources.columns import chosen, classes_of, NAMES
from halfstep.data.sources.image_folder import stamp_of
from halfstep.data.sources.table_files import Part
from halfstep.errors import ConfigError, DataError
from halfstep.progress import Progress, SILENT


@dataclass(frozen=True, eq=False)
class TableImages:
    """The images of a table, in the order of its rows."""

    place: Path
    parts: Sequence[Part]
    image: str
    text: str | None
    labels: list[int] | None
    class_names: tuple[str, ...]

    @classmethod
    def open(
        cls,
        place: Path,
        parts: Sequence[Part],
        columns: Mapping[str, str],
        progress: Progress = SILENT,
    ) -> "TableImages":
        """The images of these parts; `DataError` where the columns are missing or ambiguous."""
        features = parts[0].features
        for part in parts:
            if other := {n for n in features if part.features.get(n) != features[n]}:
                raise DataError(
                    f"{part.path} and {parts[0].path} differ in the columns {', '.join(sorted(other))}: "
                    "name one, or the files that belong together"
                )
        names = _named(place, features, columns)
        image, label, text = (names[role] for role in ("image", "label", "text"))
        if image is None:
            raise DataError(
                f"{place} has no column of images (it has {', '.join(features)}): name one as "
                f"{place}:image=NAME, with {{'bytes': ...}} or bytes"
            )
        labels: list[int] | None = None
        class_names: tuple[str, ...] = ()
        if label is not None:
            values = list[Any]()
            progress.expect(len(parts))
            for part in parts:
                values += part.column(label)
                progress.advance()
            labels, class_names = classes_of(values, f"column {label} of {place}")
            if declared := getattr(features[label], "names", None):
                class_names = tuple(declared) if labels is not None else ()
        return cls(place, parts, image, text, labels, class_names)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def name(self, k: int) -> str:
        part, row = self._where(k)
        return f"{part.path.name}[{row}]"

    def opened(self, k: int) -> io.BytesIO:
        return io.BytesIO(self.content(k))

    def content(self, k: int) -> bytes:
        part, row = self._where(k)
        value = part.cell(self.image, row)
        path = value.get("path") if isinstance(value, dict) else None
        value = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(value, bytes):
            return value
        if not path:
            raise DataError("no image")
        return _beside(part.path, str(path)).read_bytes()

    def stamp(self, k: int) -> str:
        part, row = self._where(k)
        return f"{stamp_of(part.path.stat())} {row}"

    def captions(self) -> list[tuple[str, ...]] | None:
        if (name := self.text) is None:
            return None
        values = [value for part in self.parts for value in part.column(name)]
        lists = [value if isinstance(value, list) else [value] for value in values]
        return [
            tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())
            for texts in lists
        ]

    def _where(self, k: int) -> tuple[Part, int]:
        ends = self._ends
        n = bisect_right(ends, k)
        return self.parts[n], k - (ends[n - 1] if n else 0)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(map(len, self.parts)))


def _beside(table: Path, path: str) -> Path:
    """The file that a row names in place of bytes; `DataError` unless it lies below the table's folder."""
    file = (table.parent / path).resolve()
    if "://" in path or not file.is_relative_to(table.parent.resolve()):
        raise DataError(
            f"its image is at {path:.80}, not in the table: nothing else is fetched or read"
        )
    return file


# -- which columns ---------------------------------------------------------------------------------


def _named(
    place: Path, features: Mapping[str, Any], columns: Mapping[str, str]
) -> dict[str, str | None]:
    """The column of each role: the one that the suffix of the place names, else the one that is found."""
    if strange := [name for name in columns.values() if name not in features]:
        raise ConfigError(
            f"{place} has no column '{strange[0]}': choose from {', '.join(features)}"
        )
    found = {
        "image": _images(features),
        "label": _labels(features),
        "text": [name for name in features if name.lower() in NAMES["text"]],
    }
    return {role: columns.get(role) or chosen(role, found[role], place) for role in found}


def _images(features: Mapping[str, Any]) -> list[str]:
    """The columns of images: of the Image feature, else of bytes and path, else of bytes."""
    kinds = {name: _kind(feature) for name, feature in features.items()}
    for kind in ("Image", "bytes and path", "binary"):
        if names := [name for name in kinds if kinds[name] == kind]:
            return names
    return []


def _labels(features: Mapping[str, Any]) -> list[str]:
    """The columns of ClassLabel, else of whole numbers or texts with a usual name."""
    if names := [name for name in features if _kind(features[name]) == "ClassLabel"]:
        return names
    kinds = ("int", "uint", "string", "large_string")
    return [
        name
        for name, feature in features.items()
        if name.lower() in NAMES["label"] and _kind(feature).rstrip("0123456789") in kinds
    ]


def _kind(feature: Any) -> str:
    """The kind of a column: Image, ClassLabel, bytes and path, or the type of its values."""
    if isinstance(feature, Mapping):
        return "bytes and path" if "bytes" in feature else ""
    name = type(feature).__name__
    return str(feature.dtype).removeprefix("large_") if name == "Value" else name
