"""The picture of a student's samples: the same noise, labels and texts every time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from halfstep.data import Data, NoData
from halfstep.methods.stages import StagePlan
from halfstep.models.codec import Codec
from halfstep.pictures import Picture, points_picture, tile
from halfstep.pipeline import Pipeline

IMAGES, POINTS = 16, 2000
"""Samples of a picture: images in rows of `COLUMNS`, or points."""
COLUMNS = 4
AT_ONCE, DECODED_AT_ONCE = 16, 4
"""Images that are drawn at a time, and those that a codec decodes."""


def why_undrawn(shape: tuple[int, ...], codec: Codec | None, plan: Sequence[StagePlan]) -> str:
    """Why samples of the students are no picture; empty if they are one."""
    if any(stage.direction == "invert" for stage in plan):
        return "an encoder goes from images to noise, so that it has no samples to draw"
    images = len(shape) == 3 and shape[0] in (1, 3)
    if codec is None and not images and shape != (2,):
        return f"samples of shape {list(shape)} are no picture"
    return ""


@dataclass(frozen=True, eq=False)
class SampleGrid:
    """Draws samples of students: 16 images, or 2,000 points in a plane, as `Pipeline.sample` does at seed 0.

    A student of several grids has a row of four images for each number of steps, the most first.

    Labels are the classes in turn; texts, and the labels of a run without data, are those of the data's
    rows, evenly spread.  A student that takes its guidance scale has the middle of its range.
    """

    data: Data
    device: torch.device

    def draw(self, student: Pipeline) -> Picture:
        """The picture of a student's samples in its own sampler and steps."""
        if student.shape == (2,):
            return points_picture(student.sample(POINTS, **self._conditions(student, POINTS)))
        with _on_device(student.codec, self.device):
            batch = AT_ONCE if student.codec is None else DECODED_AT_ONCE
            counts = sorted(student.step_counts, reverse=True) if student.fine_times else [None]
            n = IMAGES if counts == [None] else COLUMNS
            given = {"batch": batch, **self._conditions(student, n)}
            images = torch.cat([student.sample(n, steps=steps, **given) for steps in counts])
        return tile(images, columns=COLUMNS)

    def _conditions(self, student: Pipeline, n: int) -> dict[str, Any]:
        """The conditions of n samples, as `Pipeline.sample` takes them."""
        given: dict[str, Any] = {}
        if (scales := student.guidance_range) is not None:
            given["guidance_scale"] = sum(scales) / 2
        walks = isinstance(self.data, NoData)
        count = len(self.data)
        rows = torch.arange(n) % count if walks or count < n else torch.arange(n) * count // n
        cond = self.data.batch(rows).cond
        if cond is None:
            return given
        if walks and student.class_names and cond.label is not None:
            given["labels"] = cond.label.tolist()
        if student.empty is not None or student.added:
            given["prompts"] = cond.to("cpu")
        return given


@contextmanager
def _on_device(codec: Any, device: torch.device) -> Iterator[None]:
    """Move a codec to the device; afterwards it is where it was, as in the CPU's memory by --offload."""
    if not isinstance(codec, nn.Module):
        yield
        return
    before = next((p.device for p in codec.parameters()), device)
    codec.to(device)
    try:
        yield
    finally:
        codec.to(before)
