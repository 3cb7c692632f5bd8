"""Evaluate the students of a run: against their teacher, its samplers, and the data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from halfstep import files
from halfstep.data import Data, Latents, load
from halfstep.data.latents.dataset import is_latents
from halfstep.errors import ConfigError
from halfstep.evaluation.compressed import read_variants, Variant
from halfstep.evaluation.guided_comparison import scales_of
from halfstep.evaluation.report_data import AnyReport
from halfstep.evaluation.scorer import captions_of, features_for, real_images, scorer_for
from halfstep.evaluation.setups import (
    Candidates,
    counted,
    Evaluation,
    FULL_STEPS,
    steps_of,
    walkable,
)
from halfstep.identity import digest_of
from halfstep.methods.base import student_name
from halfstep.methods.diffusion.shrink import SHRUNK
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress, SILENT
from halfstep.rng import fork_rng
from halfstep.training.checks.data import read_by
from halfstep.training.distributed import pick_device
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.evaluate_encoders import evaluate_encoders
from halfstep.workflows.locate import locate_pipeline, Official
from halfstep.workflows.report import provenance_of, report_on, save, summary_of, updates_of

DEFAULT = Evaluation()
FEW = (16, 8, 4)
"""Steps at which two teachers are compared where the run has no students."""
Other = tuple[str, Pipeline, int]
"""Name, pipeline and steps of a network of another size."""


@fork_rng()
def evaluate(
    run: Path | str,
    config: Evaluation = DEFAULT,
    *,
    data: Data | str | None = None,
    teacher: Path | str | None = None,
    features: str = "auto",
    held_out: str | None = None,
    beside: Sequence[Path | str] = (),
    net: str | None = None,
    verify: bool = False,
    device: str = "auto",
    progress: Progress = SILENT,
) -> AnyReport:
    """Evaluate the students of a run, and write its report into the run's folder.

    run       the run's folder: report.json, report.npz, report.html and, of a guided run, slider.html are
              written into it
    config    measurements, and how many samples they take
    data      the real data, if not the run's: data, or words as `load_data` takes them
    teacher   the teacher's folder, if it was moved
    features  auto, digits, efficientnet-lite0, squeezenet, classifier:FOLDER, inception:FILE or
              package.module:function
    held_out  data that no network was trained on, to measure memorisation
    beside    runs of the same teacher, for a table of sizes
    net       package.module:function that builds a network of your own
    verify    of latents: compare the checksums of all files first

    `ConfigError` and `DataError` for runs, data and options that cannot be evaluated, before anything is
    sampled.
    """
    folder = RunFolder.open(Path(run))
    files.check_writable(folder.folder, "copy the run to where the report can lie in it")
    source = _run_data(folder, data)
    networks = _networks(folder, teacher, net)
    config = replace(config, full=config.full or _full_steps(folder, networks.teacher))
    encoders = bool(networks.students) and networks.students[0].direction == "invert"
    if not encoders:
        walkable(networks.teacher, config.full_sampler, config.full_steps)
    real = source.load(verify=verify, progress=progress)
    networks.to(pick_device(device))
    other = source.held_out(held_out, real, networks.teacher, verify=verify)
    if encoders:
        report: AnyReport = evaluate_encoders(
            folder, networks.teacher, networks.students, real, config,
            held_out=other, progress=progress,
        )  # fmt: skip
    else:
        others = _others(folder, networks, config, beside, net)
        report = _evaluate_samples(
            folder, networks, others, real, config, features, other, teacher, progress
        )
    save(report, folder.folder)
    return report


@dataclass(frozen=True)
class Networks:
    """The networks of a run.

    students  most steps first
    begun     the network that the first student was made from, where that is not the teacher
    variants  students made smaller after training
    """

    teacher: Pipeline
    students: list[Pipeline]
    first_teacher: Pipeline | None
    variants: list[Variant]

    def to(self, device: torch.device) -> None:
        """Move all of them to a device."""
        first_teacher = [self.first_teacher] if self.first_teacher else []
        variants = [one.pipeline for one in self.variants]
        for pipeline in (self.teacher, *self.students, *first_teacher, *variants):
            pipeline.to(device)


def _evaluate_samples(
    run: RunFolder,
    networks: Networks,
    others: Sequence[Other],
    data: Data,
    config: Evaluation,
    features: str,
    held_out: Data | None,
    teacher_folder: Path | str | None,
    progress: Progress,
) -> AnyReport:
    """The report of students that sample."""
    teacher, students = networks.teacher, networks.students
    config = replace(config, guidance_scales=scales_of(config, teacher, students))
    if isinstance(data, Latents):
        data = read_by(teacher, data)
    network = features_for(features, data)
    real = real_images(data, teacher, progress=progress)
    unseen = None if held_out is None else _held_out(held_out, real, teacher, progress)
    candidates = Candidates(
        teacher, students, data, run.teacher_times, unseen, networks.first_teacher,
        others, networks.variants,
    )  # fmt: skip
    for _, pipeline, _ in others:
        pipeline.to(teacher.device)
    progress.note(f"{run.folder}: {len(students)} student{'s' * (len(students) != 1)}")
    progress.note(f"features {network.name} ({network.preprocessing})")
    for sentence in candidates.left_out(config):
        progress.note(sentence)
    scorer = scorer_for(network, real, config, captions=captions_of(data, teacher))
    return report_on(
        candidates, scorer, config, provenance=provenance_of(run),
        run=summary_of(run, teacher=_teacher_folder(run, teacher_folder)),
        training=updates_of(run.folder), progress=progress,
    )  # fmt: skip


@dataclass(frozen=True)
class RunData:
    """The real data of a run, and the size and channels that its images were read in."""

    data: Data | str
    size: int | None
    channels: int | None

    def load(self, *, verify: bool, progress: Progress) -> Data:
        """The data."""
        if not isinstance(self.data, str):
            return self.data
        return load(
            self.data, size=self.size, channels=self.channels, verify=verify, progress=progress
        )

    def held_out(
        self, spec: str | None, data: Data, teacher: Pipeline, *, verify: bool
    ) -> Data | None:
        """Data that was held out: images of the size that the codec decodes to, or latents.

        `ConfigError` for latents of another shape than the teacher's.
        """
        if spec is None:
            return None
        if is_latents(Path(spec).expanduser()):
            latents = load(spec, verify=verify)
            if tuple(latents.shape) != tuple(teacher.shape):
                raise ConfigError(
                    f"the held-out latents have shape {list(latents.shape)} and the run's "
                    f"{list(teacher.shape)}: give latents of that shape, or images"
                )
            return latents
        size = self.size
        if isinstance(data, Latents) and teacher.codec is not None:
            size = data.shape[-1] * teacher.codec.factor
        return load(spec, size=size, channels=self.channels)


def _run_data(run: RunFolder, data: Data | str | None) -> RunData:
    """The data of a run, or the data given instead."""
    if data is None and "data" not in run.config:
        raise ConfigError(
            f"'{run.folder}' does not say what it was trained on (it has no config.toml): write "
            f"halfstep evaluate {run.folder} --data DATA"
        )
    size, channels = run.config.get("size"), run.config.get("channels")
    return RunData(run.config["data"] if data is None else data, size, channels)


def _held_out(data: Data, real: Data | Tensor, teacher: Pipeline, progress: Progress) -> Tensor:
    """Images that were held out, latents decoded; refused unless they have the shape of the run's own."""
    images = real_images(data, teacher, progress=progress)
    shape = real.shape[1:] if isinstance(real, Tensor) else real.shape
    held = images.shape[1:] if isinstance(images, Tensor) else images.shape
    if tuple(held) != tuple(shape):
        raise ConfigError(
            f"the held-out data has samples of shape {list(held)} and the run's data {list(shape)}: give "
            "data of that shape as --held-out"
        )
    return images if isinstance(images, Tensor) else images.batch(torch.arange(len(images))).x0


