"""List the runs in a folder: method, steps kept, ratio, state, time left; also as a page."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from halfstep import files, storage
from halfstep.config import JsonObject
from halfstep.errors import ConfigError, HalfstepError
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.report_data import Report
from halfstep.evaluation.report_files import FORMAT, MEND, parse_report, REPORT
from halfstep.evaluation.verdicts import worst_ratio
from halfstep.folder_lock import is_held
from halfstep.training.run_folder import RunFolder
from halfstep.training.run_progress import RunProgress

State = Literal["running", "stopped", "finished", "damaged"]
INNER = ("checkpoints", "latents", "prompts", "stages")
"""Folders of a run that hold no other run."""
PAGE = "runs.html"
REFRESH = 10
"""Seconds after which the page is read again while something runs."""
LIMIT = 5_000_000


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A run in a list of runs.

    folder        the run's folder
    name          its folder, seen from the listed one
    method        such as "distill progressive"; "" of a damaged run
    state         running (a process holds its lock), stopped (the same command goes on), finished, or damaged
    done          share of the updates that are done, by cost, in [0, 1]
    steps         steps of the best student: the last that passed the gate, or the finished one of the fewest;
                  None without one
    ratio         its Fréchet distance over the teacher's, from the report, else from the gate
    seconds_left  estimated seconds of training left; None where nothing tells the speed, 0 if finished
    report        its report.html, if there is one
    damage        the error of a damaged run in one sentence
    """

    folder: Path
    name: str
    method: str = ""
    state: State
    done: float = 0.0
    steps: int | None = None
    ratio: Interval | None = None
    seconds_left: float | None = None
    report: Path | None = None
    damage: str = ""


def list_runs(folder: Path | str) -> list[RunRow]:
    """A row for each run in this folder and the folders in it, sorted by name; the folder may be a run.

    A damaged run is a row that says so.  Nothing is written.

    `ConfigError` for a folder that does not exist or holds no run.
    """
    place = Path(folder)
    if not place.is_dir():
        raise ConfigError(f"'{place}' is no folder: give the folder that your runs are in")
    rows = [_row(run, place) for run in sorted(_runs_in(place))]
    if not rows:
        raise ConfigError(
            f"'{place}' holds no runs: give the folder that the --out of a 'halfstep train' or 'halfstep "
            "distill' is in"
        )
    return rows


def write_runs_page(rows: Sequence[RunRow], folder: Path | str) -> Path:
    """Write FOLDER/runs.html, a page that links every report; returns its path.

    The page has no script.  While something runs, the browser reads it again every ten seconds: write it
    again meanwhile.
    """
    from halfstep.report.plots.svg import COLOURS
    from halfstep.report.templates import template, write_page  # which import jinja2
    from halfstep.report.words import numbers

    path = Path(folder) / PAGE
    page = template("runs.html.j2").render(
        place=files.name_of(Path(folder)),
        rows=rows,
        running=sum(row.state == "running" for row in rows),
        refresh=REFRESH,
        dash=numbers.DASH,
        colours=COLOURS,
        guided=None,
        links={row.folder: _link(row.report, path.parent) for row in rows if row.report},
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
    )
    instead = "list fewer runs, of a folder further in"
    return write_page(path, page, limit=LIMIT, name="the page of runs", instead=instead)


def _runs_in(place: Path) -> Iterator[Path]:
    """Folders with a run.json; links are not followed."""
    for folder, names, inside in os.walk(place):
        if "run.json" in inside:
            yield Path(folder)
            names[:] = [name for name in names if name not in INNER]
        names[:] = [name for name in names if not name.startswith(".")]


def _row(folder: Path, place: Path) -> RunRow:
    name = str(folder.relative_to(place)) if folder != place else files.name_of(place)
    try:
        return _read(folder, name)
    except HalfstepError as error:
        return RunRow(folder=folder, name=name, state="damaged", damage=str(error))


def _read(folder: Path, name: str) -> RunRow:
    run = RunFolder.open(folder)
    progress, home, steps = RunProgress.of(run), _report_folder(folder), _steps(run)
    page = home / "report.html"
    state: State = "finished" if progress.finished else "stopped"
    if is_held(folder):
        state = "running"
    return RunRow(
        folder=folder,
        name=name,
        method=run.about["command"],
        state=state,
        done=progress.done,
        steps=steps,
        ratio=_ratio(run, _report(home), steps),
        seconds_left=progress.seconds_left,
        report=page if page.exists() else None,
    )


def _steps(run: RunFolder) -> int | None:
    """Steps of the last student that passed the gate, or of the finished student of the fewest."""
    finished = {stage.name for stage in run.stages}
    planned = [stage for stage in run.about["plan"]["stages"] if stage["name"] in finished]
    if run.gate is not None:
        planned = [stage for stage in planned if stage["name"] == run.gate["best"]]
        if planned and (steps := run.gate.get("best_steps")) is not None:
            return steps
    counts = [stage["steps"] for stage in planned if stage["steps"] is not None]
    return min(counts, default=None)


def _ratio(run: RunFolder, report: Report | None, steps: int | None) -> Interval | None:
    """The ratio of the student of so many steps; of a guided student the largest of all scales."""
    if steps is None:
        return None
    guided = report.guided if report is not None else None
    if guided is not None and (worst := worst_ratio(guided, steps)):
        return worst
    for row in report.students if report is not None else ():
        if row.steps == steps and row.ratio is not None:
            return row.ratio
    for decision in run.gate["decisions"][::-1] if run.gate is not None else ():
        if decision["steps"] == steps:
            return Interval(**decision["ratio"])
    return None


def _report(folder: Path) -> Report | None:
    """The report without its pictures; None for a run that was not evaluated, and for encoders."""
    path = folder / REPORT
    if not path.exists():
        return None
    content = storage.read_json(path, JsonObject, format=FORMAT, mend=MEND)
    report = parse_report(content, f"'{path}'", {})
    return report if isinstance(report, Report) else None


def _report_folder(folder: Path) -> Path:
    """The folder of a run's report: its own, or the demo's, which keeps its run in a folder of its own."""
    is_demo = folder.name == "distill" and (folder.parent / "results.json").exists()
    return folder.parent if is_demo and not (folder / REPORT).exists() else folder


def _link(page: Path, start: Path) -> str:
    """A relative link, percent-encoded."""
    from urllib.parse import quote

    return quote(Path(os.path.relpath(page, start)).as_posix(), errors="surrogateescape")
