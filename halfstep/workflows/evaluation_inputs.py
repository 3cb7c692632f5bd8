"""Read the networks and the data that a run is evaluated with."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, get_args, Literal

import torch

from halfstep import files
from halfstep.data import Data, Dataset, held_out_split, Latents, load
from halfstep.data.latents.dataset import is_latents, open_latents
from halfstep.data.no_data import NO_DATA
from halfstep.errors import ConfigError, unknown
from halfstep.evaluation.compressed import read_variants, Variant
from halfstep.evaluation.setups import chosen_counts, Evaluation, FULL_STEPS, OtherSize, steps_of
from halfstep.identity import digest_of
from halfstep.methods.diffusion.shrink import SHRUNK
from halfstep.methods.stages import student_name
from halfstep.models.classifiers.registry import refuse_other_classes
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress
from halfstep.training.run_folder import RunFolder
from halfstep.training.run_repair import LATENTS
from halfstep.workflows.locate import DiffusersOptions, is_diffusers, locate_pipeline, Official

Against = Literal["data", "held-out"]
"""The real images that samples are compared with: the run's own, or those held out."""
FEW = (16, 8, 4)
"""Steps at which two teachers are compared where the run has no students."""


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs:
    """The run to evaluate, and the places of its networks and data.

    The fields are the arguments of `halfstep.evaluate`.
    """

    run: RunFolder
    data: Data | str | None
    teacher: Path | str | None
    diffusers: DiffusersOptions = field(default_factory=DiffusersOptions)
    held_out: str | None
    against: Against = "data"
    beside: Sequence[Path | str]
    net: str | None
    verify: bool
    verb: ClassVar[str] = "evaluate"
    """The command that an error names."""

    def __post_init__(self) -> None:
        if self.data is None and "data" not in self.run.config:
            raise ConfigError(
                f"'{self.run.folder}' does not say what it was trained on (it has no config.toml): write "
                f"halfstep evaluate {self.run.folder} --data DATA"
            )
        if self.data is None and self.run.config["data"] in NO_DATA:
            raise ConfigError(
                f"'{self.run.folder}' was distilled without data, and a report compares with data: write "
                f"halfstep evaluate {self.run.folder} --data DATA, with those that the teacher learnt"
            )
        if self.against not in (choices := get_args(Against)):
            raise unknown("choice of real images", str(self.against), choices)
        if self.against == "held-out" and self.held_out is None:
            raise ConfigError(
                "distances to held-out images need them: write --held-out DATA, data that no network was "
                "trained on"
            )

    @property
    def teacher_folder(self) -> Path | None:
        """The teacher's folder: the one given, or the one in the run's options."""
        place = self._teacher_place
        return Path(place) if place is not None and Path(place).is_dir() else None

    @property
    def _teacher_place(self) -> str | None:
        """The teacher's folder, file or name, as it is given or as the run has it."""
        place = self.run.config.get("teacher") if self.teacher is None else str(self.teacher)
        return place

    def _located_teacher(self, place: str) -> Pipeline:
        """The teacher at this place, read as the run read it."""
        if not is_diffusers(place):
            return locate_pipeline(place, net=self.net)
        recorded = DiffusersOptions.from_config(self.run.config)
        given = {k: v for k, v in vars(self.diffusers).items() if v is not None}
        return locate_pipeline(
            place, diffusers=replace(recorded, **given), size=self._image_shape[0]
        )

    def networks(self) -> "Networks":
        """The networks of the run."""
        students = self.run.students(full=FULL_STEPS, net=self.net)
        first_teacher = self.run.first_student(net=self.net) if students else None
        variants = read_variants(self.run.folder, net=self.net)
        return Networks(self._teacher(students), students, first_teacher, variants)

    def _teacher(self, students: Sequence[Pipeline]) -> Pipeline:
        """The teacher that the run was made from; a run without students is one itself."""
        if self.teacher is None and not students:
            return locate_pipeline(self.run.folder, net=self.net)
        official = Official.from_config(self.run.config)
        if self.teacher is None and official.model is not None:
            teacher = official.load()
            place = official.model
            teacher = replace(teacher, codec=teacher.codec or students[0].codec)
        else:
            found = self._teacher_place
            if found is None or not (is_diffusers(found) or Path(found).exists()):
                raise ConfigError(
                    f"the teacher of '{self.run.folder}' is not "
                    f"{f'at {found}' if found else 'named in it'}: write "
                    f"halfstep {self.verb} {self.run.folder} --teacher FOLDER"
                )
            teacher, place = self._located_teacher(found), found
        if students and digest_of(teacher.denoiser)[:16] != self.run.options.get("teacher"):
            raise ConfigError(
                f"'{place}' is not the teacher that '{self.run.folder}' was made from, its weights differ: "
                f"write halfstep {self.verb} {self.run.folder} --teacher FOLDER with the one that was"
            )
        return teacher

    def full_steps(self, teacher: Pipeline) -> int:
        """Steps of the teacher that the gate compared with, so that gate and report mean the same.

        Without a gate 64, or the steps that the halving began with; a teacher's own, where it is a student.
        """
        if teacher.times:
            return max(teacher.step_counts)
        first = max(FULL_STEPS, len(self.run.teacher_times) - 1)
        return int(self.run.gate["about"].get("full", first)) if self.run.gate else first

    def real(self, progress: Progress) -> Data:
        """The real data: the data given, or the run's."""
        kept = self.run.folder / LATENTS  # of images, for a teacher of latents
        if self.data is None and is_latents(kept):
            return open_latents(kept, verify=self.verify or None, progress=progress)
        spec = self.run.config["data"] if self.data is None else self.data
        if not isinstance(spec, str):
            return spec
        size, channels = self._image_shape
        return load(
            spec, size=size, channels=channels, skip_bad=self._skip_bad,
            verify=self.verify, progress=progress,
        )  # fmt: skip

    @property
    def _skip_bad(self) -> bool:
        """Whether the run left out images that cannot be decoded."""
        return bool(self.run.config.get("skip_bad"))

    @property
    def _image_shape(self) -> tuple[int | None, int | None]:
        """The size and the channels that the run's images were read in."""
        return self.run.config.get("size"), self.run.config.get("channels")

    def unseen(self, data: Data, teacher: Pipeline, *, encode: bool = False) -> Data | None:
        """Data that were held out: images of the size that the codec decodes to, or latents.

        Of Fashion-MNIST and CIFAR-10 the test images.

        `ConfigError` for latents of another shape than the teacher's, and for other classes than its own
        where samples are compared with them, or they are encoded.
        """
        if self.held_out is None:
            return None
        held_out = self._read_held_out(self.held_out, data, teacher)
        compared = self.against == "held-out" or encode
        if compared and held_out.names and teacher.class_names:
            refuse_other_classes(
                held_out.names, teacher.class_names, "the held-out data", "the teacher"
            )
        return held_out

    def _read_held_out(self, held_out: str, data: Data, teacher: Pipeline) -> Dataset | Latents:
        """The data of this name or place."""
        if is_latents(Path(held_out).expanduser()):
            latents = load(held_out, verify=self.verify)
            if tuple(latents.shape) != tuple(teacher.shape):
                raise ConfigError(
                    f"the held-out latents have shape {list(latents.shape)} and the run's "
                    f"{list(teacher.shape)}: give latents of that shape, or images"
                )
            return latents
        size, channels = self._image_shape
        if isinstance(data, Latents) and teacher.codec is not None:
            size = data.shape[-1] * teacher.codec.factor
        split = held_out_split(held_out)
        return load(held_out, size=size, channels=channels, split=split, skip_bad=self._skip_bad)

    def others(self, networks: "Networks", config: Evaluation) -> list[OtherSize]:
        """Networks of other sizes in the table: of a shrunk run, and of the runs beside it."""
        others, shrunk = list[OtherSize](), self.run.stage(SHRUNK, net=self.net)
        if shrunk is not None:
            stages = {folder.name for folder in self.run.stages}
            halved = [k for k in map(steps_of, networks.students) if student_name(k) in stages]
            for steps in [config.full_steps, *chosen_counts(halved, config)] if halved else FEW:
                others.append((SHRUNK, shrunk, steps))
            if not halved:
                others += [("teacher, ddim", networks.teacher, steps) for steps in FEW]
        for folder in self.beside:
            others += self._students_of(Path(folder), config)
        return others

    def _students_of(self, folder: Path, config: Evaluation) -> Iterator[OtherSize]:
        """The students of another run; `ConfigError` unless they have the same teacher."""
        other = RunFolder.open(folder)
        if other.options.get("teacher") != self.run.options.get("teacher"):
            raise ConfigError(
                f"'{folder}' was made from another teacher than '{self.run.folder}', and only students of "
                "one teacher share a table: leave it out"
            )
        name = folder.name or files.name_of(folder)
        for student in other.students(full=FULL_STEPS, net=self.net):
            steps = steps_of(student)
            if not config.counts or steps in config.counts:
                yield name, student, steps


