"""The sampling floor: the Fréchet distance that perfect samples are expected to score."""

from dataclasses import dataclass

import torch
from torch import Tensor

from halfstep.errors import DataError
from halfstep.evaluation.metrics.distances import checked, frechet_of_factors

SMALL = 128
"""Features of up to so many dimensions take more splits, which cost little."""


def sampling_floor(
    real: Tensor,
    n: int,
    *,
    labels: Tensor | None = None,
    splits: int | None = None,
    seed: int = 0,
) -> float:
    """The expected `frechet_distance` of n perfect samples to `real`, which is its bias.

    The mean distance between two parts of the real features, one of n rows if there are so many, of at most
    half of each class. The bias is proportional to 1/n + 1/N to first order, so it is scaled from the parts'
    sizes to those. Where classes in turn have other shares than the data, the distance that this makes
    without any noise is kept as it is.

    Args:
        real: float [N, D], features, N at least 4.
        n: the number of samples, at least 1.
        labels: int64 [N], the class of each real row, for samples whose classes are drawn in turn: 0, 1, ...,
            0, 1, ... The number of each class is then no noise, which is most of the floor where classes lie
            apart. Rows of an unknown class (-1) are left out. None for classes drawn by chance.
        splits: the number of random splits to average over; by default 64 up to D = 128, and 8 above.
        seed: the seed of the splits.

    Raises:
        DataError: too few rows or samples, and features that are not finite.
    """
    if n < 1 or len(real) < 4:
        raise DataError(f"a floor needs n of at least 1 and 4 real rows, got {n} and {len(real)}")
    count = len(real)
    if labels is not None and bool((labels < 0).any()):
        real, labels = real[labels >= 0], labels[labels >= 0]
    real, _ = checked(real, real)
    strata = _strata(len(real), n, labels)
    apart = 0.0 if labels is None else frechet_of_factors(*_whole(real, strata))
    splits = splits or (64 if real.shape[1] <= SMALL else 8)
    generator, total = torch.Generator().manual_seed(seed), 0.0
    for _ in range(splits):
        parts = [stratum.split(generator) for stratum in strata]
        rows = [torch.cat(side) for side in zip(*parts, strict=True)]
        weights = [torch.cat(side) for side in _weights(strata, parts)]
        total += frechet_of_factors(
            *(_factor(real[at], w) for at, w in zip(rows, weights, strict=True))
        )
    sizes = sum(1 / _effective(side) for side in weights)
    return apart + (total / splits - apart) * (1 / n + 1 / count) / sizes


@dataclass(frozen=True)
class _Stratum:
    """The real rows of a class, its share of them, and its share and number of the samples."""

    rows: Tensor
    of_real: float
    of_samples: float
    samples: int

    def split(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows for the samples' part, as many as there are samples if half has them, and the others."""
        order = self.rows[torch.randperm(len(self.rows), generator=generator)]
        few = min(self.samples, max(len(order) // 2, 1))
        return order[:few], order[few:] if few < len(order) else order


def _strata(count: int, n: int, labels: Tensor | None) -> list[_Stratum]:
    if labels is None:
        return [_Stratum(torch.arange(count), 1.0, 1.0, n)]
    present, sizes = labels.unique(return_counts=True)
    classes = int(present.max()) + 1
    samples = torch.bincount(torch.arange(n) % classes, minlength=classes)[present]
    if not int(samples.sum()):
        raise DataError(f"no class of {n} samples in turn is in the data: take more samples")
    return [
        _Stratum(
            (labels == label).nonzero()[:, 0], size / count, number / int(samples.sum()), number
        )
        for label, size, number in zip(
            present.tolist(), sizes.tolist(), samples.tolist(), strict=True
        )
    ]


def _weights(
    strata: list[_Stratum], parts: list[tuple[Tensor, Tensor]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights of the rows of both parts, so that each class has its share in the samples and the data."""
    few = [_even(s.of_samples, len(rows)) for s, (rows, _) in zip(strata, parts, strict=True)]
    others = [_even(s.of_real, len(rows)) for s, (_, rows) in zip(strata, parts, strict=True)]
    return few, others


def _even(share: float, count: int) -> Tensor:
    return torch.full((count,), share / max(count, 1), dtype=torch.float64)


def _whole(
    real: Tensor, strata: list[_Stratum]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """All real rows with the shares of the samples, and as they are."""
    weights = torch.empty(len(real), dtype=torch.float64)
    for stratum in strata:
        weights[stratum.rows] = stratum.of_samples / len(stratum.rows)
    return _factor(real, weights), _factor(real, torch.full_like(weights, 1 / len(real)))


def _factor(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and triangular root of the covariance of weighted rows, as `distances.factor` of even ones."""
    mean = weights.to(rows) @ rows
    spread = (weights / (1 - weights.square().sum())).sqrt().to(rows)
    return mean, torch.linalg.qr(spread[:, None] * (rows - mean), mode="r").R


def _effective(weights: Tensor) -> float:
    """The number of even rows with as much noise (Kish 1965)."""
    return 1 / float(weights.square().sum())
