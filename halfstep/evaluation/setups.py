"""Options of an evaluation, its candidates, and the sampling of each row."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from halfstep.config.validate import Count, NotNegative, Seed, Validated
from halfstep.data import Data
from halfstep.diffusion.samplers import calls, PREFIX, SAMPLER_PRESETS, STEPS
from halfstep.diffusion.time_grids import Steps, Times
from halfstep.errors import ConfigError, unknown
from halfstep.evaluation.compressed import Variant
from halfstep.evaluation.metrics.cost import calls_of, SamplingSetup
from halfstep.evaluation.metrics.memorisation import TrainingImages
from halfstep.evaluation.report_data import RowRole
from halfstep.pipeline import Pipeline
from halfstep.pipeline.samplers import check_sampling

MOST = 10_000_000
"""Largest number of samples per score."""
SampleCount = Annotated[int, Ge(8), Le(MOST)]
METRICS = ("frechet", "kernel", "inception", "precision-recall")
FULL_STEPS = 64
"""Default full steps of a teacher."""
TIMED = (1, 64)
"""Batch sizes of the timings."""
SAMPLERS = (*STEPS, *SAMPLER_PRESETS, "ancestral")
"""Samplers of the teacher, besides diffusers' schedulers."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Validated):
    """Options of an evaluation.

    Raises:
        ConfigError: an unknown metric or sampler, or a number beyond its range.
    """

    samples: SampleCount = 2000
    """Samples per score, of teacher and students alike."""
    seed: Seed = 0
    """Seed of the noise that every row starts from."""
    full: Annotated[Steps, Ge(0)] = 0
    """Full steps of the teacher, the reference of all rows. 0: those of the gate, or 64 without a gate."""
    full_sampler: str = "ddim"
    """Sampler of the teacher at full steps, such as dpm-fast; the gate always uses ddim."""
    counts: tuple[int, ...] = ()
    """Steps of the students to evaluate; all by default."""
    baselines: tuple[str, ...] = ("ddim", "heun", "dpmpp-2m")
    """Samplers of the undistilled teacher with at most as many network calls: ddim, heun, dpmpp-2m,
    ancestral, dpmpp-3s, dpm-fast, euler-maruyama, or diffusers:NAME."""
    metrics: tuple[str, ...] = METRICS
    """Metrics of each row. frechet is always measured, inception only by a classifier's features."""
    guidance_scales: tuple[NotNegative, ...] = ()
    """Guidance scales to evaluate. A student that takes the scale as an input is compared with the guided
    teacher at each (default 1, 1.3, 2, 3). Every other metric uses the lowest."""
    shown: Annotated[Count, Le(1_000)] = 12
    """Number of seeds in the grid of samples."""
    split_samples: Annotated[int, Ge(0), Le(MOST)] = 500
    """Samples for the two parts of a student's error; 0 skips them."""
    cost_rounds: Annotated[int, Ge(0), Le(10_000)] = 5
    """Rounds of timing, each over all rows; 0 skips cost."""

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
        """The teacher's full steps."""
        return self.full or FULL_STEPS

    @property
    def scale(self) -> float:
        """The guidance scale of all rows."""
        return min(self.guidance_scales, default=1.0)


OtherSize = tuple[str, Pipeline, int]
"""Name, pipeline and steps of a network of another size."""


@dataclass(frozen=True)
class Candidates:
    """The networks to evaluate: a teacher, its students, and their data.

    students       most steps first, each distilled from the one before
    times          the teacher's time grid, which the first student halves
    training       features of what the networks were trained on, and how near new images are; None leaves
                   memorisation out
    first_teacher  the teacher of the first student, if another one: the first stage of a guided
                   distillation, or a smaller network
    halved         steps of the students that merge two steps of the one before, the first of them two of the
                   teacher's; None of all
    others         (name, pipeline, steps) of networks of other sizes, for comparison
    variants       students made smaller after training
    held_out       data that no network was trained on, if samples are compared with them
    """

    teacher: Pipeline
    students: Sequence[Pipeline]
    data: Data
    times: Times = ()
    training: TrainingImages | None = None
    first_teacher: Pipeline | None = None
    others: Sequence[OtherSize] = ()
    variants: Sequence[Variant] = ()
    halved: frozenset[int] | None = None
    held_out: Data | None = None

    def variants_of(self, count: int) -> list[Variant]:
        """The variants of the student of so many steps."""
        return [variant for variant in self.variants if variant.steps == count]

    def left_out(self, config: Evaluation) -> list[str]:
        """A sentence for each baseline that will not be sampled, with the reason."""
        counts = chosen_counts(map(steps_of, self.students), config)
        tried = list(_baselines(self.teacher, counts, config))
        sampled = {sampler for (sampler, _), why in tried if why is None}
        sentences = dict[tuple[str, str], str]()
        for (sampler, steps), why in tried:
            if why is not None:  # one sentence for a sampler that is refused at all steps
                where = f" in {plural(steps)}" if sampler in sampled else ""
                sentences[sampler, where] = f"no baseline {sampler}{where}: {why}"
        return list(sentences.values())


