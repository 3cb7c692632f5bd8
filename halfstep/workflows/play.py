"""A screen to play with a run: the teacher's picture beside the student's, from the same noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from halfstep import files
from halfstep.config.fields import POSITIONAL
from halfstep.config.validate import Place, Validated
from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.cost import calls_of
from halfstep.evaluation.setups import FULL_STEPS, steps_of
from halfstep.hub.bundled import bundled_students, bundled_teacher
from halfstep.identity import digest_of
from halfstep.pictures import enlarged, to_uint8
from halfstep.pipeline import Pipeline
from halfstep.training.distributed import pick_device
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.evaluation_inputs import EvaluationInputs

GUIDANCE = 8.0
"""The largest guidance scale of a teacher that is guided by two calls."""
SHOWN = 384
"""Least width of a picture on the screen; smaller ones are enlarged with square pixels."""


@dataclass(frozen=True, kw_only=True)
class PlayConfig(Validated):
    """Open a page that draws with a run's teacher and students: seed, class, steps, guidance, time."""

    run: Annotated[Place | None, POSITIONAL] = None
    """The run, with at least one finished student. By default the digits that come with halfstep."""
    teacher: Place | None = None
    """The teacher's folder, if it is no longer where the run was told."""
    host: str = "127.0.0.1"
    """Address that the page is served at; 0.0.0.0 serves every computer that reaches this one."""
    port: Annotated[int, Ge(0), Le(65535)] = 7860
    """Port that the page is served at; 0 takes a free one."""
    device: str = "auto"
    """auto, or one by name."""
    net: str | None = None
    """package.module:function, if the network is one of your own."""


@dataclass(frozen=True)
class Drawn:
    """One picture of a network, uint8 [H, W, 1 or 3], with its cost."""

    picture: NDArray[np.uint8]
    steps: int
    calls: int
    seconds: float

    @property
    def label(self) -> str:
        """Steps, network calls and milliseconds in words."""
        steps = f"{self.steps:,} step{'s' * (self.steps != 1)}"
        calls = f"{self.calls:,} network call{'s' * (self.calls != 1)}"
        return f"{steps}, {calls}, {1000 * self.seconds:,.0f} ms"


@dataclass(frozen=True)
class PlayNetworks:
    """The networks of a run to play with.

    students  by their steps, most steps first
    full      steps that the students were compared with
    """

    name: str
    teacher: Pipeline
    students: Mapping[int, Pipeline]
    full: int

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.teacher.class_names

    @property
    def reads_texts(self) -> bool:
        """Whether prompts can be written."""
        return self.teacher.texts is not None

    @property
    def guidance(self) -> tuple[float, float] | None:
        """Lowest and highest guidance scale to choose from; None without a choice."""
        for student in self.students.values():
            if student.guidance_range is not None:
                low, high = student.guidance_range
                return (low, high) if low < high else None
        return (1.0, GUIDANCE) if self.teacher.unconditional is not None else None

    @property
    def only_scale(self) -> float:
        """The guidance scale where there is no choice."""
        ranges = [student.guidance_range for student in self.students.values()]
        return next((scales[0] for scales in ranges if scales is not None), 1.0)


class _RunNetworks(EvaluationInputs):
    """The networks of a run, without the data that an evaluation compares with."""

    verb = "play"

    def __post_init__(self) -> None:
        """Check nothing: no data is read."""

    def _teacher(self, students: Sequence[Pipeline]) -> Pipeline:
        """The teacher of the run; the one of the demo comes with halfstep, and no option names it."""
        if students and self.teacher is None and self._teacher_place is None:
            bundled = bundled_teacher()
            if digest_of(bundled.denoiser)[:16] == self.run.options.get("teacher"):
                return bundled
        return super()._teacher(students)


