"""Sample candidates from the same noise, and score the samples against real data."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from halfstep.batch import batches
from halfstep.errors import ConfigError
from halfstep.evaluation.features.registry import Features
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.cost import calls_of, SamplingSetup
from halfstep.evaluation.metrics.distance_bootstrap import raw_frechet_ratio
from halfstep.evaluation.metrics.distances import frechet_distance, sampling_floor
from halfstep.pipeline import Pipeline
from halfstep.progress import expected, Progress, SILENT


@dataclass(frozen=True)
class SampleSet:
    """What one way of sampling drew, image k from the noise of image k."""

    images: Tensor
    features: Tensor
    seconds: float

    def __len__(self) -> int:
        return len(self.images)

    def first(self, n: int) -> "SampleSet":
        """Of the first n alone."""
        return SampleSet(self.images[:n], self.features[:n], self.seconds * n / max(len(self), 1))


NONE = SampleSet(torch.empty(0), torch.empty(0), 0.0)


@dataclass(frozen=True)
class Score:
    """Scores of one way of sampling, in plain numbers; a `Report` has the intervals."""

    sampler: str
    steps: int
    calls: int
    frechet_distance: float
    rmse_to_teacher: float
    """Root mean square over pixels in [-1, 1], against the teacher's full-step sample of the same noise."""
    feature_rmse_to_teacher: float
    """The same over the features, divided by the root mean square of the teacher's own."""
    seconds_per_sample: float


@dataclass
class SampleScorer:
    """Compares samples with real data, and with the teacher's own samples of the same noise.

    features  the network to look through
    real      the data, float [N, *shape]
    known     features of the real data, float64 [N, D], where they are already computed
    n, seed   how many samples, and of which noise: the same for every row
    batch     images a network call
    captions  sample numbers, int64 [B], to the states of their texts, for networks that read them
    guidance  the guidance scale of all samples
    """

    features: Features
    real: Tensor
    known: Tensor | None = None
    n: int = 2000
    seed: int = 0
    batch: int = 256
    captions: Callable[[Tensor], Tensor] | None = None
    guidance_scale: float = 1.0
    real_features: Tensor = field(init=False)
    _teacher: SampleSet | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.real_features = self.features(self.real) if self.known is None else self.known

    @property
    def floor(self) -> float:
        """The Fréchet distance that n perfect samples would score."""
        return sampling_floor(self.real_features, self.n)

    @property
    def real_few(self) -> Tensor:
        """The features of n real images, always the same ones: for what costs n² and depends on both n."""
        rows = torch.randperm(len(self.real), generator=torch.Generator().manual_seed(0))
        return self.real_features if len(rows) <= self.n else self.real_features[rows[: self.n]]

    def at(self, guidance_scale: float, seed: int) -> "SampleScorer":
        """The same at another guidance scale, and of other noise."""
        return replace(self, known=self.real_features, guidance_scale=guidance_scale, seed=seed)

    def steps(self, ways: Iterable[SamplingSetup], rows: range | None = None) -> int:
        """The steps of `drawn` for these ways of sampling, all n samples or these rows."""
        parts = batches(range(self.n) if rows is None else rows, self.batch)
        return sum(steps for _, _, steps in ways) * len(parts)

    def sample(
        self,
        pipeline: Pipeline,
        sampler: str,
        steps: int,
        *,
        n: int | None = None,
        progress: Progress = SILENT,
    ) -> SampleSet:
        """The first n samples of this way of sampling."""
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
        """The first n, of which `samples` has some."""
        n, had = n or self.n, len(samples)
        if n <= had:
            return samples.first(n)
        began = time.perf_counter()
        images = self.draw(pipeline, sampler, steps, range(had, n), progress=progress)
        seconds, features = time.perf_counter() - began, self.features(images)
        if had:
            images = torch.cat([samples.images, images])
            features = torch.cat([samples.features, features])
        return SampleSet(images, features, samples.seconds + seconds)

    def draw(
        self,
        pipeline: Pipeline,
        sampler: str,
        steps: int,
        rows: range,
        *,
        progress: Progress = SILENT,
    ) -> Tensor:
        """These samples, a batch at a time: the states of all captions may be too many."""
        parts = batches(rows, self.batch)
        progress = expected(progress, steps * len(parts))
        found = [
            pipeline.sample(
                len(part),
                first=part.start,
                seed=self.seed,
                steps=steps,
                sampler=sampler,
                guidance_scale=self.guidance_scale,
                encoder_hidden_states=None
                if self.captions is None
                else self.captions(torch.tensor(part)),
                batch=self.batch,
                progress=progress,
            )
            for part in parts
        ]
        return torch.cat(found)

    def distance(self, samples: SampleSet) -> float:
        """Fréchet distance from the real data."""
        return frechet_distance(self.real_features, samples.features)

    def ratio(self, samples: SampleSet, teacher: SampleSet, *, level: float = 0.95) -> Interval:
        """Its Fréchet distance over the teacher's at this n, resampled in pairs of the same noise."""
        n = min(len(samples), len(teacher))
        return raw_frechet_ratio(
            self.real_features,
            samples.features[:n],
            teacher.features[:n],
            block=self.n,
            level=level,
        )

    def teacher(self, pipeline: Pipeline, steps: int, *, progress: Progress = SILENT) -> Score:
        """The teacher at full steps: every later row is compared with these samples."""
        way = pipeline, pipeline.reference_sampler, steps
        self._teacher = self.sample(*way, progress=progress)
        return self._row(way, self._teacher, self._teacher)

    def row(
        self, pipeline: Pipeline, sampler: str, steps: int, *, progress: Progress = SILENT
    ) -> Score:
        """One way of sampling."""
        if self._teacher is None:
            raise ConfigError(
                "a row is compared with the teacher's samples: call teacher(...) first"
            )
        way = pipeline, sampler, steps
        return self._row(way, self.sample(*way, progress=progress), self._teacher)

    def _row(self, way: SamplingSetup, samples: SampleSet, teacher: SampleSet) -> Score:
        _, sampler, steps = way
        return Score(
            sampler,
            steps,
            calls_of(*way, self.guidance_scale),
            self.distance(samples),
            _rms(samples.images - teacher.images),
            _rms(samples.features - teacher.features) / _rms(teacher.features),
            samples.seconds / len(samples),
        )


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())