def _networks(run: RunFolder, teacher: Path | str | None, net: str | None) -> Networks:
    students = run.students(full=FULL_STEPS, net=net)
    first_teacher = run.first_student(net=net) if students else None
    loaded = _teacher(run, teacher, students, net)
    return Networks(loaded, students, first_teacher, read_variants(run.folder, net=net))


def _teacher(
    run: RunFolder, folder: Path | str | None, students: list[Pipeline], net: str | None
) -> Pipeline:
    """The teacher that the run was made from; a run without students is one itself."""
    if folder is None and not students:
        return locate_pipeline(run.folder, net=net)
    official = Official.from_config(run.config)
    if folder is None and official.model is not None:
        teacher = official.load()
        teacher = replace(teacher, codec=teacher.codec or students[0].codec)
        return _checked(teacher, official.model, run, students)
    place = _teacher_folder(run, folder)
    if place is None or not place.exists():
        raise ConfigError(
            f"the teacher of '{run.folder}' is not {f'at {place}' if place else 'named in it'}: write "
            f"halfstep evaluate {run.folder} --teacher FOLDER"
        )
    return _checked(locate_pipeline(place, net=net), str(place), run, students)


def _teacher_folder(run: RunFolder, folder: Path | str | None) -> Path | None:
    """The folder given, or the one that the run names."""
    place = run.config.get("teacher") if folder is None else folder
    return None if place is None else Path(place)


