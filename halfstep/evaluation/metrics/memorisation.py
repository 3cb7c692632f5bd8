"""Memorisation: does a generator make new samples, or give back its training images?"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics.bootstrap import basic_bootstrap, Interval
from halfstep.pixels import as_floats

COPY = 1 / 3
"""A copy is this much nearer to one training image than to the next (Yoon et al. 2023)."""
TOO_NEAR = 0.5
"""Samples nearer to the training images than this much of what new images are, are not new."""
TOO_MANY = 0.01
"""Share of copies, above that among held-out images, at which it is said."""


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training image."""

    train: Interval
    """Mean distance of the samples to the nearest training image."""
    held_out: Interval
    """The same of real images that were not trained on: what new images are like."""
    ratio: Interval
    """The first over the second: about 1 for new images, 0 for copies.  Below 1 by itself is no proof,
    as samples may be more typical than data are."""
    copies: Interval
    """Share of samples three times nearer to one training image than to the next, less that share of the
    held-out images.  About 0 for any generator that is honest, typical or not."""
    flag: str | None
    """In words, if it memorises; else None."""


def memorisation(
    samples: Tensor,
    training: Tensor,
    held_out: Tensor,
    *,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Memorisation:
    """Whether samples lie nearer to the training images than new images do.

    samples   of the generator, pixels or features, float [N, ...]
    training  all that it was trained on, float [M, ...], M at least 2
    held_out  real data that it was not trained on, float [K, ...]

    The intervals are those of the samples and of the held-out images; the training set is given.
    Flagged where the ratio's interval lies below 1/2, or that of copies above 1 %: the second finds
    a generator that copies now and then, and is d1 <= d2 / 3 of the nearest two training images (Yoon
    et al., "Diffusion probabilistic models generalize when they fail to memorize", 2023).
    """
    of_samples, of_held = nearest(samples, training), nearest(held_out, training)
    if float(of_held[:, 0].median()) == 0:
        raise ConfigError(
            "held_out lies in the training set: most of its images are training images, and what new "
            "images are like cannot be told from them.  Give images that were not trained on"
        )

    def interval(statistic: Callable[..., float], *sets: Tensor) -> Interval:
        return basic_bootstrap(statistic, *sets, resamples=resamples, level=level, seed=seed)

    ratio = interval(lambda a, b: _mean(a) / _mean(b), of_samples, of_held)
    copies = interval(lambda a, b: _copied(a) - _copied(b), of_samples, of_held)
    return Memorisation(
        interval(_mean, of_samples),
        interval(_mean, of_held),
        ratio,
        copies,
        _flag(ratio, copies),
    )


def nearest(points: Tensor, among: Tensor, *, memory: int = 1 << 23) -> Tensor:
    """Euclidean distances of each point to the nearest two of `among`, float64 [N, 2].

    points, among  float [N, ...] and [M, ...]
    memory         how many distances are held at once

    Found through inner products; the two found are then subtracted, so that a copy is at 0 exactly.
    """
    a, b = (as_floats(x).flatten(1).double() for x in (points, among))
    if a.shape[1] != b.shape[1] or not len(a) or len(b) < 2:
        raise ConfigError(
            f"nearest neighbours need points of one size and at least two to be near to, got "
            f"{list(points.shape)} among {list(among.shape)}: give pixels or features of both"
        )
    if not bool(a.isfinite().all() and b.isfinite().all()):
        raise DataError("some values are nan or infinite: whatever made these samples has diverged")
    centre = b.mean(0)
    a, b = a - centre, b - centre
    size = b.square().sum(1)
    found = []
    for part in a.split(max(1, memory // len(b))):
        two = (size - 2 * part @ b.T).topk(2, largest=False).indices
        found.append((part[:, None] - b[two]).norm(dim=2).sort(1).values)
    return torch.cat(found)


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
