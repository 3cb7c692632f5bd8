"""The report of a student's run in its model card: a table, and a picture of the same seeds."""

from collections.abc import Sequence
from pathlib import Path

import torch

from halfstep.evaluation.report_data import Measurement, Report
from halfstep.report.images.png import save_grid
from halfstep.report.words.numbers import real_images
from halfstep.workflows.model_card import plain

PICTURE = "samples.png"


def report_table(report: Report) -> list[str]:
    """The rows of the report in Markdown."""
    measure = report.measure
    lines = [
        "| | network calls | Fréchet distance | / teacher |",
        "|---|---|---|---|",
        *(
            f"| {plain(row.name)} | {row.calls} | {row.distances.frechet_distance} | {row.ratio or ''} |"
            for row in report.rows
        ),
        "",
        f"{measure.samples:,} samples against {real_images(measure)}, features {plain(measure.features)}; "
        f"{_floor(measure)}.",
    ]
    return [line.rstrip() for line in lines]


def _floor(measure: Measurement) -> str:
    """The floor and its note as part of a sentence."""
    if measure.floor_note and not measure.floor:
        return f"the sampling floor is {measure.floor_note}"
    note = f", {measure.floor_note}" if measure.floor_note else ""
    return f"{measure.floor:.3f} is what as many perfect samples would score{note}"


def save_picture(report: Report, folder: Path) -> list[str]:
    """Write FOLDER/samples.png, the report's grid; its Markdown, or nothing without a grid."""
    stack = report.pictures.get("grid")
    if stack is None or stack.ndim != 5 or not stack.size:
        return []
    rows, columns = stack.shape[:2]
    images = torch.from_numpy(stack.reshape(rows * columns, *stack.shape[2:])).permute(0, 3, 1, 2)
    save_grid(images, folder / PICTURE, columns=columns, scale=max(1, 64 // stack.shape[3]))
    labels: Sequence[object] = report.pictures.get("grid_labels", torch.empty(0)).tolist()
    return [
        f"![{', '.join(map(plain, labels))}]({PICTURE})",
        "",
        f"Rows: {', '.join(map(plain, labels))}.",
    ]
