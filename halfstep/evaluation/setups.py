"""What is evaluated: the options, the teacher with its students, and how each row is sampled."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor

from halfstep.config.validate import Count, NotNegative, Seed, Validated
from halfstep.data import Data
from halfstep.diffusion.samplers import calls, PREFIX, SAMPLER_PRESETS, STEPS
from halfstep.diffusion.time_grids import Steps, Times
from halfstep.errors import ConfigError, unknown
from halfstep.evaluation.compressed import Variant
from halfstep.evaluation.metrics.cost import calls_of, SamplingSetup
from halfstep.evaluation.report_data import Sampled
from halfstep.pipeline import Pipeline
from halfstep.pipeline.samplers import check_sampling

MOST = 10_000_000
"""Samples per score: two hundred times as many as papers take."""
SampleCount = Annotated[int, Ge(8), Le(MOST)]
METRICS = ("frechet", "kernel", "inception", "precision-recall")
FULL_STEPS = 64
"""Steps of a teacher that is compared at full steps, unless the run has others."""
TIMED = (1, 64)
"""Batch sizes at which seconds are measured."""
SAMPLERS = (*STEPS, *SAMPLER_PRESETS, "ancestral")
"""Of the teacher; diffusers' schedulers besides."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Validated):
    """What is measured, and how closely."""

    samples: SampleCount = 2000
    """Samples per score, of teacher and students alike."""
    seed: Seed = 0
    """Seed of the noise that every row starts from."""
    full: Annotated[Steps, Ge(0)] = 0
    """Steps of the teacher that all is compared with; 0 is the gate's, or 64 where there was none."""
    full_sampler: str = "ddim"
    """Its sampler there, such as dpm-fast; the gate always compares with DDIM."""
    counts: tuple[int, ...] = ()
    """Steps of the students to evaluate; all by default."""
    baselines: tuple[str, ...] = ("ddim", "heun", "dpmpp-2m")
    """Samplers of the undistilled teacher, at not more calls: ddim, heun, dpmpp-2m, ancestral, dpmpp-3s,
    dpm-fast, euler-maruyama; diffusers:NAME is one of diffusers'."""
    metrics: tuple[str, ...] = METRICS
    """Distances of each row: frechet is always there, inception where the features know classes."""
    guidance_scales: tuple[NotNegative, ...] = ()
    """Guidance scales to evaluate. A student that takes the scale as an input is compared with the guided
    teacher at each (default 1, 1.3, 2, 3). Every other metric uses the lowest."""
    shown: Annotated[Count, Le(1_000)] = 12
    """Seeds in the grid of samples."""
    split_samples: Annotated[int, Ge(0), Le(MOST)] = 500
    """Samples for the two parts of a student's error; 0 leaves them out."""
    cost_rounds: Annotated[int, Ge(0), Le(10_000)] = 5
    """Rounds of timing, all rows in turn; 0 leaves cost out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split_samples == 1:
            raise ConfigError("one sample has no interval: write split_samples=2 or more, or 0")
        for name in self.metrics:
            if name not in METRICS:
                raise unknown("metric", name, METRICS)
        for name in (self.full_sampler, *self.baselines):
            if not name.startswith(PREFIX) and name not in SAMPLERS:
                raise unknown("sampler", name, [*SAMPLERS, f"{PREFIX}NAME"])

    @property
    def full_steps(self) -> int:
        """Steps of the teacher that all is compared with."""
        return self.full or FULL_STEPS

    @property
    def scale(self) -> float:
        """The guidance scale of all rows."""
        return min(self.guidance_scales, default=1.0)


OtherSize = tuple[str, Pipeline, int]
"""Name, pipeline and steps of a network of another size."""


@dataclass(frozen=True)
class Candidates:
    """What is judged: a teacher, the students made from it, and its data.

    students  the one of the most steps first, each made from the one before
    times     the teacher's grid, which the first student halves
    held_out  data that nobody was trained on; None leaves memorisation out
    begun     what the first student was made from, where that is not the teacher: the first stage of a
              guided distillation, the network that a plan shrank to
    others    (name, pipeline, steps) of what is to be seen beside them: networks of other sizes
    variants  students made smaller after training
    """

    teacher: Pipeline
    students: Sequence[Pipeline]
    data: Data
    times: Times = ()
    held_out: Tensor | None = None
    first_teacher: Pipeline | None = None
    others: Sequence[OtherSize] = ()
    variants: Sequence[Variant] = ()

    def variants_of(self, count: int) -> list[Variant]:
        """Of the student of so many steps."""
        return [one for one in self.variants if one.steps == count]

    def left_out(self, config: Evaluation) -> list[str]:
        """Which baselines will not be sampled, and why, a sentence each."""
        counts = counted(map(steps_of, self.students), config)
        tried = list(_tried(self.teacher, counts, config))
        some = {sampler for (sampler, _), why in tried if why is None}
        found = dict[tuple[str, str], str]()
        for (sampler, steps), why in tried:
            if why is not None:  # once of a sampler that is nowhere in the table
                where = f" in {plural(steps)}" if sampler in some else ""
                found[sampler, where] = f"no baseline {sampler}{where}: {why}"
        return list(found.values())


@dataclass(frozen=True)
class Setup:
    """How a row is sampled.

    variant, student  of a compressed student: the variant, and the name of its student's row
    network           of a network of another size: its name
    """

    role: Sampled
    name: str
    way: SamplingSetup
    variant: Variant | None = None
    student: str = ""
    network: str = ""


def teacher_setups(teacher: Pipeline, counts: Sequence[int], config: Evaluation) -> list[Setup]:
    """The teacher at full steps, and the baselines: once where one serves two counts, and of a teacher that
    is a student its own steps."""
    refuse_sampler(teacher, config.full_sampler, config.full_steps)
    sampler = "" if config.full_sampler == "ddim" else f"{config.full_sampler}, "
    way = teacher, config.full_sampler, config.full_steps
    found = [Setup("teacher", f"teacher, {sampler}{plural(config.full_steps)}", way)]
    for (sampler, steps), refused in _tried(teacher, counts, config):
        if refused is None:
            name = f"teacher, {sampler}, {plural(steps)}"
            found.append(Setup("baseline", name, (teacher, sampler, steps)))
    return found


def student_setups(subject: Candidates, counts: Sequence[int]) -> list[Setup]:
    """Each student and its variants, then networks of other sizes."""
    students, found = {steps_of(s): s for s in subject.students}, list[Setup]()
    for count in counts:
        name, student = f"student, {plural(count)}", students[count]
        found.append(Setup("student", name, (student, student.sampler, count)))
        for one in subject.variants_of(count):
            found.append(
                Setup("compressed", f"{name}, {one.kind}", one.way, variant=one, student=name)
            )
    for network, other, steps in subject.others:
        way = other, other.sampler, steps
        found.append(Setup("other", f"{network}, {plural(steps)}", way, network=network))
    return found


def refuse_sampler(teacher: Pipeline, sampler: str, steps: int) -> None:
    """Raises `ConfigError` where the grid or the schedule does not take this sampler; asks no network."""
    check_sampling(sampler, teacher.grid(steps, sampler), teacher.denoiser.schedule)


def _tried(
    teacher: Pipeline, counts: Sequence[int], config: Evaluation
) -> Iterator[tuple[tuple[str, int], str | None]]:
    """(sampler, steps) of each baseline, and why it cannot be."""
    own = {len(times) - 1 for times in teacher.times}
    each = calls_of(teacher, "ddim", 1, config.scale)
    walks = [
        (sampler, most_steps(sampler, k // each)) for k in counts for sampler in config.baselines
    ]
    for sampler, steps in dict.fromkeys(walks):
        if steps is None or (own and steps not in own and sampler not in SAMPLER_PRESETS):
            continue
        try:
            refuse_sampler(teacher, sampler, steps)
        except ConfigError as error:
            if sampler not in SAMPLER_PRESETS and not sampler.startswith(PREFIX):
                raise
            yield (sampler, steps), str(error)
        else:
            yield (sampler, steps), None


def counted(steps: Iterable[int], config: Evaluation) -> list[int]:
    """The counts that are judged, the most steps first."""
    there = sorted(steps, reverse=True)
    if strange := sorted(set(config.counts) - set(there)):
        raise ConfigError(
            f"no student takes {' or '.join(map(str, strange))} steps: there are students of "
            f"{', '.join(map(str, there)) or 'none'}"
        )
    return [k for k in there if not config.counts or k in config.counts]


def most_steps(sampler: str, count: int) -> int | None:
    """The most steps that cost this sampler at most `count` network calls; None if even one costs more."""
    for steps in range(count, 0, -1):
        if calls(sampler, steps) <= count:
            return steps
    return None


def steps_of(student: Pipeline) -> int:
    """The fewest that it takes."""
    return min(len(times) - 1 for times in student.times)


def plural(steps: int) -> str:
    """1 step, 2 steps."""
    return f"{steps} step{'s' if steps > 1 else ''}"
