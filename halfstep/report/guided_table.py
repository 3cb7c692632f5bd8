"""The guided table and pictures, as both pages show them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfstep.errors import ConfigError
from halfstep.evaluation.report_data import GuidedRow, GuidedTable, Pictures
from halfstep.report.words import numbers

STUDENT = "student, "


@dataclass(frozen=True)
class GuidedView:
    """The guided table of a report as a page shows it: rows by guidance scale, decimals by column.

    samples, steps  number of samples and steps of the guided teacher, the reference of the distances
    """

    scales: Mapping[float, list[GuidedRow]]
    places: Mapping[str, int]
    samples: int
    steps: int

    def row(self, scale: float, label: str) -> GuidedRow | None:
        """The row of a setup at a scale of the table, if it was measured."""
        named = (row for row in self.scales[scale] if row.name.removeprefix(STUDENT) == label)
        return next(named, None)

    def nearest(self, scale: float) -> float:
        """The nearest scale of the table."""
        return min(self.scales, key=lambda measured: abs(measured - scale))

    @property
    def drawn(self) -> bool:
        """Whether Inception scores were measured, for the plot of distance to data over score."""
        return any(row.inception_score is not None for row in self.rows)

    @property
    def rows(self) -> list[GuidedRow]:
        return [row for rows in self.scales.values() for row in rows]


def guided_view(guided: GuidedTable | None) -> GuidedView | None:
    """The view of a guided table; None without one."""
    if guided is None or not guided.rows:
        return None
    scales: dict[float, list[GuidedRow]] = {}
    for row in guided.rows:
        scales.setdefault(row.guidance_scale, []).append(row)
    places = {
        "distance": numbers.places(row.distance.value for row in guided.rows),
        "rmse": numbers.places(row.rmse.value for row in guided.rows if row.rmse),
        "data_distance": numbers.places(row.data_distance for row in guided.rows),
    }
    return GuidedView(scales, places, guided.reference.samples, guided.reference.steps)


@dataclass(frozen=True)
class GuidedPictures:
    """The pictures of a guided run: uint8 [scales, setups, seeds, H, W, 1 or 3], first the teacher's."""

    stack: NDArray[np.uint8]
    scales: list[float]
    labels: list[str]


def guided_pictures(pictures: Pictures) -> GuidedPictures | None:
    """The guided pictures of report.npz; None without a student's; `ConfigError` for other shapes."""
    if "guided" not in pictures:
        return None
    stack = pictures["guided"]
    if stack.ndim != 6 or stack.dtype != np.uint8 or stack.shape[-1] not in (1, 3):
        raise ConfigError(
            f"'guided' must be uint8 [scales, setups, seeds, H, W, 1 or 3], got {stack.dtype} "
            f"{list(stack.shape)}: convert it with halfstep.pictures.to_uint8"
        )
    scales = [float(x) for x in pictures.get("guided_scales", np.array([]))]
    labels = [str(x) for x in pictures.get("guided_labels", np.array([]))]
    if stack.shape[:2] != (len(scales), len(labels)):
        raise ConfigError(
            f"'guided' has {stack.shape[0]} scales of {stack.shape[1]} setups, but {len(scales)} "
            f"'guided_scales' and {len(labels)} 'guided_labels': write one for each"
        )
    return GuidedPictures(stack, scales, labels) if len(labels) > 1 and stack.size else None
