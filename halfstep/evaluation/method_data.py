"""The comparison of methods as typed values; `method_files` reads and writes them."""

from dataclasses import dataclass, field
from typing import Literal

from halfstep.config import JsonObject
from halfstep.config.validate import Count
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.drift import Drift
from halfstep.evaluation.report_data import Measurement, Pictures, Provenance, TrainingCost
from halfstep.schema import UNWRITTEN

Answer = Literal["better", "cannot tell", "one seed", "alone"]
TRAINED = ("batch_size", "optimiser", "learning_rate", "ema")
"""Options of training among those of runs that exist; runs that are trained have theirs in common."""


@dataclass(frozen=True, kw_only=True)
class ReferenceWalk:
    """A way of sampling the teacher that all students are compared with.

    ratio   its Fréchet distance over that of the teacher at full steps; None for the latter itself
    rmse    its pixels against those of the teacher at full steps, from the same noise
    """

    sampler: str
    steps: Count
    calls: Count
    distance: Interval
    ratio: Interval | None = None
    rmse: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class ComparedMethod:
    """A method of the table: one setting, with one run for each seed.

    name     of its rows
    command  of its runs, such as "distill progressive"
    options  of the method, as its runs have them; None values left out
    planned  forwards of each run by its plan; None for runs that exist
    learns   sampler and steps of the teacher whose trajectories it learns; None if unknown
    """

    name: str
    command: str
    options: JsonObject
    planned: int | None = None
    learns: tuple[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A run of a method.

    folder  of the run, seen from the comparison's
    cost    of its training, walks included; None if unknown
    """

    method: str
    seed: int
    folder: str
    cost: TrainingCost | None


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """A student of one run.

    ratio         Fréchet distance over the teacher's at full steps, paired
    target_ratio  the same over the target walk's
    rmse          pixels against the target walk's of the same noise; None for a stochastic sampler
    teacher_rmse  the same against the teacher's at full steps
    drift         of its images against the teacher's at full steps
    """

    method: str
    seed: int
    steps: Count
    calls: Count
    distance: Interval
    ratio: Interval
    target_ratio: Interval
    rmse: Interval | None = None
    teacher_rmse: Interval | None = None
    drift: tuple[Drift, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class MethodMean:
    """The students of a method at one number of steps, over its seeds.

    distance      the mean Fréchet distance
    ratio         the mean distance over the teacher's, with the interval of samples and seeds
    target_ratio  the same over the target walk's
    spread        the standard deviation of the seeds' ratios to the teacher; None of one seed
    rmse          the mean over seeds against the target walk; None for a stochastic sampler
    rmse_spread   its standard deviation over the seeds; None of one seed
    teacher_rmse  the mean over seeds against the teacher at full steps
    """

    method: str
    steps: Count
    calls: Count
    seeds: Count
    distance: float
    ratio: Interval
    target_ratio: Interval
    spread: float | None
    rmse: float | None
    rmse_spread: float | None
    teacher_rmse: float | None


@dataclass(frozen=True, kw_only=True)
class CountVerdict:
    """The answer for one number of steps: which method, and whether the difference is larger than a seed's.

    best        the method of the lowest mean distance
    answer      better: than every other method; cannot tell: not than those in `alike`; one seed: by the
                samples alone, as some method has one seed; alone: there is no other method
    second      the method of the next lowest mean distance
    difference  the second's mean distance over the best's, with the interval of samples and seeds
    spread      by how much the two methods' distances differ from seed to seed, as a share; None of one seed
    alike       methods that cannot be told from the best
    faithful    the method of the lowest mean paired error to the target walk; None where none has one
    """

    steps: Count
    best: str
    answer: Answer
    second: str | None = None
    difference: Interval | None = None
    spread: float | None = None
    alike: tuple[str, ...] = ()
    faithful: str | None = None


@dataclass(frozen=True, kw_only=True)
class MethodComparison:
    """Methods compared at equal cost: OUT/compare.json, with OUT/compare.npz as `pictures`.

    budget    forwards that each run could spend; None where all runs existed
    batch     samples of an update; None where all runs existed
    training  the other options of training, but the seed; None where all runs existed
    counts    numbers of steps, most first
    headline  the answer in one line
    """

    provenance: Provenance
    measure: Measurement
    budget: int | None
    batch: int | None
    training: JsonObject | None
    counts: tuple[int, ...]
    seeds: int
    teacher: ReferenceWalk
    target: ReferenceWalk
    methods: tuple[ComparedMethod, ...]
    runs: tuple[ComparedRun, ...]
    rows: tuple[MethodRow, ...]
    means: tuple[MethodMean, ...]
    verdicts: tuple[CountVerdict, ...]
    headline: str = ""
    sentences: tuple[str, ...] = ()
    pictures: Pictures = field(default_factory=dict, metadata=UNWRITTEN, repr=False, compare=False)

    def mean(self, method: str, steps: int) -> MethodMean | None:
        """The mean of a method at a number of steps; None where it has no such student.

        Args:
            method: its name.
            steps: of the student.
        """
        found = [m for m in self.means if (m.method, m.steps) == (method, steps)]
        return found[0] if found else None
