"""`halfstep evaluate`: a run's students against their teacher, its samplers, and the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.console import Console
from torch import Tensor

from halfstep import files
from halfstep.cli.compressed import print_compressed
from halfstep.cli.judging import (
    made_of,
    shown_images,
    source_of,
    students_of,
    written,
)
from halfstep.cli.options import Flat, parse
from halfstep.cli.progress import counting, loading, say, terminal
from halfstep.cli.reconstructing import (
    encoders_judged,
)
from halfstep.cli.runs import describe_data
from halfstep.cli.sizes import others_of, print_sizes
from halfstep.cli.tables import compare, print_guided, print_rows
from halfstep.config.fields import POSITIONAL
from halfstep.data import Data, Latents, load
from halfstep.data.latents import is_latents
from halfstep.errors import ConfigError
from halfstep.evaluation.compressed import read_variants
from halfstep.evaluation.guided import refuse_unguided, table_scales
from halfstep.evaluation.scorer import captions_of, features_for, scorer_for
from halfstep.evaluation.setups import Candidates, Evaluation, walkable
from halfstep.identity import digest_of
from halfstep.noise import untouched
from halfstep.pipeline import Pipeline
from halfstep.training.metrics_log import RunCost
from halfstep.training.parallel import pick_device
from halfstep.training.reading import read_by
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.locate import locate_pipeline, Official
from halfstep.workflows.options import Source


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Judge a run's students: quality, fidelity, drift, cost, each with an interval, and a page of it."""

    run: Annotated[tuple[Path, ...], POSITIONAL] = ()
    """The run's folder."""
    beside: tuple[Path, ...] = ()
    """Runs of the same teacher, such as its students of full size: in the table of sizes beside this
    run's."""
    compare: tuple[Path, ...] = ()
    """Two runs that were evaluated, or more: set side by side."""
    teacher: Path | None = None
    """Its teacher; the run knows, unless that was moved."""
    net: str | None = None
    """package.module:function, if the network is one of your own."""
    features: str = "auto"
    """auto, digits, efficientnet-lite0, squeezenet, classifier:FOLDER, inception:FILE or
    package.module:function."""
    data: str | None = None
    """The data, if not those of the run."""
    verify: bool = False
    """Of latents: compare the checksums of all files first, not of those alone that were written since."""
    held_out: str | None = None
    """Data that nobody was trained on: judges memorisation."""
    device: str = "auto"
    """auto, or one by name."""
    evaluation: Annotated[Evaluation, Flat] = field(default_factory=lambda: Evaluation(full=0))


def evaluate(argv: Sequence[str]) -> int:
    """Measure and write report.json, report.npz and report.html; or compare what was measured."""
    console = terminal()
    options = parse(Evaluate, argv, prog="halfstep evaluate")
    if options.compare:
        return compare(console, [*options.run, *options.compare])
    if len(options.run) != 1:
        raise ConfigError(
            f"evaluate takes one run, got {len(options.run)}: write halfstep evaluate RUN, or "
            "--compare RUN_A RUN_B"
        )
    found = evaluated(console, options)
    print_rows(console, found)
    print_sizes(console, found)
    print_compressed(console, found)
    if "guided" in found:
        print_guided(console, found["guided"])
    say(console, "verdict", found["verdict"])
    say(console, "report", options.run[0] / "report.html")
    return 0


@untouched()
def evaluated(console: Console, options: Evaluate) -> dict[str, Any]:
    """Measure the run, and write what was found into its folder."""
    kept = RunFolder.open(options.run[0])
    files.check_writable(kept.folder, "copy the run to where the report can lie in it")
    source = replace(source_of(kept, options.data), verify=options.verify)
    students = students_of(kept, options.net)
    teacher = _teacher(kept, options, students)
    if not (students and students[0].made_for == "encode"):
        walkable(
            teacher,
            options.evaluation.full_sampler,
            options.evaluation.full or _full(kept, teacher),
        )
    data = loading(console, source)
    device = pick_device(options.device)
    variants = read_variants(kept.folder, net=options.net)
    for pipeline in (teacher, *students, *(one.pipeline for one in variants)):
        pipeline.to(device)
    if students and students[0].made_for == "encode":
        full = options.evaluation.full or _full(kept, teacher)
        return encoders_judged(
            console, kept, teacher, students, data, replace(options.evaluation, full=full),
            held_out=_other(options.held_out, source, data, teacher),
        )  # fmt: skip
    asked = replace(options.evaluation, full=options.evaluation.full or _full(kept, teacher))
    asked = replace(asked, guidance=scales_of(asked, teacher, students))
    if isinstance(data, Latents):
        data = read_by(teacher, data)
    features = features_for(options.features, data)
    other = _other(options.held_out, source, data, teacher)
    real = shown_images(console, data, teacher)
    held_out = None if other is None else _held_out(console, other, real, teacher)
    times = kept.teacher_times
    begun = kept.first_student(net=options.net) if students else None
    beside = others_of(kept, teacher, students, asked, options.beside, options.net)
    for _, pipeline, _ in beside:
        pipeline.to(device)
    subject = Candidates(
        teacher, students, data, times, held_out, begun and begun.to(device), beside, variants
    )
    left_out = subject.left_out(asked)
    say(console, "run", f"{kept.folder}: {len(students)} student{'s' * (len(students) != 1)}")
    say(console, "data", describe_data(source, data))
    say(console, "features", f"{features.name} ({features.preprocessing})")
    for sentence in left_out:
        say(console, "left out", sentence)
    captions = captions_of(data, teacher)
    judge = scorer_for(features, real, asked, captions=captions)
    with counting(console, f"{asked.samples:,} samples a row") as progress:
        return written(
            kept.folder,
            subject,
            judge,
            asked,
            made=made_of(kept),
            run={
                "folder": files.name_of(kept.folder),
                "config": dict(kept.config),
                "gate": kept.gate,
                "cost": {
                    "teacher": _teachers_cost(kept, options),
                    "halvings": kept.cost,
                },
            },
            metrics=kept.folder,
            progress=progress,
        )


