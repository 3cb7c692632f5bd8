"""What both pages know of a student that takes the guidance scale as an input."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.errors import ConfigError
from halfstep.report import numbers
from halfstep.report.verdict import Row

STUDENT = "student, "


@dataclass(frozen=True)
class Table:
    """evidence["guided"] as it is set: rows by guidance scale, decimals by column.

    samples, steps  of the guided teacher that distances are to
    """

    scales: Mapping[float, list[Row]]
    places: Mapping[str, int]
    samples: int
    steps: int

    def row(self, scale: float, label: str) -> Row | None:
        """The row of that way of sampling at a scale of the table, if it was measured."""
        said = (row for row in self.scales[scale] if row["name"].removeprefix(STUDENT) == label)
        return next(said, None)

    def nearest(self, scale: float) -> float:
        """The scale of the table that is next to this one."""
        return min(self.scales, key=lambda known: abs(known - scale))

    @property
    def drawn(self) -> bool:
        """Whether there is something to draw of the distance to data over the Inception score."""
        return any(row["inception_score"] is not None for row in self.rows)

    @property
    def rows(self) -> list[Row]:
        return [row for own in self.scales.values() for row in own]


def table(evidence: Mapping[str, Any]) -> Table | None:
    """The table of a guided run; None of another."""
    found = evidence.get("guided")
    if not found or not found["rows"]:
        return None
    by: dict[float, list[Row]] = {}
    for row in found["rows"]:
        by.setdefault(row["guidance"], []).append(row)
    places = {
        name: numbers.places(row[name]["value"] for row in found["rows"] if row[name])
        for name in ("distance", "rmse")
    }
    places["to_data"] = numbers.places(row["to_data"] for row in found["rows"])
    return Table(by, places, found["reference"]["samples"], found["reference"]["steps"])


@dataclass(frozen=True)
class Shown:
    """The pictures of a guided run: uint8 [scales, ways, seeds, H, W, 1 or 3], the teacher's way first."""

    stack: NDArray[np.uint8]
    scales: list[float]
    labels: list[str]


def shown(pictures: Mapping[str, NDArray[Any]]) -> Shown | None:
    """`guided`, `guided_scales` and `guided_labels` of report.npz; None without a student's.

    Raises ConfigError for other shapes.
    """
    if "guided" not in pictures:
        return None
    stack = pictures["guided"]
    if stack.ndim != 6 or stack.dtype != np.uint8 or stack.shape[-1] not in (1, 3):
        raise ConfigError(
            f"'guided' is drawn from uint8 [scales, ways, seeds, H, W, 1 or 3], got {stack.dtype} "
            f"{list(stack.shape)}: convert it with report.pictures.to_uint8"
        )
    scales = [float(x) for x in pictures.get("guided_scales", np.array([]))]
    labels = [str(x) for x in pictures.get("guided_labels", np.array([]))]
    if stack.shape[:2] != (len(scales), len(labels)):
        raise ConfigError(
            f"'guided' has {stack.shape[0]} scales of {stack.shape[1]} ways, and there are {len(scales)} "
            f"'guided_scales' and {len(labels)} 'guided_labels': write one for each"
        )
    return Shown(stack, scales, labels) if len(labels) > 1 and stack.size else None
