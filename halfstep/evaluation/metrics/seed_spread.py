"""Ratios of mean Fréchet distances over seeds, with the noise of the samples and that of the seeds.

The samples of all samplers come from the same noise, so that their distances are resampled together; the
seeds of a training are independent.  Both errors add: the resamples hold the trained networks, and the spread
over seeds holds the noise of the samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics.bootstrap import Interval, quantiles
from halfstep.evaluation.metrics.distance_bootstrap import raw_frechet_draws

LEVEL = 0.95


@dataclass(frozen=True)
class SharedDistances:
    """The Fréchet distances of several samplers of the same noise, and their resamples.

    measured  float64 [samplers]
    apart     float64 [resamples, samplers]: each resample less the mean of all, the same rows in each row
    """

    measured: NDArray[np.float64]
    apart: NDArray[np.float64]

    @classmethod
    def of(cls, real: Tensor, samples: Sequence[Tensor], *, strata: int = 1) -> "SharedDistances":
        """Measure the samplers' features, float [n, D] each, against the real ones, float [N, D].

        Args:
            real: features of the real data, which stay as they are.
            samples: features of each sampler, row k from noise k.
            strata: number of classes, for samples with cyclic labels.

        Raises:
            DataError: a distance of 0, which has no ratio.
        """
        measured, draws = raw_frechet_draws(real, tuple(samples), strata=strata)
        if min(measured) <= 0:
            raise DataError(
                "a ratio over a distance of 0, or of it, is undefined: take more samples"
            )
        return cls(np.array(measured), draws - draws.mean(0))

    def mean(self, seeds: Sequence[int]) -> float:
        """The mean distance of these samplers.

        Args:
            seeds: their numbers.
        """
        return float(self.measured[list(seeds)].mean())

    def ratio(self, over: Sequence[int], under: Sequence[int], *, level: float = LEVEL) -> Interval:
        """The mean distance of some samplers over that of others, which may be a single one.

        Of two single samplers, the interval of `raw_frechet_ratio`.  Otherwise, and at a level that needs
        more resamples, that of the logarithm of the ratio by Student's t, with the variance of the means over
        seeds and that of the resamples, and the degrees of freedom of Welch (1947) and Satterthwaite (1946).
        A single sampler has no variance over seeds: of a method with one seed the interval holds the noise of
        its samples alone.

        Args:
            over: numbers of the samplers above, one for each seed.
            under: numbers of those below.
            level: of confidence.
        """
        value = self.mean(over) / self.mean(under)
        apart = self._apart(over) - self._apart(under)
        parts = [self._of_seeds(group) for group in (over, under) if len(group) > 1]
        if not parts and len(apart) >= 2 / (1 - level) - 1 - 1e-9:
            ends = np.exp(quantiles((-apart).clip(-50, 50), level))
            return Interval(value, *(float(end) * value for end in ends))
        parts.append((float(apart.var(ddof=1)), len(apart) - 1))
        width = _half_width(parts, level)
        return Interval(value, value * math.exp(-width), value * math.exp(width))

    def spread(self, *groups: Sequence[int]) -> float | None:
        """How much distances differ from seed to seed, as a share of their mean; None of single seeds.

        Args:
            groups: numbers of the samplers of each method; variances are pooled by their degrees of freedom.
        """
        several = [group for group in groups if len(group) > 1]
        if not several:
            return None
        squares = sum(_relative(self.measured[list(g)]).var(ddof=1) * (len(g) - 1) for g in several)
        return math.sqrt(squares / sum(len(group) - 1 for group in several))

    def _apart(self, group: Sequence[int]) -> NDArray[np.float64]:
        """The resamples' mean distance, relative to the measured one."""
        return np.asarray(self.apart[:, list(group)].mean(1) / self.mean(group))

    def _of_seeds(self, group: Sequence[int]) -> tuple[float, int]:
        """The variance of the mean over seeds, relative to it, and its degrees of freedom."""
        distances = _relative(self.measured[list(group)])
        return float(distances.var(ddof=1) / len(group)), len(group) - 1


def _relative(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(distances / distances.mean())


def _half_width(parts: Sequence[tuple[float, int]], level: float) -> float:
    """Half the width of an interval whose error is the sum of parts (variance, degrees of freedom)."""
    from scipy.special import stdtrit

    if not 0 < level < 1:
        raise ConfigError(f"level={level} lies outside (0, 1): write for example level=0.95")
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0
    freedom = variance**2 / sum(part**2 / count for part, count in parts)
    return float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(variance)
