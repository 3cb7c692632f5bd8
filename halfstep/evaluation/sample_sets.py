"""Draw samples of candidates from the same noise, and score them against real data."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from halfstep.batch import batches, Cond
from halfstep.division import ALONE, Division
from halfstep.errors import ConfigError
from halfstep.evaluation.features.registry import Features
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.cost import calls_of, SamplingSetup
from halfstep.evaluation.metrics.distance_bootstrap import raw_frechet_ratio
from halfstep.evaluation.metrics.distances import frechet_distance
from halfstep.evaluation.metrics.floor import noted_floor
from halfstep.evaluation.metrics.precision_recall_bootstrap import Neighbours
from halfstep.pipeline import Pipeline
from halfstep.progress import expected, Progress, SILENT


@dataclass(frozen=True)
class SampleSet:
    """Samples of one sampling setup, image k from noise k, with their features.

    seconds  that sampling took, all processes together
    """

    images: Tensor
    features: Tensor
    seconds: float

    def __len__(self) -> int:
        return len(self.images)

    def first(self, n: int) -> "SampleSet":
        """The first n samples."""
        return SampleSet(self.images[:n], self.features[:n], self.seconds * n / max(len(self), 1))


NONE = SampleSet(torch.empty(0), torch.empty(0), 0.0)


@dataclass(frozen=True)
class Score:
    """Scores of one sampling setup, without intervals (a `Report` has them)."""

    sampler: str
    steps: int
    calls: int
    frechet_distance: float
    rmse_to_teacher: float
    """Root mean square over pixels in [-1, 1], against the teacher's full-step sample of the same noise."""
    feature_rmse_to_teacher: float
    """The same over features, divided by the root mean square of the teacher's features."""
    seconds_per_sample: float