@dataclass(frozen=True)
class Networks:
    """The networks of a run.

    students       most steps first
    first_teacher  the network that the first student was made from, where that is not the teacher
    variants       students made smaller after training
    """

    teacher: Pipeline
    students: list[Pipeline]
    first_teacher: Pipeline | None
    variants: list[Variant]

    @property
    def encode(self) -> bool:
        """Whether the students encode images, and draw no samples."""
        return bool(self.students) and self.students[0].direction == "invert"

    @property
    def pipelines(self) -> list[Pipeline]:
        """All of them."""
        first_teacher = [self.first_teacher] if self.first_teacher else []
        variants = [one.pipeline for one in self.variants]
        return [self.teacher, *self.students, *first_teacher, *variants]

    def digests(self) -> list[str]:
        """The digests of their weights, which all processes must have in common."""
        return [digest_of(pipeline.denoiser)[:16] for pipeline in self.pipelines]

    def to(self, device: torch.device) -> None:
        """Move all of them to a device."""
        for pipeline in self.pipelines:
            pipeline.to(device)


def parts_of(pipelines: Iterable[Pipeline]) -> list[object]:
    """The networks of pipelines, which the processes share, so that none is sent to another."""
    parts = [part for p in pipelines for part in (p.denoiser, p.codec, p.texts)]
    return [part for part in parts if part is not None]
