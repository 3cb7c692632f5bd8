"""Shares of a count, each with an interval: accuracies."""

from math import sqrt

from halfstep.errors import ConfigError
from halfstep.evaluation.intervals import Interval

Z = 1.959963984540054
"""Of 95 %."""


def wilson(hits: int, n: int) -> Interval:
    """hits / n with its 95 % interval (Wilson 1927), which stays inside [0, 1]."""
    if not 0 <= hits <= n or n < 1:
        raise ConfigError(f"a share needs a count and hits among it, got {hits} of {n}")
    share, spread = hits / n, Z**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * sqrt(share * (1 - share) / n + spread / (4 * n))
    return Interval(share, min(middle - half, share), max(middle + half, share))
