"""What `evaluate`, `distill`, `report` and `demo` share: features by name, a run's teacher and students."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error as BadStream

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from halfstep import files, storage
from halfstep.cli.progress import counting
from halfstep.data import Data, Latents
from halfstep.errors import CheckpointError, ConfigError
from halfstep.evaluation.evidence import gather, Rows
from halfstep.evaluation.evidence_on_disk import read_evidence_of
from halfstep.evaluation.guided import GuidedCandidates, GuidedEvidence, table_scales
from halfstep.evaluation.sample_sets import SampleScorer
from halfstep.evaluation.scorer import real_images
from halfstep.evaluation.setups import Candidates, counted, Evaluation
from halfstep.evaluation.statistics import cache_folder
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress, SILENT
from halfstep.report.guided_verdict import guided_verdict
from halfstep.report.page import write_report
from halfstep.report.slider import write_slider
from halfstep.report.verdict import verdict
from halfstep.training.asked import environment
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.options import Source

EVIDENCE, PICTURES = "report.json", "report.npz"


def shown_images(console: Console, data: Data, teacher: Pipeline) -> Data | Tensor:
    """The data that samples are compared with, and a bar while latents are decoded."""
    if not isinstance(data, Latents):
        return data
    with counting(console, "decoding latents") as progress:
        return real_images(data, teacher, progress=progress)


def students_of(run: RunFolder, net: str | None) -> list[Pipeline]:
    """All finished students of a run, the most steps first."""
    return run.students(full=Evaluation.full, net=net)


def source_of(run: RunFolder, data: str | None) -> Source:
    """The data of a run, or others."""
    if data is None and "data" not in run.config:
        raise ConfigError(
            f"'{run.folder}' does not say what it was trained on (it has no config.toml): write "
            f"halfstep evaluate {run.folder} --data DATA"
        )
    known = {key: run.config[key] for key in ("size", "channels") if key in run.config}
    return Source(data=data or run.config["data"], **known)


def made_of(run: RunFolder) -> dict[str, Any]:
    """Who made a run."""
    return made_by(run.about["environment"], run.about["argv"])


def written(
    folder: Path,
    subject: Candidates,
    judge: SampleScorer,
    asked: Evaluation,
    *,
    made: Mapping[str, Any],
    run: Mapping[str, Any],
    metrics: Path,
    of_teacher: Rows | None = None,
    guided: bool = True,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure, and write FOLDER/report.json, report.npz, report.html and, of a guided run, slider.html.

    made, run  the report's parts of these names
    metrics    the folder of the run whose losses are drawn
    of_teacher the teacher's rows, where they were measured before
    guided     students that take a guidance scale are also held against the guided teacher
    """
    found, pictures = gather(
        subject, judge, asked, of_teacher=of_teacher, progress=progress,
        guided=guided_of(subject, judge, asked) if guided else None,
    )  # fmt: skip
    found |= {"made": dict(made), "run": dict(run), "training": RunFolder(metrics).losses}
    here = environment(str(subject.teacher.device))
    found["measure"]["machine"] = made_by(here, [])["machine"]  # seconds are of this one
    found["verdict"] = guided_verdict(found["guided"]) if "guided" in found else verdict(found)
    save_evidence(folder, found, pictures)
    return found


def save_evidence(
    folder: Path, found: Mapping[str, Any], pictures: Mapping[str, NDArray[Any]]
) -> None:
    """FOLDER/report.json, report.npz and report.html."""
    storage.write_json(folder / EVIDENCE, found)
    with files.replacing(folder / PICTURES) as (part,), part.open("wb") as file:
        np.savez_compressed(file, **pictures)  # type: ignore[arg-type]
    write_slider(folder, found, pictures)
    write_report(folder, found, pictures)


def guided_of(subject: Candidates, judge: SampleScorer, asked: Evaluation) -> GuidedEvidence | None:
    """What the guided table and the slider show of students that take their guidance scale as an input."""
    students = {len(one.times[0]) - 1: one for one in subject.students if one.guidance is not None}
    if not students:
        return None
    chosen = [students[count] for count in counted(students, asked)]
    guided = GuidedCandidates(
        subject.teacher, chosen, asked.full, asked.full_sampler, cache_folder()
    )
    scales = table_scales(chosen[0].guidance or (1.0, 1.0), asked.guidance)
    return GuidedEvidence(guided, judge, scales, asked.shown)


def read_evidence(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What `written` wrote."""
    if not (folder / EVIDENCE).exists():
        raise ConfigError(
            f"'{folder}' was not evaluated yet (it has no {EVIDENCE}): write halfstep evaluate {folder}"
        )
    found: dict[str, Any] = {**read_evidence_of(folder / EVIDENCE)}
    path = folder / PICTURES
    if not path.exists():
        return found, {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return found, dict(arrays)
    except (OSError, ValueError, EOFError, BadZipFile, BadStream) as error:
        raise CheckpointError(
            f"'{path}' is damaged ({error}): write halfstep evaluate {folder} again"
        ) from None


def made_by(environment: Mapping[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    """Who made a run: the command as typed, versions, commit and machine."""
    threads = environment.get("threads")
    parts = (environment.get("processor"), environment.get("device"))
    machine = ", ".join([str(part) for part in parts if part])
    return {
        "command": shlex.join([*_program(argv), *argv[1:]]),
        **{key: environment.get(key) for key in ("halfstep", "torch", "commit")},
        "machine": f"{machine}, {threads} thread{'s' if threads != 1 else ''}",
    }


def _program(argv: Sequence[str]) -> list[str]:
    """halfstep, or python and the script that called the API."""
    own = not argv or Path(argv[0]).name in ("halfstep", "__main__.py")
    return ["halfstep"] if own else ["python", Path(argv[0]).name]