def scales_of(
    asked: Evaluation, teacher: Pipeline, students: Sequence[Pipeline]
) -> tuple[float, ...]:
    """The guidance scales to judge at; those that cannot be are refused."""
    own = [one.guidance for one in students if one.guidance is not None]
    if own:
        return table_scales(own[0], asked.guidance)
    if len(asked.guidance) > 1:
        raise ConfigError(
            f"these students take no guidance scale as an input, so they are judged at one, asked for "
            f"{len(asked.guidance)}: write --guidance {asked.guidance[0]:g}"
        )
    if teacher.guidance is not None:  # judged alone
        return asked.guidance or table_scales(teacher.guidance)[:1]
    if set(asked.guidance) - {1.0}:
        refuse_unguided(teacher)
    return asked.guidance


def _full(kept: RunFolder, teacher: Pipeline) -> int:
    """Steps of the teacher that its gate compared with, so that gate and report mean the same.

    Without a gate 64, or the steps that the halving began with; a teacher's own, where it is a student.
    """
    if own := [len(times) - 1 for times in teacher.times]:
        return max(own)
    gate: Mapping[str, Any] = kept.gate or {}
    begun = max(Evaluation.full, len(kept.teacher_times) - 1)
    return int(gate.get("about", {}).get("full", begun))


def _other(spec: str | None, source: Source, data: Data, teacher: Pipeline) -> Data | None:
    """The data that was held out; images of the size that the codec decodes to, latents of the same
    shape."""
    if spec is None:
        return None
    if is_latents(Path(spec).expanduser()):
        other = load(spec, verify=source.verify)
        if tuple(other.shape) != tuple(teacher.shape):
            raise ConfigError(
                f"the held-out latents have shape {list(other.shape)} and the run's "
                f"{list(teacher.shape)}: give latents of that shape, or images"
            )
        return other
    size = source.size
    if isinstance(data, Latents) and teacher.codec is not None:
        size = data.shape[-1] * teacher.codec.factor
    return load(spec, size=size, channels=source.channels)


def _held_out(console: Console, other: Data, real: Data | Tensor, teacher: Pipeline) -> Tensor:
    """Its images, latents decoded; refused unless they have the shape of the run's own."""
    found = shown_images(console, other, teacher)
    shape = real.shape[1:] if isinstance(real, Tensor) else real.shape
    own = found.shape[1:] if isinstance(found, Tensor) else found.shape
    if tuple(own) != tuple(shape):
        raise ConfigError(
            f"the held-out data has samples of shape {list(own)} and the run's data {list(shape)}: give "
            "data of that shape as --held-out"
        )
    return found if isinstance(found, Tensor) else found.batch(torch.arange(len(found))).x0


def _teacher(kept: RunFolder, options: Evaluate, students: list[Pipeline]) -> Pipeline:
    """The teacher that the run was made from; a run without students is one itself."""
    if options.teacher is None and not students:
        return locate_pipeline(kept.folder, net=options.net)
    official = Official.from_config(kept.config)
    if options.teacher is None and official.model is not None:
        found = official.load()
        found = replace(found, codec=found.codec or students[0].codec)
        return _checked(found, official.model, kept, students)
    place = options.teacher or (Path(kept.config["teacher"]) if "teacher" in kept.config else None)
    if place is None or not place.exists():
        raise ConfigError(
            f"the teacher of '{kept.folder}' is not {f'at {place}' if place else 'named in it'}: write "
            f"halfstep evaluate {kept.folder} --teacher FOLDER"
        )
    return _checked(locate_pipeline(place, net=options.net), str(place), kept, students)


def _checked(found: Pipeline, place: str, kept: RunFolder, students: list[Pipeline]) -> Pipeline:
    """The teacher that was found; refused if its weights are others than those of the run's."""
    if students and digest_of(found.denoiser)[:16] != kept.options.get("teacher"):
        raise ConfigError(
            f"'{place}' is not the teacher that '{kept.folder}' was made from, its weights differ: write "
            f"halfstep evaluate {kept.folder} --teacher FOLDER with the one that was"
        )
    return found


def _teachers_cost(kept: RunFolder, options: Evaluate) -> RunCost | None:
    place = options.teacher or (Path(kept.config["teacher"]) if "teacher" in kept.config else None)
    return RunFolder(place).cost if place is not None else None
