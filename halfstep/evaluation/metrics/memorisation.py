"""Memorisation: whether a generator reproduces its training images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics.bootstrap import basic_bootstrap, Interval
from halfstep.pixels import as_floats

COPY = 1 / 3
"""Largest ratio of the distances to the two nearest training images for a copy (Yoon et al. 2023)."""
TOO_NEAR = 0.5
"""Ratio of distances, samples over held-out images, below which the generator is flagged."""
TOO_MANY = 0.01
"""Share of copies, in excess of held-out images, above which the generator is flagged."""


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training image, and the share of copies."""

    train: Interval
    """Mean distance of samples to the nearest training image."""
    held_out: Interval
    """The same for held-out images, the reference for new images."""
    ratio: Interval
    """The first over the second: about 1 for new images, 0 for copies.  A ratio below 1 alone is no proof,
    because samples may be more typical than data."""
    copies: Interval
    """Share of samples three times nearer to one training image than to the next, less the same share of
    held-out images.  About 0 for a generator without copies."""
    flag: str | None
    """A sentence if the generator memorises; else None."""


@dataclass(frozen=True)
class TrainingImages:
    """All training images, and how near held-out images lie to them: the reference for samples."""

    images: Tensor
    of_held_out: Tensor
    """Distances of held-out images to the nearest two training images, float64 [K, 2]."""

    @classmethod
    def beside(cls, training: Tensor, held_out: Tensor) -> "TrainingImages":
        """The distances of held-out images, which all samples share.

        training  pixels or features of all training data, float [M, ...], M at least 2
        held_out  of real data not trained on, float [K, ...]

        `ConfigError` if most held-out images are training images.
        """
        of_held_out = nearest(held_out, training)
        if float(of_held_out[:, 0].median()) == 0:
            raise ConfigError(
                "most images of held_out are training images: give images that were not trained on"
            )
        return cls(training, of_held_out)

    def memorisation(
        self, samples: Tensor, *, resamples: int = 200, level: float = 0.95, seed: int = 0
    ) -> Memorisation:
        """Measure whether samples lie nearer to the training images than new images do.

        samples  pixels or features, as those of the images, float [N, ...]

        The intervals resample samples and held-out images; the training set is fixed.  A generator is
        flagged if the ratio's interval lies below 1/2, or that of copies above 1 %.  A copy has
        d1 <= d2 / 3 for its two nearest training images (Yoon et al., "Diffusion probabilistic models
        generalize when they fail to memorize", 2023), which detects a generator that copies rarely.
        """
        of_samples, of_held_out = nearest(samples, self.images), self.of_held_out

        def interval(statistic: Callable[..., float], *sets: Tensor) -> Interval:
            return basic_bootstrap(statistic, *sets, resamples=resamples, level=level, seed=seed)

        ratio = interval(lambda a, b: _mean(a) / _mean(b), of_samples, of_held_out)
        copies = interval(lambda a, b: _copied(a) - _copied(b), of_samples, of_held_out)
        return Memorisation(
            interval(_mean, of_samples),
            interval(_mean, of_held_out),
            ratio,
            copies,
            _flag(ratio, copies),
        )


def nearest(points: Tensor, among: Tensor, *, memory: int = 1 << 23) -> Tensor:
    """Euclidean distances of each point to the nearest two of `among`, float64 [N, 2].

    points, among  float [N, ...] and [M, ...]
    memory         number of distances held in memory at once

    The neighbours come from inner products, their distances from differences: exactly 0 for a copy.
    """
    a, b = (as_floats(x).flatten(1).double() for x in (points, among))
    if a.shape[1] != b.shape[1] or not len(a) or len(b) < 2:
        raise ConfigError(
            f"nearest neighbours need points of one size, and at least two of them, got "
            f"{list(points.shape)} among {list(among.shape)}: give pixels or features of both"
        )
    if not bool(a.isfinite().all() and b.isfinite().all()):
        raise DataError("some values are nan or infinite: the sampler of these images has diverged")
    centre = b.mean(0)
    a, b = a - centre, b - centre
    size = b.square().sum(1)
    distances = []
    for part in a.split(max(1, memory // len(b))):
        two = (size - 2 * part @ b.T).topk(2, largest=False).indices
        distances.append((part[:, None] - b[two]).norm(dim=2).sort(1).values)
    return torch.cat(distances)


def _mean(distances: Tensor) -> float:
    return float(distances[:, 0].mean())


def _copied(distances: Tensor) -> float:
    return float((distances[:, 0] <= COPY * distances[:, 1]).double().mean())


def _flag(ratio: Interval, copies: Interval) -> str | None:
    if copies.low > TOO_MANY:
        return f"{100 * copies.value:.3g} % of the samples are copies of training images"
    if ratio.high < TOO_NEAR:
        return f"the samples lie {ratio.value:.2g} times as far from the training images as new images do"
    return None
