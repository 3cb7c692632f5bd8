"""Measure the students of several methods on the same noise, against one target walk and the teacher."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from halfstep.batch import batches
from halfstep.diffusion.samplers import draws_noise
from halfstep.evaluation.method_data import MethodMean, MethodRow, ReferenceWalk
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.cost import calls_of
from halfstep.evaluation.metrics.distance_bootstrap import raw_frechet_interval
from halfstep.evaluation.metrics.fidelity import paired_rmse
from halfstep.evaluation.metrics.seed_spread import SharedDistances
from halfstep.evaluation.report_data import Pictures
from halfstep.evaluation.row_metrics import drift_of, sheets
from halfstep.evaluation.sample_cache import chunks, identity, Samples
from halfstep.evaluation.sample_sets import SampleScorer, SampleSet
from halfstep.evaluation.setups import plural
from halfstep.pipeline import Pipeline
from halfstep.progress import expected, Progress, SILENT


@dataclass(frozen=True)
class TrainedMethod:
    """The runs of a method, by the seed of each.

    students  loads the student of a run (by seed) and a number of steps; None where it has none
    """

    name: str
    seeds: Sequence[int]
    students: Callable[[int, int], Pipeline | None]


@dataclass(frozen=True)
class Scored:
    """The measured parts of a comparison; `shared` has the distances of each number of steps.

    shared  by steps: the distances, and the numbers of each method's samplers in them
    """

    teacher: ReferenceWalk
    target: ReferenceWalk
    rows: tuple[MethodRow, ...]
    means: tuple[MethodMean, ...]
    shared: dict[int, tuple[SharedDistances, dict[str, list[int]]]]
    pictures: Pictures


@dataclass(frozen=True)
class MethodScorer:
    """What all samples are compared with, and how they are drawn.

    full    sampler and steps of the teacher at full steps
    target  sampler and steps of the walk that the students are to land on
    cache   a folder for samples; None keeps none
    shown   number of seeds in the grid of samples
    """

    teacher: Pipeline
    scorer: SampleScorer
    full: tuple[str, int]
    target: tuple[str, int]
    cache: Path | None = None
    shown: int = 12

    def measure(
        self,
        methods: Sequence[TrainedMethod],
        counts: Sequence[int],
        *,
        progress: Progress = SILENT,
    ) -> Scored:
        """Measure every student at these numbers of steps.

        Args:
            methods: whose students are measured.
            counts: numbers of steps, most first.
            progress: advances with every step of sampling.
        """
        parts = sum(len(batches(rows, self.scorer.batch)) for rows in chunks(self.scorer.n))
        walks = self.full[1] + (self.target[1] if self.target != self.full else 0)
        steps = walks + sum(counts) * sum(len(method.seeds) for method in methods)
        progress = expected(progress, steps * parts)
        full = self._drawn(self.teacher, self.full, progress)
        walk = (
            full if self.target == self.full else self._drawn(self.teacher, self.target, progress)
        )
        images = [(f"teacher, {plural(self.full[1])}", full.images[: self.shown])]
        if self.target != self.full:
            images.append((self._target_name, walk.images[: self.shown]))
        rows, means, shared = list[MethodRow](), list[MethodMean](), {}
        for count in counts:
            table = _OfCount(self, count, full, walk)
            for method in methods:
                for seed in method.seeds:
                    student = method.students(seed, count)
                    if student is None:
                        progress.advance(count * parts)
                        continue
                    samples = self._drawn(student, (student.sampler, count), progress)
                    first = table.add(method.name, seed, student, samples)
                    if first:
                        images.append(
                            (f"{method.name}, {plural(count)}", samples.images[: self.shown])
                        )
            rows += table.rows()
            means += table.means()
            shared[count] = table.shared, table.numbers
        return Scored(
            self._reference(self.full, full, None),
            self._reference(self.target, walk, full if self.target != self.full else None),
            tuple(rows),
            tuple(means),
            shared,
            _pictures(images, self.shown, self.teacher.class_names),
        )

    @property
    def _target_name(self) -> str:
        sampler, steps = self.target
        return f"target, {sampler}, {plural(steps)}"

    def _drawn(self, pipeline: Pipeline, how: tuple[str, int], progress: Progress) -> SampleSet:
        """All samples, kept in the cache where there is one."""
        sampler, steps = how
        pipeline.to(self.teacher.device)
        about = identity(pipeline) if self.cache is not None else None
        kept = Samples(lambda: pipeline, about, sampler, steps, self.scorer, cache=self.cache)
        drawn = [kept.chunk(rows, progress=progress) for rows in chunks(self.scorer.n)]
        images = [chunk.images for chunk in drawn if chunk.images is not None]
        return SampleSet(torch.cat(images), torch.cat([chunk.features for chunk in drawn]), 0.0)

    def _reference(
        self, how: tuple[str, int], samples: SampleSet, full: SampleSet | None
    ) -> ReferenceWalk:
        sampler, steps = how
        scorer = self.scorer
        return ReferenceWalk(
            sampler=sampler,
            steps=steps,
            calls=calls_of(self.teacher, sampler, steps, scorer.guidance_scale),
            distance=_distance(scorer, samples),
            ratio=None if full is None else scorer.ratio(samples, full),
            rmse=None if full is None else _error(full, samples, sampler),
        )


class _OfCount:
    """The students of one number of steps: features until all are drawn, rows without ratios."""

    def __init__(self, of: MethodScorer, steps: int, full: SampleSet, walk: SampleSet):
        self.of, self.steps, self.full, self.walk = of, steps, full, walk
        self.features = [full.features, walk.features]
        self.numbers = dict[str, list[int]]()
        self._made = list[Callable[[SharedDistances], MethodRow]]()
        self._calls = dict[str, int]()

    def add(self, method: str, seed: int, student: Pipeline, samples: SampleSet) -> bool:
        """Add a student; whether it is the first of its method."""
        number, sampler, scorer = len(self.features), student.sampler, self.of.scorer
        first = method not in self.numbers
        self.numbers.setdefault(method, []).append(number)
        self.features.append(samples.features)
        calls = calls_of(student, sampler, self.steps, scorer.guidance_scale)
        self._calls[method] = calls
        self._made.append(
            partial(
                _row, number, method=method, seed=seed, steps=self.steps, calls=calls,
                distance=_distance(scorer, samples), rmse=_error(self.walk, samples, sampler),
                teacher_rmse=_error(self.full, samples, sampler), drift=drift_of(self.full, samples),
            )
        )  # fmt: skip
        return first

    @property
    def shared(self) -> SharedDistances:
        if not hasattr(self, "_shared"):
            scorer = self.of.scorer
            self._shared = SharedDistances.of(
                scorer.real_features, self.features, strata=scorer.classes
            )
        return self._shared

    def rows(self) -> list[MethodRow]:
        self._rows = [made(self.shared) for made in self._made]
        return self._rows

    def means(self) -> list[MethodMean]:
        """One for each method, in the order of the methods; after `rows`."""
        return [
            _mean(list(group), self.numbers[name], self.shared)
            for name, group in groupby(self._rows, lambda row: row.method)
        ]


def _row(number: int, shared: SharedDistances, **fields: object) -> MethodRow:
    """A row with its ratios to the teacher, sampler 0, and to the target walk, sampler 1."""
    ratio, target = (shared.ratio([number], [reference]) for reference in (0, 1))
    return MethodRow(**fields, ratio=ratio, target_ratio=target)  # type: ignore[arg-type]


def _mean(rows: Sequence[MethodRow], numbers: Sequence[int], shared: SharedDistances) -> MethodMean:
    first = rows[0]
    ratios = torch.tensor([row.ratio.value for row in rows], dtype=torch.float64)
    rmse, rmse_spread = _over_seeds([row.rmse for row in rows])
    return MethodMean(
        method=first.method,
        steps=first.steps,
        calls=first.calls,
        seeds=len(rows),
        distance=shared.mean(numbers),
        ratio=shared.ratio(numbers, [0]),
        target_ratio=shared.ratio(numbers, [1]),
        spread=float(ratios.std()) if len(rows) > 1 else None,
        rmse=rmse,
        rmse_spread=rmse_spread,
        teacher_rmse=_over_seeds([row.teacher_rmse for row in rows])[0],
    )


def _over_seeds(errors: Sequence[Interval | None]) -> tuple[float | None, float | None]:
    """The mean of measured errors and their standard deviation; None without any."""
    values = torch.tensor([error.value for error in errors if error], dtype=torch.float64)
    if not len(values):
        return None, None
    return float(values.mean()), float(values.std()) if len(values) > 1 else None


def _distance(scorer: SampleScorer, samples: SampleSet) -> Interval:
    return raw_frechet_interval(scorer.real_features, samples.features, strata=scorer.classes)


def _error(of: SampleSet, samples: SampleSet, sampler: str) -> Interval | None:
    """The paired error of pixels; None for a sampler that draws noise of its own."""
    return None if draws_noise(sampler) else paired_rmse(of.images, samples.images)


def _pictures(
    images: Sequence[tuple[str, Tensor]], shown: int, class_names: Sequence[str]
) -> Pictures:
    """The grid of the same seeds; without the worst pairs, which a report has."""
    arrays = sheets(images, shown, class_names)
    return {name: array for name, array in arrays.items() if name.startswith("grid")}