@dataclass
class SampleScorer:
    """Compare samples with real data, and with the teacher's samples of the same noise.

    features        the feature network
    real            real data, float [N, *shape]
    known_features  features of the real data, float64 [N, D], if already computed
    n, seed         number of samples and seed of their noise, the same for every row
    batch           images per network call
    captions        function from sample numbers, int64 [B], to the conditions of their texts
    classes         number of classes that the samples take in turn; 1 if they take none, or by chance
    labels          class of each real row, int64 [N], -1 if unknown; None if all are
    guidance_scale  guidance scale of all samples
    division        divides samples and features among processes, which share the features and networks
    """

    features: Features
    real: Tensor
    known_features: Tensor | None = None
    n: int = 2000
    seed: int = 0
    batch: int = 256
    captions: Callable[[Tensor], Cond] | None = None
    classes: int = 1
    labels: Tensor | None = None
    guidance_scale: float = 1.0
    division: Division = ALONE
    real_features: Tensor = field(init=False)
    _teacher: SampleSet | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.real_features = (
            self.features(self.real) if self.known_features is None else self.known_features
        )

    @property
    def floor(self) -> float:
        """Expected Fréchet distance of n perfect samples of these classes; 0 if unknown (`floor_note`)."""
        return self._noted_floor[0]

    @property
    def floor_note(self) -> str:
        """Why the floor is unknown, too low or of other classes; else empty."""
        return self._noted_floor[1]

    @cached_property
    def _noted_floor(self) -> tuple[float, str]:
        return self._floor_of(self.n)

    def floor_of(self, n: int) -> float:
        """The same of another number of samples."""
        return self.floor if n == self.n else self._floor_of(n)[0]

    def _floor_of(self, n: int) -> tuple[float, str]:
        return noted_floor(self.real_features, n, labels=self.labels, classes=self.classes)

    @property
    def real_few(self) -> Tensor:
        """Features of a fixed subset of n real images, for metrics whose cost is quadratic in n."""
        rows = torch.randperm(len(self.real), generator=torch.Generator().manual_seed(0))
        return self.real_features if len(rows) <= self.n else self.real_features[rows[: self.n]]

    @cached_property
    def real_neighbours(self) -> Neighbours:
        """The nearest neighbours among `real_few`, which every row's precision and recall share."""
        return Neighbours.of(self.real_few)

    def at(self, guidance_scale: float, seed: int) -> "SampleScorer":
        """A copy with another guidance scale and seed."""
        return replace(
            self, known_features=self.real_features, guidance_scale=guidance_scale, seed=seed
        )

    def steps(self, setups: Iterable[SamplingSetup], rows: range | None = None) -> int:
        """Total steps of `draw` for these setups, for all n samples or these rows."""
        parts = batches(range(self.n) if rows is None else rows, self.batch)
        return sum(steps for _, _, steps in setups) * len(parts)

    def sample(
        self,
        pipeline: Pipeline,
        sampler: str,
        steps: int,
        *,
        n: int | None = None,
        progress: Progress = SILENT,
    ) -> SampleSet:
        """Draw the first n samples."""
        return self.extend(NONE, pipeline, sampler, steps, n=n, progress=progress)

    def extend(
        self,
        samples: SampleSet,
        pipeline: Pipeline,
        sampler: str,
        steps: int,
        *,
        n: int | None = None,
        progress: Progress = SILENT,
    ) -> SampleSet:
        """Extend samples to the first n, drawing only the missing ones."""
        n, start = n or self.n, len(samples)
        if n <= start:
            return samples.first(n)
        drawn = self.draw(pipeline, sampler, steps, range(start, n), progress=progress)
        images, features = drawn.images, drawn.features
        if start:
            images = torch.cat([samples.images, images])
            features = torch.cat([samples.features, features])
        return SampleSet(images, features, samples.seconds + drawn.seconds)

    def draw(
        self,
        pipeline: Pipeline,
        sampler: str,
        steps: int,
        rows: range,
        *,
        progress: Progress = SILENT,
    ) -> SampleSet:
        """Draw the images of these sample numbers; every process draws whole batches."""
        progress = expected(progress, steps * len(batches(rows, self.batch)))
        act = partial(
            _drawn, pipeline, sampler, steps, self.features,
            seed=self.seed, batch=self.batch, guidance_scale=self.guidance_scale,
        )  # fmt: skip
        parts = list(self.division.map(act, self._units(rows), progress))
        return SampleSet(
            torch.cat([part.images for part in parts]),
            torch.cat([part.features for part in parts]),
            sum(part.seconds for part in parts),
        )

    def _units(self, rows: range) -> Iterator[tuple[range, Cond | None]]:
        """Whole batches of the sampler and of the features, with the conditions of their texts."""
        for part in batches(rows, math.lcm(self.batch, self.features.batch)):
            yield part, None if self.captions is None else self.captions(torch.tensor(part))

    def distance(self, samples: SampleSet) -> float:
        """Fréchet distance to the real data."""
        return frechet_distance(self.real_features, samples.features)

    def ratio(self, samples: SampleSet, teacher: SampleSet, *, level: float = 0.95) -> Interval:
        """Fréchet distance of the samples over the teacher's, resampled in pairs of the same noise."""
        n = min(len(samples), len(teacher))
        return raw_frechet_ratio(
            self.real_features,
            samples.features[:n],
            teacher.features[:n],
            block=self.n,
            strata=self.classes,
            level=level,
        )

    def teacher(self, pipeline: Pipeline, steps: int, *, progress: Progress = SILENT) -> Score:
        """Score the teacher at full steps; later rows are compared with these samples."""
        setup = pipeline, pipeline.reference_sampler, steps
        self._teacher = self.sample(*setup, progress=progress)
        return self._row(setup, self._teacher, self._teacher)

    def row(
        self, pipeline: Pipeline, sampler: str, steps: int, *, progress: Progress = SILENT
    ) -> Score:
        """Score one sampling setup."""
        if self._teacher is None:
            raise ConfigError(
                "a row is compared with the teacher's samples: call teacher(...) first"
            )
        setup = pipeline, sampler, steps
        return self._row(setup, self.sample(*setup, progress=progress), self._teacher)

    def _row(self, setup: SamplingSetup, samples: SampleSet, teacher: SampleSet) -> Score:
        _, sampler, steps = setup
        return Score(
            sampler,
            steps,
            calls_of(*setup, self.guidance_scale),
            self.distance(samples),
            _rms(samples.images - teacher.images),
            _rms(samples.features - teacher.features) / _rms(teacher.features),
            samples.seconds / len(samples),
        )


def _drawn(
    pipeline: Pipeline,
    sampler: str,
    steps: int,
    features: Features,
    unit: tuple[range, Cond | None],
    progress: Progress,
    *,
    seed: int,
    batch: int,
    guidance_scale: float,
) -> SampleSet:
    """The samples of these numbers; the seconds are of sampling alone."""
    rows, texts = unit
    began = time.perf_counter()
    images = pipeline.sample(
        len(rows), first=rows.start, seed=seed, steps=steps, sampler=sampler, batch=batch,
        guidance_scale=guidance_scale, prompts=texts, progress=progress,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    return SampleSet(images, features(images), seconds)


def _features(features: Features, images: Tensor, progress: Progress) -> Tensor:
    return features(images)


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())
