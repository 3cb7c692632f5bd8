"""How sure a number is: an interval for any statistic, by resampling its rows.

For the distances themselves see `distance_intervals`, which knows each one's traps and short cuts.
All are reproducible: the rows drawn depend on the seed and the numbers of rows alone.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from halfstep.errors import ConfigError, DataError


@dataclass(frozen=True)
class Interval:
    """A number as measured, and where the true one lies.

    value      the statistic of the samples as they are, its bias included
    low, high  ends of the interval, for the truth: bias removed.  So `value` may lie outside, and does
               where the bias is larger than the noise (a Fréchet distance of few samples)
    """

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        """0.187 (0.181 to 0.194): two digits of the interval's width."""
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
) -> Interval:
    """The basic bootstrap interval 2v - q of a statistic (Davison & Hinkley 1997, eq. 5.6).

    statistic  of tensors, one a sample, in the order given (a tuple's one after another)
    samples    rows [n, ...] that are independent of each other are separate arguments; a tuple holds
               samples whose rows belong together (the same noise) and are drawn together, in pairs

    A bootstrap sample's distance is biased once more than the sample's own, so percentiles q of the
    resampled distances miss the truth by twice the bias; 2v - q takes it off instead.  Not for nearest
    neighbours (`precision_recall_intervals`) nor for an unbiased kernel distance (`kernel_interval`):
    both take a row's copies for rows of their own.
    """
    groups = [x if isinstance(x, tuple) else (x,) for x in samples]
    sizes = [shared_size(group) for group in groups]
    value = statistic(*(x for group in groups for x in group))
    draws = [
        statistic(
            *(x[at.to(x.device)] for group, at in zip(groups, rows, strict=True) for x in group)
        )
        for rows in resampled_rows(sizes, resamples, level, seed)
    ]
    return basic(value, draws, level)


def resampled_rows(
    sizes: list[int], resamples: int, level: float, seed: int, *, strata: int = 1
) -> Iterator[list[Tensor]]:
    """Rows with replacement, one tensor a sample, so many times.

    strata  row k stands for one of the rows k + i * strata: samples whose labels go in turn are as many
            of each class in every resample as they are of each set of samples
    """
    generator = seeded(resamples, level, seed)
    for _ in range(resamples):
        yield [_rows(n, min(strata, n), generator) for n in sizes]


def _rows(n: int, strata: int, generator: torch.Generator) -> Tensor:
    if strata == 1:
        return torch.randint(n, (n,), generator=generator)
    own = torch.arange(n) % strata
    members = (n - 1 - own) // strata + 1
    chance = torch.rand(n, generator=generator, dtype=torch.float64)
    return own + strata * (chance * members).long()


def seeded(resamples: int, level: float, seed: int) -> torch.Generator:
    """Seeded; `ConfigError` where the ends of the interval would lie outside so few resamples."""
    if not 0 < level < 1:
        raise ConfigError(f"level={level} is no share of cases: write one in (0, 1), such as 0.95")
    if resamples < (least := math.ceil(2 / (1 - level) - 1 - 1e-9)):
        raise ConfigError(
            f"{resamples} resamples cannot show the ends of a {level:.3g} interval: write resamples of "
            f"at least {least}"
        )
    return torch.Generator().manual_seed(seed)


def basic(value: float, draws: "np.ndarray | list[float]", level: float) -> Interval:
    """2v - q."""
    return Interval(value, *quantiles(2 * value - np.array(draws), level))


def quantiles(draws: np.ndarray, level: float) -> tuple[float, float]:
    """The ends, at (B + 1) p of B sorted draws; numpy's own B p is too narrow for few draws."""
    if not np.isfinite(draws).all():
        raise DataError("a statistic is not a finite number on some resamples: take more samples")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], method="weibull")
    return float(low), float(high)


def shared_size(group: tuple[Tensor, ...]) -> int:
    """The number of rows that a group's samples share."""
    if len(sizes := {len(x) for x in group}) != 1 or min(sizes) < 1:
        raise DataError(
            f"samples that are resampled in pairs need the same number of rows, got "
            f"{', '.join(str(len(x)) for x in group)}"
        )
    return len(group[0])
