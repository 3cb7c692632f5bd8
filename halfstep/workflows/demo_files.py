"""The files of a demo beside its report: results.json, samples.png and quality.png."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from halfstep.config import JsonObject
from halfstep.evaluation.report_data import Report, Row
from halfstep.extras import installed
from halfstep.pipeline import Pipeline
from halfstep.progress import expected, Progress, SILENT
from halfstep.report.images.panels import same_seeds
from halfstep.report.images.png import DDIM, quality_curve, SOLVER, STUDENT
from halfstep.schema import plain

FULL = 64
COUNTS = (8, 4, 2, 1)
SHOWN = 12
Curve = tuple[str, Sequence[int], Sequence[float], str]


def common_results(report: Report) -> JsonObject:
    """The entries of results.json that both demos have."""
    measure = report.measure
    cost = plain(report.run.cost)
    return {"samples": measure.samples, "features": measure.features, "cost": cost}


def demo_results(report: Report) -> JsonObject:
    """The numbers of results.json."""
    return {
        "teacher": _numbers(report.teacher),
        "baselines": [_numbers(row) for row in report.rows if row.role == "baseline"],
        "students": [_numbers(row) for row in report.students],
        "sampling_floor": report.measure.floor,
        **common_results(report),
    }


def _numbers(row: Row) -> dict[str, str | float]:
    assert row.cost is not None
    return {
        "sampler": row.sampler,
        "steps": row.steps,
        "calls": row.calls,
        "frechet_distance": row.distances.frechet_distance.value,
        "rmse_to_teacher": row.fidelity.rmse.value if row.fidelity else 0.0,
        "seconds_per_sample": row.cost.seconds_per_sample[64],
    }


def draw_demo(
    out: Path,
    teacher: Pipeline,
    students: Sequence[Pipeline],
    report: Report,
    *,
    progress: Progress = SILENT,
) -> None:
    """Draw OUT/samples.png, and quality.png where matplotlib is installed.

    progress  advances with every step of the samples
    """
    shown = [student for student in students if student.step_counts[0] in COUNTS]
    part = expected(progress, FULL + 2 * sum(student.step_counts[0] for student in shown))

    def draw(pipeline: Pipeline, steps: int) -> Tensor:
        return pipeline.sample(SHOWN, steps=steps, progress=part)

    rows = []
    for student in shown:
        steps = student.step_counts[0]
        label = f"{steps} step{'s' if steps > 1 else ''}"
        rows.append((label, draw(student, steps), draw(teacher, steps)))
    full = f"teacher, {FULL} steps"
    same_seeds(out / "samples.png", (full, draw(teacher, FULL)), rows)

    if not installed("matplotlib"):
        return

    def curve(name: str, of: Iterable[Row], colour: str) -> Curve:
        points = [(row.calls, row.distances.frechet_distance.value) for row in of]
        return name, [calls for calls, _ in points], [value for _, value in points], colour

    others = [row for row in report.rows if row.role == "baseline"]
    quality_curve(
        out / "quality.png",
        [
            curve("student", report.students, STUDENT),
            curve(
                "teacher, DPM-Solver++(2M)", (r for r in others if r.sampler == "dpmpp-2m"), SOLVER
            ),
            curve("teacher, DDIM", (r for r in others if r.sampler == "ddim"), DDIM),
        ],
        full=(full, report.teacher.distances.frechet_distance.value),
        floor=report.measure.floor,
    )