def load_networks(config: PlayConfig) -> PlayNetworks:
    """Read teacher and students of a run, and call each once, so that the first time on the screen is true.

    `ConfigError` for a run without students or of points, `CheckpointError` for damaged files.
    """
    name, teacher, students, full = _read(config)
    device = pick_device(config.device)
    if len(teacher.shape) != 3 or (teacher.codec is None and teacher.shape[0] not in (1, 3)):
        raise ConfigError(
            f"'{name}' makes samples of shape {list(teacher.shape)}, and the page shows images: write "
            f"halfstep sample {config.run}"
        )
    if any(student.direction == "invert" for student in students):
        raise ConfigError(
            f"the students of '{name}' turn images into noise: write halfstep encode {config.run}"
        )
    by_steps = {steps_of(student): _with_texts(student, teacher).to(device) for student in students}
    loaded = PlayNetworks(name, teacher.to(device), by_steps, full)
    for steps in loaded.students:
        draw(loaded, steps=steps, teacher_steps=None if teacher.times else 1)
    return loaded


def _read(config: PlayConfig) -> tuple[str, Pipeline, Sequence[Pipeline], int]:
    """Name, teacher, students and full steps of the run, or of the bundled digits."""
    if config.run is None:
        if config.teacher is not None or config.net is not None:
            raise ConfigError("--teacher and --net belong to a RUN: write halfstep play RUN")
        return "digits", bundled_teacher(), bundled_students(), FULL_STEPS
    run = RunFolder.open(Path(config.run))
    inputs = _RunNetworks(
        run=run, data=None, teacher=config.teacher, held_out=None, beside=(), net=config.net,
        verify=False,
    )  # fmt: skip
    networks = inputs.networks()
    if not networks.students:
        raise ConfigError(
            f"'{config.run}' has no finished student to play with: distil one, or write halfstep sample "
            f"{config.run}"
        )
    full = inputs.full_steps(networks.teacher)
    return files.name_of(run.folder), networks.teacher, networks.students, full


def _with_texts(student: Pipeline, teacher: Pipeline) -> Pipeline:
    """The student with its teacher's encoder of texts."""
    if teacher.texts is None or student.texts is not None:
        return student
    return student.with_texts(teacher.texts)


def draw(
    networks: PlayNetworks,
    *,
    seed: int = 0,
    label: int | None = None,
    prompt: str = "",
    steps: int | None = None,
    teacher_steps: int | None = None,
    guidance_scale: float | None = None,
) -> tuple[Drawn, Drawn]:
    """Draw the teacher's and a student's picture of the same noise, and take the time of each.

    Args:
        networks: teacher and students.
        seed: of the noise, from 0.
        label: the class; the first by default.
        prompt: the text of a model that reads texts.
        steps: the student's; the fewest by default.
        teacher_steps: the teacher's; those of the comparison by default.
        guidance_scale: of both; the lowest by default.

    Raises:
        ConfigError: no student of so many steps, or inputs that the networks do not take.
    """
    steps = min(networks.students) if steps is None else steps
    if steps not in networks.students:
        counts = ", ".join(map(str, networks.students))
        raise ConfigError(f"no student takes {steps} steps: write one of {counts}")
    if guidance_scale is None:
        guidance_scale = networks.guidance[0] if networks.guidance else networks.only_scale
    condition: dict[str, Any] = {"guidance_scale": float(guidance_scale)}
    if networks.class_names:
        condition["labels"] = [label or 0]
    elif label is not None:
        raise ConfigError("this run has no classes: leave label out")
    if networks.reads_texts:
        condition["prompts"] = [prompt]
    elif prompt:
        raise ConfigError("this run reads no texts: leave prompt out")
    full = networks.full if teacher_steps is None else teacher_steps
    return (
        _drawn(networks.teacher, full, seed, condition),
        _drawn(networks.students[steps], steps, seed, condition),
    )


def _drawn(pipeline: Pipeline, steps: int, seed: int, condition: Mapping[str, Any]) -> Drawn:
    sampler = pipeline.reference_sampler
    begin = perf_counter()
    images = pipeline.sample(1, seed=seed, steps=steps, sampler=sampler, **condition)
    seconds = perf_counter() - begin  # the images are on the CPU, so nothing is pending
    calls = calls_of(pipeline, sampler, steps, condition["guidance_scale"])
    return Drawn(to_uint8(images.clamp(-1, 1))[0], steps, calls, seconds)


def on_screen(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture uint8 [H, W, 1 or 3] as uint8 [H', W', 3] of at least `SHOWN` pixels across, in squares."""
    large = enlarged(picture, -(-SHOWN // picture.shape[1]))
    return np.broadcast_to(large, (*large.shape[:2], 3)).copy()
