"""The mean over students of several seeds and over test images, with an interval that covers both.

The images are the same for every seed (two crossed random factors; Searle, Casella & McCulloch 1992, chapter
4): values[s, i] = mean + seed[s] + image[i] + rest[s, i].
"""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

from torch import Tensor

from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics.bootstrap import Interval

MOST_SEEDS = 1000


@dataclass(frozen=True)
class CrossedMean:
    """A mean over seeds and images.

    seed_spread   standard deviation of the seeds' means; None for one seed
    rest_spread   its part by chance: as if every seed's value of an image were drawn anew
    image_error   standard error that the choice of the images adds
    """

    value: float
    seeds: int
    seed_spread: float | None
    rest_spread: float
    image_error: float

    def interval(self, level: float = 0.95, *, least: float = -1.0, most: float = 1.0) -> Interval:
        """The interval for new seeds and new images; of one seed, for new images alone.

        least, most  ends of the values' range, at which the interval ends too
        """
        half = self.half_width(self.seeds, level)
        return Interval(self.value, max(self.value - half, least), min(self.value + half, most))

    def half_width(self, seeds: int, level: float) -> float:
        """Half the width of the interval if so many seeds had this spread.

        The half-widths of the seeds (Student's t) and of the images (normal) are added as squares: the method
        of variance estimates recovery (Zou & Donner 2008), which stays above its level with few seeds, where
        Satterthwaite's degrees of freedom do not.  Counts of few images agree by chance: the part of the
        seeds is at least as wide as in McNemar's test (1947) of all their images.
        """
        tail = (1 - level) / 2
        normal = -NormalDist().inv_cdf(tail)
        if self.seed_spread is None:
            return normal * self.image_error
        by_seed = max(student_quantile(tail, seeds) * self.seed_spread, normal * self.rest_spread)
        return sqrt(by_seed**2 / seeds + (normal * self.image_error) ** 2)

    def seeds_needed(self, level: float, bound: float = 0.0) -> int | None:
        """The fewest seeds whose interval would leave out `bound` if mean and spread stayed.

        None if more seeds alone would not do: one seed has no spread, and the images have an error too.
        """
        if self.seed_spread is None:
            return None
        distance, low, high = abs(self.value - bound), self.seeds, MOST_SEEDS
        if self.half_width(high, level) >= distance:
            return None
        while low < high:
            middle = (low + high) // 2
            if self.half_width(middle, level) < distance:
                high = middle
            else:
                low = middle + 1
        return high


def crossed_mean(values: Tensor) -> CrossedMean:
    """The mean of values [seeds, images] and both parts of its error.

    The part that belongs to a seed and an image together is in the seeds' spread already, and is taken from
    the images' part, where it would count twice.

    `DataError` for fewer than two images or no seed.
    """
    if values.ndim != 2 or len(values) < 1 or values.shape[1] < 2:
        raise DataError(
            f"a mean over seeds and images needs values [seeds, images] of at least 2 images, got "
            f"{list(values.shape)}: give more test images"
        )
    values = values.double()
    seeds, images = values.shape
    value, by_seed, by_image = values.mean(), values.mean(1), values.mean(0)
    variance = float(by_image.var()) / images
    if seeds == 1:
        return CrossedMean(float(value), 1, None, 0.0, sqrt(variance))
    rest = values - by_seed[:, None] - by_image + value
    shared = float(rest.square().sum()) / ((seeds - 1) * (images - 1)) / images
    image_error = sqrt(max(variance - shared / seeds, 0.0))
    return CrossedMean(float(value), seeds, float(by_seed.std()), sqrt(shared), image_error)


def student_quantile(tail: float, n: int) -> float:
    """The quantile of Student's t with n - 1 degrees of freedom that has `tail` above it."""
    from scipy.special import stdtrit

    if not 0 < tail < 1 or n < 2:
        raise ConfigError(
            f"a quantile of Student's t needs a tail in (0, 1) and two values or more, got {tail:g} and {n}: "
            "write for example 0.025 and 3"
        )
    return -float(stdtrit(n - 1, tail))
