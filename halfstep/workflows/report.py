"""Compose, write and render the report of a run."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, UTC
from pathlib import Path

from halfstep import files
from halfstep.errors import CheckpointError, ConfigError
from halfstep.evaluation.report_data import (
    AnyReport,
    GateReport,
    Provenance,
    Report,
    RunSummary,
    TrainingCost,
    TrainingCosts,
    Update,
)
from halfstep.evaluation.report_files import read_report, save_report
from halfstep.evaluation.report_rows import Comparison, TeacherRows
from halfstep.progress import Progress, SILENT
from halfstep.report.words.headline import summarised
from halfstep.schema import build
from halfstep.training.run_folder import RunFolder
from halfstep.training.run_identity import Environment, environment


def write_report(report: AnyReport | Path | str, out: Path | str | None = None) -> Path:
    """Write report.html, and of a guided run slider.html; return the path of report.html.

    Args:
        report: a report, or the folder of a run that was evaluated.
        out: the folder to write to; a run's own by default, required with a report.

    Raises:
        ConfigError: a run that was not evaluated, or a report without `out`.
        CheckpointError: a damaged file of the report.
    """
    from halfstep.report import page, slider  # which import jinja2

    if isinstance(report, Path | str):
        out = Path(report) if out is None else out
        report = read_report(Path(report))
    if out is None:
        raise ConfigError(
            "a report has no folder of its own: write write_report(report, out=FOLDER)"
        )
    folder = Path(out)
    if isinstance(report, Report):
        slider.write(report, folder / "slider.html")
    return page.write(report, folder / "report.html")


def save(report: AnyReport, folder: Path) -> None:
    """Write FOLDER/report.json, report.npz, report.html and, of a guided run, slider.html."""
    save_report(report, folder)
    write_report(report, folder)


def refuse_other_images(run: Path, mend: str) -> None:
    """`ConfigError` if a report against the run's own data would replace one against held-out images.

    mend  what to write instead
    """
    held_out = False
    with suppress(ConfigError, CheckpointError):  # no report, or one that cannot be read
        report = read_report(run)
        held_out = isinstance(report, Report) and report.measure.held_out
    if held_out:
        raise ConfigError(
            f"the report of '{run}' compares with held-out images, and would be replaced by distances to the "
            f"run's own data: {mend}"
        )


def report_on(
    comparison: Comparison,
    *,
    provenance: Provenance,
    run: RunSummary,
    training: Sequence[Update] = (),
    teacher_rows: TeacherRows | None = None,
    guided: bool = True,
    progress: Progress = SILENT,
) -> Report:
    """Measure a comparison, and compose its report.

    provenance, run, training  parts of the report that are not measured
    teacher_rows               the teacher's rows, if they were measured before
    guided                     also compare students that take a guidance scale with the guided teacher
    """
    parts = comparison.measure(
        machine=machine(str(comparison.candidates.teacher.device)), teacher_rows=teacher_rows,
        guided=comparison.guided() if guided else None, progress=progress,
    )  # fmt: skip
    report = Report(
        provenance=provenance,
        run=run,
        measure=parts.measure,
        rows=parts.rows,
        guided=parts.guided,
        training=tuple(training),
        pictures=parts.pictures,
    )
    return summarised(report)


def provenance_of(run: RunFolder) -> Provenance:
    """The origin of a run."""
    return provenance(run.about["environment"], run.about["argv"])


def summary_of(run: RunFolder, *, teacher: Path | None) -> RunSummary:
    """Options, gate and cost of a run; `teacher` is the folder that its teacher's cost is read from."""
    return RunSummary(
        folder=files.name_of(run.folder),
        config=dict(run.config),
        gate=build({"best_steps": None, **run.gate}, GateReport) if run.gate else None,
        cost=TrainingCosts(training_cost(teacher), training_cost(run.folder)),
    )


def training_cost(run: Path | None) -> TrainingCost | None:
    """Cost of the finished stages of a run."""
    cost = None if run is None else RunFolder(run).cost
    return None if cost is None else TrainingCost(**cost)


def updates_of(run: Path) -> tuple[Update, ...]:
    """Every logged update of a run."""
    return tuple(Update(**line) for line in RunFolder(run).losses)


def machine(device: str) -> str:
    """The machine that measures, in words."""
    return provenance(environment(device), []).machine


def provenance(environment: Environment, argv: Sequence[str]) -> Provenance:
    """The origin of a run, evaluated today: its command, its versions and its machine."""
    threads = environment.get("threads")
    parts = (environment.get("processor"), environment.get("device"))
    words = ", ".join([str(part) for part in parts if part])
    versions = {name: environment.get(name) for name in ("halfstep", "torch", "commit")}
    return Provenance(
        command=shlex.join([*_program(argv), *argv[1:]]),
        **{name: None if value is None else str(value) for name, value in versions.items()},
        machine=f"{words}, {threads} thread{'s' if threads != 1 else ''}",
        date=datetime.now(UTC).date().isoformat(),
    )


def _program(argv: Sequence[str]) -> list[str]:
    """halfstep, or python and the script that called the API."""
    by_halfstep = not argv or Path(argv[0]).name in ("halfstep", "__main__.py")
    return ["halfstep"] if by_halfstep else ["python", Path(argv[0]).name]
