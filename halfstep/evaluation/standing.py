"""The two verdicts on a student, as RUN/report.json has them; `verdicts` decides them."""

from dataclasses import dataclass
from typing import Literal

from halfstep.evaluation.metrics.bootstrap import Interval

GoodEnough = Literal["yes", "no", "cannot tell", "poor teacher", "no tolerance", "not measured"]
Better = Literal["yes", "as good", "no", "cannot tell", "no baseline"]


@dataclass(frozen=True)
class BestBaseline:
    """The undistilled teacher with at most a student's network calls, by the sampler of the lowest distance.

    names  its row; several rows if they tie
    ratio  the student's Fréchet distance over the baseline's, paired; None if not measured
    """

    names: tuple[str, ...]
    ratio: Interval | None


@dataclass(frozen=True, kw_only=True)
class StudentVerdict:
    """The answers to two questions on one student.

    student       name of its row
    good_enough   whether its ratio to the teacher lies within the tolerance.  poor teacher: it does, but
                  the teacher itself is far from the data
    better        whether it is better than the undistilled teacher with at most as many network calls
    good_samples, better_samples  samples that would answer a question that these cannot, scored in blocks of
                  as many as the report's
    """

    student: str
    good_enough: GoodEnough
    better: Better
    good_samples: int | None = None
    better_samples: int | None = None
