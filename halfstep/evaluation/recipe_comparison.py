"""Recipes of knowledge distillation compared over seeds: a table with a verdict, in compare.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from halfstep import storage
from halfstep.config import JsonObject
from halfstep.errors import CheckpointError, ConfigError, DataError
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.crossed_mean import crossed_mean, CrossedMean
from halfstep.evaluation.report_data import Provenance
from halfstep.schema import build, plain, SchemaError

COMPARISON, FORMAT = "compare.json", 1
MEND = "write the command of halfstep compare knowledge again"
LEVEL = 0.95
Verdict = Literal["helps", "does not", "cannot tell"]


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """A student of one seed: its share of right answers, and how often it answers as its teacher does."""

    seed: int
    accuracy: float
    agreement: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ComparedStudent:
    """A student in a comparison.

    terms     of its loss, each with its weight
    updates   of one seed; `forwards` are its cost, where forward and backward count 3
    accuracy  mean over the seeds, with its 95 % interval for new seeds and images
    teacher   mean accuracy of the teachers on the same images
    """

    name: str
    terms: tuple[str, ...]
    updates: int
    forwards: float
    seeds: tuple[SeedResult, ...]
    accuracy: Interval
    teacher: float


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The accuracy of a student less that of its control, on the same images and seeds.

    differences   by seed
    interval      at the level that holds for all gains together
    alone         share of the images that only the student has right, mean over the seeds
    control_alone share of the images that only the control has right
    seeds_needed  the fewest seeds that would decide if mean and spread stayed; None if that is unknown
    """

    student: str
    control: str
    differences: tuple[float, ...]
    interval: Interval
    alone: float
    control_alone: float
    verdict: Verdict
    seeds_needed: int | None = None


@dataclass(frozen=True, kw_only=True)
class RecipeComparison:
    """Recipes of knowledge distillation, compared on the same test images and seeds.

    images    number of test images; `test` is their fingerprint
    level     of all gains' intervals together; `gain_level` of each, by Bonferroni
    margin    the smallest gain that matters: a recipe that surely gains less does not help
    cautions  sentences that the reader should know
    """

    data: str
    validate: str
    images: int
    test: str
    teachers: tuple[str, ...]
    net: str
    level: float
    gain_level: float
    margin: float
    students: tuple[ComparedStudent, ...]
    gains: tuple[Gain, ...]
    cautions: tuple[str, ...] = ()
    provenance: Provenance

    def student(self, name: str) -> ComparedStudent:
        """The student of this name."""
        return next(student for student in self.students if student.name == name)


def verdict_of(gain: CrossedMean, level: float, margin: float) -> Verdict:
    """does not: surely below the margin, which may be 0; helps: surely above 0 otherwise; else cannot tell.

    One seed decides nothing: the spread between seeds is unknown.
    """
    interval = gain.interval(level)
    if gain.seed_spread is None:
        return "cannot tell"
    if interval.high < margin:
        return "does not"
    return "helps" if interval.low > 0 else "cannot tell"


def compared(
    student: str, control: str, right: Mapping[str, Tensor], *, level: float, margin: float
) -> Gain:
    """The gain of a student over its control, and the verdict.

    right   by name, whether each image is answered rightly: [seeds, images]
    level   of this gain's interval
    """
    if not 0 <= margin < 1:
        raise ConfigError(
            f"the margin is a gain of accuracy in [0, 1), got {margin:g}: write for example 0.01"
        )
    if right[student].shape != right[control].shape:
        raise DataError(
            f"'{student}' and '{control}' are compared on the same seeds and images, got "
            f"{list(right[student].shape)} and {list(right[control].shape)}"
        )
    difference = right[student].double() - right[control].double()
    mean = crossed_mean(difference)
    return Gain(
        student=student,
        control=control,
        differences=tuple(difference.mean(1).tolist()),
        interval=mean.interval(level),
        alone=float((difference > 0).double().mean()),
        control_alone=float((difference < 0).double().mean()),
        verdict=verdict_of(mean, level, margin),
        seeds_needed=_seeds_needed(mean, level, margin),
    )


def _seeds_needed(gain: CrossedMean, level: float, margin: float) -> int | None:
    """The fewest seeds that decide; None for a decided gain, and where seeds alone do not do."""
    if verdict_of(gain, level, margin) != "cannot tell":
        return None
    bounds = [0.0] * (gain.value > 0) + [margin] * (gain.value < margin)
    counts = [gain.seeds_needed(level, bound) for bound in bounds]
    return min((count for count in counts if count is not None), default=None)


def gain_level(comparisons: int, level: float = LEVEL) -> float:
    """The level of each of so many intervals that hold together at `level` (Bonferroni)."""
    return 1 - (1 - level) / max(comparisons, 1)


def all_gains(
    pairs: Sequence[tuple[str, str]], right: Mapping[str, Tensor], *, margin: float = 0.0
) -> tuple[Gain, ...]:
    """The gain of each pair (student, control), at the level that holds for all together."""
    level = gain_level(len(pairs))
    return tuple(
        compared(student, control, right, level=level, margin=margin) for student, control in pairs
    )


def save_comparison(comparison: RecipeComparison, folder: Path) -> None:
    """Write FOLDER/compare.json."""
    storage.write_json(folder / COMPARISON, {"format": FORMAT, **plain(comparison)})


def read_comparison(folder: Path) -> RecipeComparison:
    """Read the comparison that `save_comparison` wrote.

    `ConfigError` if no recipes were compared there, `CheckpointError` if the file is damaged.
    """
    path = folder / COMPARISON
    if not path.exists():
        raise ConfigError(
            f"'{folder}' holds no comparison (it has no {COMPARISON}): give the --out of a halfstep compare "
            "knowledge"
        )
    content = storage.read_json(path, JsonObject, format=FORMAT, mend=MEND)
    table = {name: value for name, value in content.items() if name != "format"}
    try:
        return build(table, RecipeComparison)
    except SchemaError as wrong:
        raise CheckpointError(f"'{path}' is damaged: {wrong}; {MEND}") from None