@dataclass(frozen=True)
class Setup:
    """The sampling of one row.

    variant, student  the variant and the name of its student's row, for a compressed student
    network           name of the network, for a network of another size
    """

    role: RowRole
    name: str
    sampling: SamplingSetup
    variant: Variant | None = None
    student: str = ""
    network: str = ""


def teacher_setups(teacher: Pipeline, counts: Sequence[int], config: Evaluation) -> list[Setup]:
    """The setups of the teacher at full steps and of its baselines, each once.

    A teacher that is a student has its own step counts alone.
    """
    refuse_sampler(teacher, config.full_sampler, config.full_steps)
    sampler = "" if config.full_sampler == "ddim" else f"{config.full_sampler}, "
    sampling = teacher, config.full_sampler, config.full_steps
    setups = [Setup("teacher", f"teacher, {sampler}{plural(config.full_steps)}", sampling)]
    for (sampler, steps), refused in _baselines(teacher, counts, config):
        if refused is None:
            name = f"teacher, {sampler}, {plural(steps)}"
            setups.append(Setup("baseline", name, (teacher, sampler, steps)))
    return setups


def student_setups(candidates: Candidates, counts: Sequence[int]) -> list[Setup]:
    """The setups of each student and its variants, then of networks of other sizes."""
    students, setups = {steps_of(s): s for s in candidates.students}, list[Setup]()
    for count in counts:
        name, student = f"student, {plural(count)}", students[count]
        setups.append(Setup("student", name, (student, student.sampler, count)))
        for variant in candidates.variants_of(count):
            variant_name = f"{name}, {variant.kind}"
            setups.append(
                Setup("compressed", variant_name, variant.sampling, variant=variant, student=name)
            )
    for network, other, steps in candidates.others:
        sampling = other, other.sampler, steps
        setups.append(Setup("other", f"{network}, {plural(steps)}", sampling, network=network))
    return setups


def refuse_sampler(teacher: Pipeline, sampler: str, steps: int) -> None:
    """Raise `ConfigError` if the time grid or the schedule does not allow this sampler."""
    check_sampling(sampler, teacher.grid(steps, sampler), teacher.denoiser.schedule)


def _baselines(
    teacher: Pipeline, counts: Sequence[int], config: Evaluation
) -> Iterator[tuple[tuple[str, int], str | None]]:
    """(sampler, steps) of each baseline, and the reason if it is refused."""
    each = calls_of(teacher, "ddim", 1, config.scale)
    samplings = [
        (sampler, most_steps(sampler, k // each)) for k in counts for sampler in config.baselines
    ]
    for sampler, steps in dict.fromkeys(samplings):
        grids = () if sampler in SAMPLER_PRESETS else teacher.step_counts
        if steps is None or (grids and steps not in grids):
            continue
        try:
            refuse_sampler(teacher, sampler, steps)
        except ConfigError as error:
            if sampler not in SAMPLER_PRESETS and not sampler.startswith(PREFIX):
                raise
            yield (sampler, steps), str(error)
        else:
            yield (sampler, steps), None


def chosen_counts(steps: Iterable[int], config: Evaluation) -> list[int]:
    """The step counts to evaluate, most steps first."""
    counts = sorted(steps, reverse=True)
    if missing := sorted(set(config.counts) - set(counts)):
        raise ConfigError(
            f"no student takes {' or '.join(map(str, missing))} steps: there are students of "
            f"{', '.join(map(str, counts)) or 'none'}"
        )
    return [k for k in counts if not config.counts or k in config.counts]


def most_steps(sampler: str, count: int) -> int | None:
    """The most steps that cost this sampler at most `count` network calls; None if even one costs more."""
    for steps in range(count, 0, -1):
        if calls(sampler, steps) <= count:
            return steps
    return None


def steps_of(student: Pipeline) -> int:
    """The fewest steps that a student takes."""
    return min(student.step_counts)


def plural(steps: int) -> str:
    """Such as "1 step" or "2 steps"."""
    return f"{steps} step{'s' if steps > 1 else ''}"
