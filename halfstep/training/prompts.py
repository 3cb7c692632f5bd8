"""The prompts of a run without data: encoded by the first process, once, into the run's folder."""

from dataclasses import replace
from pathlib import Path

from halfstep.data import NoData
from halfstep.data.prompts import are_encoded, contexts_of, encode_prompts, open_prompts
from halfstep.errors import ConfigError
from halfstep.models.codec import Texts
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress, SILENT
from halfstep.training.checks.data import read_by
from halfstep.training.distributed import Processes
from halfstep.training.run_folder import RunFolder
from halfstep.training.run_repair import PROMPTS, refuse_foreign

FEW = 8
"""Prompts that stand for all in a dry run."""


def walks_for(
    teacher: Pipeline,
    data: NoData,
    out: Path | str,
    processes: Processes,
    *,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> NoData:
    """The walks as the teacher reads them, their prompts encoded.

    out      the run's folder, which keeps the conditions in `prompts`
    dry_run  encode a few in memory, which stand for all
    """
    data, folder = read_by(teacher, data), Path(out) / PROMPTS
    if not data.prompts or data.contexts is not None:
        return data
    if dry_run and not are_encoded(data.prompts, folder):
        encoder = _encoder(teacher)
        with encoder.on(processes.device):
            few = contexts_of(encoder, data.prompts[:FEW])
        encoder.release()
        return read_by(teacher, replace(data, contexts=few))
    processes.run_on_first(lambda: _encode(teacher, data, folder, processes, progress))
    return read_by(teacher, replace(data, contexts=open_prompts(folder)))


def _encode(
    teacher: Pipeline, data: NoData, folder: Path, processes: Processes, progress: Progress
) -> None:
    """Write the conditions that are missing; an encoder is needed for these alone."""
    refuse_foreign(folder.parent)
    run = RunFolder(folder.parent)
    if run.exists and not run.about["command"].startswith("distill"):
        raise ConfigError(f"'{folder.parent}' holds another run: choose another --out")
    if are_encoded(data.prompts, folder):
        return
    encoder = _encoder(teacher)
    with encoder.on(processes.device):
        encode_prompts(encoder, data.prompts, folder, progress=progress)
    encoder.release()


def _encoder(teacher: Pipeline) -> Texts:
    if teacher.texts is None:
        raise ConfigError("the teacher has no encoder for texts: give it as --text FOLDER")
    return teacher.texts
