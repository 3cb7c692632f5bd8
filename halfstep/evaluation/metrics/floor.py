"""The sampling floor: the Fréchet distance that perfect samples are expected to score."""

from dataclasses import dataclass

import torch
from torch import Tensor

from halfstep.errors import DataError
from halfstep.evaluation.metrics.distances import checked, frechet_of_factors

SMALL = 128
"""Features of up to so many dimensions take more splits, which cost little."""
LEAST = 4
BY_CHANCE = (
    "of classes by chance, as the data has no labels: too high if its classes are equally frequent"
)


def sampling_floor(
    real: Tensor,
    n: int,
    *,
    labels: Tensor | None = None,
    classes: int | None = None,
    splits: int | None = None,
    seed: int = 0,
) -> float:
    """The expected `frechet_distance` of n perfect samples to `real`, which is its bias.

    The mean distance between two parts of the real features, one of n rows if there are so many, of at most
    half of each class. The bias is proportional to 1/n + 1/N to first order, so it is scaled from the parts'
    sizes to those. Where classes in turn have other shares than the data, the distance that this makes
    without any noise is kept as it is.

    It needs N of at least 2 D, because a part is about half of the rows: with D rows it is a quarter too low,
    with D / 2 half. The single row of a class stands in both parts and has no noise: many such classes make
    the floor too low.

    Args:
        real: float [N, D], features, N at least 4.
        n: the number of samples, at least 2.
        labels: int64 [N], the class of each real row, for samples whose classes are drawn in turn: 0, 1, ...,
            0, 1, ... The number of each class is then no noise, which is most of the floor where classes lie
            apart. Rows of an unknown class (-1) are left out. None for classes drawn by chance.
        classes: the number of classes that the samples take in turn; by default the largest label and 1.
        splits: the number of random splits to average over; by default 64 up to D = 128, and 8 above.
        seed: the seed of the splits.

    Raises:
        DataError: too few rows or samples, labels of another number than the rows, a class without rows, and
            features that are not finite.
    """
    count = len(real)
    if labels is not None:
        _refuse_other_labels(real, labels)
        real, labels = real[labels >= 0], labels[labels >= 0]
    if n < 2 or len(real) < LEAST:
        known = "" if labels is None else " of a known class"
        raise DataError(
            f"a floor needs n of at least 2 and {LEAST} real rows{known}, got {n} and {len(real)}"
        )
    real, _ = checked(real, real)
    strata = _strata(len(real), n, labels, classes)
    if sum(stratum.few for stratum in strata) < 2:
        raise DataError(
            f"a floor of {n} samples needs {LEAST} real rows of their classes: add rows"
        )
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


def noted_floor(
    real: Tensor, n: int, *, labels: Tensor | None = None, classes: int = 1
) -> tuple[float, str]:
    """The floor of n samples of so many classes in turn, and a note if it cannot be trusted.

    labels  class of each real row, -1 if unknown; None if all are

    The floor is 0 if it is unknown, because a class of the samples has no real rows. The note also says
    where real rows are too few, and where their classes are unknown.
    """
    if classes == 1:
        return sampling_floor(real, n), _too_few(*real.shape)
    if labels is not None:
        _refuse_other_labels(real, labels)
    known = 0 if labels is None else int((labels >= 0).sum())
    if labels is None or known < LEAST:
        few = _too_few(*real.shape)
        return sampling_floor(real, n), f"{BY_CHANCE}; {few}" if few else BY_CHANCE
    if missing := len(_missing(labels, n, classes)):
        return (
            0.0,
            f"unknown: {missing} of the {classes} classes of the samples have no real images",
        )
    return sampling_floor(real, n, labels=labels, classes=classes), _too_few(known, real.shape[1])


def _too_few(count: int, dimensions: int) -> str:
    """A note where the halves of so many real rows have too few for a covariance of full rank; else empty."""
    if count >= 2 * dimensions:
        return ""
    return f"too low: {count:,} real images, and {dimensions:,} features need {2 * dimensions:,}"


def _refuse_other_labels(real: Tensor, labels: Tensor) -> None:
    if len(labels) != len(real):
        raise DataError(
            f"{len(labels)} labels for {len(real)} real rows: give one label for each row"
        )


def _missing(labels: Tensor, n: int, classes: int) -> list[int]:
    """The classes that n samples take and no row has."""
    return sorted(set(range(min(n, classes))) - set(labels.unique().tolist()))


@dataclass(frozen=True)
class _Stratum:
    """The real rows of a class, its share of them, and its share and number of the samples."""

    rows: Tensor
    of_real: float
    of_samples: float
    samples: int

    @property
    def few(self) -> int:
        """The number of rows in the samples' part: of the samples, or of at most half of the rows."""
        return min(self.samples, max(len(self.rows) // 2, 1))

    def split(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows for the samples' part, as many as there are samples if half has them, and the others."""
        order = self.rows[torch.randperm(len(self.rows), generator=generator)]
        return order[: self.few], order[self.few :] if self.few < len(order) else order


def _strata(count: int, n: int, labels: Tensor | None, classes: int | None) -> list[_Stratum]:
    if labels is None:
        return [_Stratum(torch.arange(count), 1.0, 1.0, n)]
    present, sizes = labels.unique(return_counts=True)
    rows = int(present.max()) + 1
    classes = classes or rows
    if missing := _missing(present, n, classes):
        raise DataError(
            f"class {missing[0]} of the samples has no real rows: add some, or give no labels"
        )
    samples = torch.bincount(torch.arange(n) % classes, minlength=rows)[present]
    return [
        _Stratum((labels == label).nonzero()[:, 0], size / count, number / n, number)
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
