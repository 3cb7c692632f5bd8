"""One row a sampler: quality, fidelity to the teacher and cost, of so many samples of one seed."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from torch import Tensor

from halfstep.errors import ConfigError
from halfstep.evaluation.distances import frechet_distance, sampling_floor
from halfstep.evaluation.features import Features
from halfstep.pipeline import Pipeline
from halfstep.samplers import calls


@dataclass(frozen=True)
class Row:
    """What one way of sampling gives and costs."""

    sampler: str
    steps: int
    calls: int
    frechet_distance: float
    rmse_to_teacher: float
    """Root mean square over pixels in [-1, 1], against the teacher's full-step sample of the same noise."""
    feature_rmse_to_teacher: float
    """The same over the features, divided by the root mean square of the teacher's own."""
    seconds_per_sample: float

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass
class Judge:
    """Compares samples with real data, and with the teacher's own samples of the same noise.

    features  the network to look through
    real      images of the data, float [N, C, H, W]
    n, seed   how many samples, and of which noise: the same for every row
    progress  called after every step of every batch
    """

    features: Features
    real: Tensor
    n: int = 2000
    seed: int = 0
    progress: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        self._real = self.features(self.real)
        self.floor = sampling_floor(self._real, self.n)
        self._teacher: tuple[Tensor, Tensor] | None = None

    def teacher(self, pipeline: Pipeline, steps: int) -> Row:
        """The teacher at full steps: every later row is compared with these samples."""
        self._teacher = None
        return self._row(pipeline, "ddim", steps)

    def row(self, pipeline: Pipeline, sampler: str, steps: int) -> Row:
        """One way of sampling."""
        if self._teacher is None:
            raise ConfigError(
                "a row is compared with the teacher's samples: call teacher(...) first"
            )
        return self._row(pipeline, sampler, steps)

    def _row(self, pipeline: Pipeline, sampler: str, steps: int) -> Row:
        began = time.perf_counter()
        images = pipeline.sample(
            self.n, seed=self.seed, steps=steps, sampler=sampler, progress=self.progress
        )
        seconds = time.perf_counter() - began
        seen = self.features(images)
        if self._teacher is None:
            self._teacher = images, seen
        own_images, own_seen = self._teacher
        return Row(
            sampler,
            steps,
            calls(sampler, steps),
            frechet_distance(self._real, seen),
            _rms(images - own_images),
            _rms(seen - own_seen) / _rms(own_seen),
            seconds / self.n,
        )


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def total_steps(rows: list[tuple[str, int]], n: int, batch: int = 256) -> int:
    """How often `Judge.progress` will be called for these (sampler, steps)."""
    return sum(steps for _, steps in rows) * (-(-n // batch))