def _checked(
    teacher: Pipeline, place: str, run: RunFolder, students: Sequence[Pipeline]
) -> Pipeline:
    """The teacher; refused if its weights are others than those of the run's."""
    if students and digest_of(teacher.denoiser)[:16] != run.options.get("teacher"):
        raise ConfigError(
            f"'{place}' is not the teacher that '{run.folder}' was made from, its weights differ: write "
            f"halfstep evaluate {run.folder} --teacher FOLDER with the one that was"
        )
    return teacher


def _full_steps(run: RunFolder, teacher: Pipeline) -> int:
    """Steps of the teacher that the gate compared with, so that gate and report mean the same.

    Without a gate 64, or the steps that the halving began with; a teacher's own, where it is a student.
    """
    if teacher.times:
        return max(len(times) - 1 for times in teacher.times)
    first_teacher = max(FULL_STEPS, len(run.teacher_times) - 1)
    return int(run.gate["about"].get("full", first_teacher)) if run.gate else first_teacher


def _others(
    run: RunFolder,
    networks: Networks,
    config: Evaluation,
    beside: Sequence[Path | str],
    net: str | None,
) -> list[Other]:
    """The networks of other sizes that belong in the table: of a shrunk run, and of the runs beside it."""
    others, shrunk = list[Other](), run.stage(SHRUNK, net=net)
    if shrunk is not None:
        stages = {folder.name for folder in run.stages}
        halved = [k for k in map(steps_of, networks.students) if student_name(k) in stages]
        for steps in [config.full_steps, *counted(halved, config)] if halved else FEW:
            others.append((SHRUNK, shrunk, steps))
        if not halved:
            others += [("teacher, ddim", networks.teacher, steps) for steps in FEW]
    for folder in beside:
        others += _students_of(Path(folder), run, config, net)
    return others


def _students_of(
    folder: Path, run: RunFolder, config: Evaluation, net: str | None
) -> Iterator[Other]:
    """The students of another run, refused unless they have the same teacher."""
    other = RunFolder.open(folder)
    if other.options.get("teacher") != run.options.get("teacher"):
        raise ConfigError(
            f"'{folder}' was made from another teacher than '{run.folder}', and only students of one can "
            "be seen beside each other: compare what was measured of both with --compare"
        )
    name = folder.name or files.name_of(folder)
    for student in other.students(full=FULL_STEPS, net=net):
        steps = steps_of(student)
        if not config.counts or steps in config.counts:
            yield name, student, steps
