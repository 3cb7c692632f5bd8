"""A metric value with its measurement settings, comparable only to values with the same settings."""

from dataclasses import dataclass

from halfstep.errors import ConfigError
from halfstep.evaluation.features.registry import Features
from halfstep.evaluation.metrics.bootstrap import Interval


@dataclass(frozen=True)
class Measured:
    """An interval of a metric, and the settings that two comparable values share.

    metric          such as frechet_distance
    features        name of the feature network
    digest          sha256 of its weights; "" if unknown, and then names are compared
    preprocessing   in words
    samples         number of samples
    real            fingerprint of the real images (`features.cache.fingerprint`)
    real_samples    number of real images
    floor           expected value for perfect samples, if known; not compared
    guidance_scale  of the samples
    """

    interval: Interval
    metric: str
    features: str
    digest: str
    preprocessing: str
    samples: int
    real: str
    real_samples: int
    floor: float | None = None
    guidance_scale: float = 1.0

    @classmethod
    def through(
        cls,
        features: Features,
        metric: str,
        interval: Interval,
        *,
        samples: int,
        real: str,
        real_samples: int,
        floor: float | None = None,
    ) -> "Measured":
        """A value measured with these features."""
        name, digest, preprocessing = features.name, features.digest, features.preprocessing
        return cls(
            interval, metric, name, digest, preprocessing, samples, real, real_samples, floor
        )

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.interval}: {self.samples:,} samples against {self.real_samples:,} "
            f"real ones, features {self.features} ({self.preprocessing})"
        )

    def __lt__(self, other: "Measured") -> bool:
        """Compare values alone, ignoring the intervals (see `surely_below`)."""
        self.check_comparable(other)
        return self.interval.value < other.interval.value

    def surely_below(self, other: "Measured") -> bool:
        """Whether this interval lies wholly below the other."""
        self.check_comparable(other)
        return self.interval.high < other.interval.low

    def over(self, other: "Measured") -> Interval:
        """The ratio, with the least and the most that the two intervals allow as its interval.

        Wider than the interval of a ratio resampled in pairs (`basic_bootstrap`), which needs the
        features: for values read from reports.
        """
        self.check_comparable(other)
        above, below = self.interval, other.interval
        if min(below.low, below.value) <= 0:
            raise ConfigError(
                f"a ratio to {below} is undefined, because that may be 0: take more samples, or compare "
                "the two values themselves"
            )
        ends = [end / by for end in (above.low, above.high) for by in (below.low, below.high)]
        return Interval(above.value / below.value, min(ends), max(ends))

    def check_comparable(self, other: "Measured") -> None:
        """Raise `ConfigError` naming the settings in which the two measurements differ."""
        pairs = {
            "the metric": (self.metric, other.metric),
            "the features": (self.features, other.features),
            "the features' weights": (self.digest[:12], other.digest[:12]),
            "the preprocessing": (self.preprocessing, other.preprocessing),
            "the number of samples": (self.samples, other.samples),
            "the real data": (self.real[:12], other.real[:12]),
            "the number of real images": (self.real_samples, other.real_samples),
            "the guidance scale": (self.guidance_scale, other.guidance_scale),
        }
        # Equal weights are the same features, whatever folder they were loaded from.
        if self.digest and self.digest == other.digest:
            del pairs["the features"]
        differ = [f"{condition} ({a} against {b})" for condition, (a, b) in pairs.items() if a != b]
        if differ:
            raise ConfigError(
                f"{self.metric} {self.interval} and {other.metric} {other.interval} cannot be "
                f"compared, because they differ in {', '.join(differ)}: measure both in the same way"
            )
