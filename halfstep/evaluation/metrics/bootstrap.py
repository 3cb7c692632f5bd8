"""Bootstrap interval of any statistic.

For the distances see `distance_bootstrap`.  All intervals are reproducible: the rows drawn depend on the
seed and the numbers of rows alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from halfstep.errors import ConfigError, DataError

LEAST_A_CLASS = 5
"""Fewer rows a class are resampled regardless of classes."""


@dataclass(frozen=True)
class Interval:
    """A measured value, and a confidence interval of the true one.

    Args:
        value: the statistic of the samples, its bias included.
        low: lower end of the interval, bias removed. So `value` lies outside if the bias is larger than
            the noise (a Fréchet distance of few samples).
        high: upper end of the interval, bias removed.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Such as "0.187 (0.181 to 0.194)", with two digits of the interval's width."""
        width = self.high - self.low
        places = 3 if width <= 0 else min(max(1 - math.floor(math.log10(width)), 0), 9)
        value, low, high = (f"{x:.{places}f}" for x in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"


def basic_bootstrap(
    statistic: Callable[..., float],
    *samples: Tensor | tuple[Tensor, ...],
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
    strata: int = 1,
) -> Interval:
    """The basic bootstrap interval 2v - q of a statistic (Davison & Hinkley 1997, eq. 5.6).

    statistic  function of one tensor per sample, in order (those of a tuple one after another)
    samples    rows [n, ...]; independent samples are separate arguments, and a tuple holds samples of the
               same noise, whose rows are drawn together in pairs
    strata     number of classes, for samples with cyclic labels (see `resampled_rows`)

    A bootstrap sample's distance is biased once more than the sample's own, so percentiles q of the
    resampled distances miss the truth by twice the bias; 2v - q removes it instead.  Not for nearest
    neighbours (`precision_recall_intervals`) or for an unbiased kernel distance (`kernel_interval`):
    both mistake copies of a row for other rows.
    """
    groups = [x if isinstance(x, tuple) else (x,) for x in samples]
    sizes = [shared_size(group) for group in groups]
    value = statistic(*(x for group in groups for x in group))
    draws = [
        statistic(
            *(x[at.to(x.device)] for group, at in zip(groups, rows, strict=True) for x in group)
        )
        for rows in resampled_rows(sizes, resamples, level, seed, strata=strata)
    ]
    return basic(value, draws, level)


def resampled_rows(
    sizes: list[int],
    resamples: int,
    level: float,
    seed: int,
    *,
    strata: int | Sequence[int] = 1,
) -> Iterator[list[Tensor]]:
    """Draw row numbers with replacement, one tensor per sample, `resamples` times.

    strata  row k is replaced by one of the rows k + i * strata.  With the number of classes, every resample
            of samples with cyclic labels keeps the number of each class.  One number, or one for each sample.
            Fewer than 5 rows a class are resampled as if of one class (see `kept_strata`)
    """
    generator = seeded(resamples, level, seed)
    each = [strata] * len(sizes) if isinstance(strata, int) else strata
    for _ in range(resamples):
        yield [_rows(n, kept_strata(n, k), generator) for n, k in zip(sizes, each, strict=True)]


def kept_strata(n: int, strata: int) -> int:
    """The strata of n rows, or 1 for fewer than 5 rows a class.

    Drawing from m rows of a class spreads by (m - 1) / m of the class's own variance, and from one row not
    at all: intervals of 1 to 4 rows a class are too narrow.  Regardless of classes they cover, and are wide.
    """
    return strata if n >= LEAST_A_CLASS * strata else 1


def _rows(n: int, strata: int, generator: torch.Generator) -> Tensor:
    if strata == 1:
        return torch.randint(n, (n,), generator=generator)
    stratum = torch.arange(n) % strata
    members = (n - 1 - stratum) // strata + 1
    chance = torch.rand(n, generator=generator, dtype=torch.float64)
    return stratum + strata * (chance * members).long()


def seeded(resamples: int, level: float, seed: int) -> torch.Generator:
    """A seeded generator; `ConfigError` for fewer resamples than the interval needs."""
    if not 0 < level < 1:
        raise ConfigError(f"level={level} lies outside (0, 1): write for example level=0.95")
    if resamples < (least := math.ceil(2 / (1 - level) - 1 - 1e-9)):
        raise ConfigError(
            f"{resamples} resamples are too few for a {level:.3g} interval: write resamples={least} or more"
        )
    return torch.Generator().manual_seed(seed)


def basic(value: float, draws: "np.ndarray | list[float]", level: float) -> Interval:
    """The basic bootstrap interval 2v - q."""
    return Interval(value, *quantiles(2 * value - np.array(draws), level))


def quantiles(draws: np.ndarray, level: float) -> tuple[float, float]:
    """The quantiles at (B + 1) p of B sorted draws; numpy's default B p is too narrow for few draws."""
    if not np.isfinite(draws).all():
        raise DataError("a statistic is not finite on some resamples: take more samples")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], method="weibull")
    return float(low), float(high)


def shared_size(group: tuple[Tensor, ...]) -> int:
    """The common number of rows of paired samples."""
    if len(sizes := {len(x) for x in group}) != 1 or min(sizes) < 1:
        raise DataError(
            f"samples that are resampled in pairs need the same number of rows, got "
            f"{', '.join(str(len(x)) for x in group)}"
        )
    return len(group[0])
