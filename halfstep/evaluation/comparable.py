"""A distance that knows how it was measured, and refuses to be compared with one measured otherwise."""

from dataclasses import dataclass

from halfstep.errors import ConfigError
from halfstep.evaluation.features.registry import Features
from halfstep.evaluation.metrics.bootstrap import Interval


@dataclass(frozen=True)
class Measured:
    """An interval, and everything that has to agree before it may be compared.

    metric         such as frechet_distance
    features       the name of the feature network
    digest         of its weights; "" where they are not known, and then the name decides
    preprocessing  in words
    samples        how many were drawn
    real           fingerprint of the real images (`statistics.fingerprint`)
    real_samples   how many they are
    floor          what perfect samples would score, where known; it is no condition
    guidance_scale of the samples
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
        """With the name, digest and preprocessing of these features."""
        return cls(
            interval,
            metric,
            features.name,
            features.digest,
            features.preprocessing,
            samples,
            real,
            real_samples,
            floor,
        )

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.interval}: {self.samples:,} samples against {self.real_samples:,} "
            f"real ones, features {self.features} ({self.preprocessing})"
        )

    def __lt__(self, other: "Measured") -> bool:
        """By value alone: noise may have decided (see `surely_below`)."""
        self.check_comparable(other)
        return self.interval.value < other.interval.value

    def surely_below(self, other: "Measured") -> bool:
        """Whether the intervals do not touch, this one the lower."""
        self.check_comparable(other)
        return self.interval.high < other.interval.low

    def over(self, other: "Measured") -> Interval:
        """The ratio, between the least and the most that the two intervals allow.

        Wider than the interval of a ratio resampled in pairs (`basic_bootstrap`), which needs the
        features themselves: for numbers that are all that is left, such as two runs' reports.
        """
        self.check_comparable(other)
        above, below = self.interval, other.interval
        if min(below.low, below.value) <= 0:
            raise ConfigError(
                f"a ratio to {below} is none, for what it is taken to may be 0: take more "
                "samples, or compare the two as they are"
            )
        ends = [end / by for end in (above.low, above.high) for by in (below.low, below.high)]
        return Interval(above.value / below.value, min(ends), max(ends))

    def check_comparable(self, other: "Measured") -> None:
        """`ConfigError` naming whatever differs in how the two were measured."""
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
        # A classifier under another folder's name is the same features while its weights are.
        if self.digest and self.digest == other.digest:
            del pairs["the features"]
        differ = [f"{what} ({a} against {b})" for what, (a, b) in pairs.items() if a != b]
        if differ:
            raise ConfigError(
                f"{self.metric} {self.interval} and {other.metric} {other.interval} cannot be "
                f"compared, for they differ in {', '.join(differ)}: measure both in the same way"
            )
