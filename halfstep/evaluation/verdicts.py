"""Decide on each student: is it good enough, and is it better than the undistilled teacher?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from halfstep.evaluation.gate import decide, Decision
from halfstep.evaluation.gate_meter import largest
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.report_data import GuidedTable, Measurement, Report, Row
from halfstep.evaluation.standing import BestBaseline, Better, GoodEnough, StudentVerdict

ALIKE = 1.02
"""Distances within this ratio of each other are as good, as for `--start auto`."""
POOR = 10.0
"""From this multiple of the floor on a teacher is poor.  A tolerance of 1.10 then allows a student a whole
floor more than its teacher: as much as perfect samples are from the data."""
AT = 2000
"""The number of samples at which a teacher is compared with the floor: the default of an evaluation."""
LEVEL, POWER = 0.95, 0.8
"""Confidence of the intervals, and the probability with which `samples_needed` samples decide."""
MOST = 10_000_000
"""`samples_needed` counts up to this number."""


def verdicts(report: Report) -> tuple[StudentVerdict, ...]:
    """The verdicts on all students, most network calls first."""
    return tuple(_verdict(report, row) for row in report.students)


def _verdict(report: Report, row: Row) -> StudentVerdict:
    test, rival = tolerance_test(report, row), best_baseline(report, row)
    good, better, n = good_enough(report, row), against(rival), report.measure.samples
    good_samples = better_samples = None
    if good == "cannot tell" and test.ratio and test.limit:
        good_samples = samples_needed(test.ratio, test.limit, test.samples)
    if better == "cannot tell" and rival and rival.ratio:
        better_samples = min(
            samples_needed(rival.ratio, 1.0, n), samples_to_be_alike(rival.ratio, n)
        )
    return StudentVerdict(
        student=row.name,
        good_enough=good,
        better=better,
        good_samples=good_samples,
        better_samples=better_samples,
    )


# ---- good enough


@dataclass(frozen=True)
class ToleranceTest:
    """The ratio of a student that is compared with the tolerance, and the samples that it is from.

    block   more samples are scored in blocks of so many, as the gate scores them, which keeps the floor
    guided  whether it is the distance to the guided teacher over the teacher's own, the largest of all scales
    """

    ratio: Interval | None
    limit: float | None
    samples: int
    block: int
    guided: bool = False


def tolerance_test(report: Report, row: Row) -> ToleranceTest:
    """Students with the scale as an input are compared with the guided teacher, unless the gate compared
    them with the data."""
    gate, limit, guided = report.run.gate, tolerance(report), _guided_teacher(report)
    if guided is None:
        looks = [decision.samples for decision in _gate_decisions(report, row)]
        block = report.measure.samples
        return ToleranceTest(decisive_ratio(report, row), limit, max([block, *looks]), block)
    guided_limit, n = gate.tolerance if gate else None, guided.reference.samples
    return ToleranceTest(worst_ratio(guided, row.steps), guided_limit, n, n, guided=True)


def good_enough(report: Report, row: Row) -> GoodEnough:
    """Whether the whole interval of the student's ratio to its teacher lies within the tolerance."""
    test = tolerance_test(report, row)
    if test.ratio is None:
        return "not measured"
    if test.limit is None:
        return "no tolerance"
    verdict = decide(test.ratio, test.limit)
    if verdict == "passed":
        return "poor teacher" if is_poor(report) else "yes"
    return "no" if verdict == "broken" else "cannot tell"


def tolerance(report: Report) -> float | None:
    """The tolerance of the run's gate; None without a gate.

    None for a guided run too, whose gate compares with the guided teacher instead of the data.
    """
    gate = report.run.gate
    return None if gate is None or "guidance_scales" in gate.about else gate.tolerance


def decisive_ratio(report: Report, row: Row) -> Interval | None:
    """The student's Fréchet distance over its teacher's; the gate's if measured with more samples."""
    more = [d for d in _gate_decisions(report, row) if d.samples > report.measure.samples]
    best = max(more, key=lambda decision: decision.samples, default=None)
    return best.ratio if best else row.ratio


def worst_ratio(guided: GuidedTable, steps: int) -> Interval | None:
    """A student's largest ratio over all scales, and the largest of either end, as the gate's."""
    rows = [row for row in guided.rows if (row.role, row.steps) == ("student", steps)]
    measured = [row.floor_ratio for row in rows if row.floor_ratio]
    return largest(measured) if measured else None


def _guided_teacher(report: Report) -> GuidedTable | None:
    """The table of the guided teacher that students are compared with; None if it is the data."""
    guided = report.guided
    return guided if guided and guided.rows and tolerance(report) is None else None


def _gate_decisions(report: Report, row: Row) -> list[Decision]:
    """The gate's decisions on this student, if the gate has the report's settings."""
    gate, how, full = report.run.gate, report.measure, report.teacher
    if gate is None or full.sampler != "ddim":  # the gate's full steps are DDIM's
        return []
    same = {
        "features": how.features,
        "digest": how.digest,
        "preprocessing": how.preprocessing,
        "data": how.data,
        "samples": how.samples,
        "seed": how.seed,
        "full": full.steps,
    }
    if any(gate.about.get(name) != value for name, value in same.items()):
        return []
    return [decision for decision in gate.decisions if decision.steps == row.steps]


# ---- the teacher itself


def floor_multiple(report: Report) -> float | None:
    """How many times the floor the teacher's distance is, as 2,000 samples would score it; None without one.

    The excess over the floor does not depend on the number of samples, so one limit holds for every number.
    """
    return _multiple(report.measure, report.teacher.distances.frechet_distance.value)


def is_poor(report: Report) -> bool:
    """Whether the teacher's distance is surely `POOR` times the floor or more.

    A guided teacher is not: guidance leaves the data on purpose.
    """
    if report.measure.guidance_scale != 1 or _guided_teacher(report) is not None:
        return False
    distance = report.teacher.distances.frechet_distance
    least = _multiple(report.measure, min(distance.low, distance.value))
    return least is not None and least >= POOR


def _multiple(how: Measurement, distance: float) -> float | None:
    floor = how.floor if how.samples == AT else how.floor_at_2000
    if floor is None or min(floor, how.floor) <= 0:  # 0 is unknown
        return None
    return 1 + (distance - how.floor) / floor


def ratio_less_floor(report: Report, row: Row) -> float | None:
    """A row's distance over the teacher's, each less the floor; None if that is unknown or the teacher's."""
    floor, full = report.measure.floor, report.teacher.distances.frechet_distance
    if not 0 < floor < min(full.low, full.value):
        return None
    return max(row.distances.frechet_distance.value - floor, 0) / (full.value - floor)


# ---- better than the undistilled teacher


def nearest(baselines: Sequence[Row], limit: int) -> list[Row]:
    """The baselines nearest to the data with at most `limit` network calls: several if they tie."""
    fitting = [row for row in baselines if row.calls <= limit]
    least = min((row.distances.frechet_distance.value for row in fitting), default=0.0)
    tied = [
        row
        for row in fitting
        if math.isclose(row.distances.frechet_distance.value, least, rel_tol=1e-6)
    ]
    return sorted(tied, key=lambda row: row.calls)


def best_baseline(report: Report, row: Row) -> BestBaseline | None:
    """The best baseline as measured; else its name with a ratio from the rows; None without a baseline."""
    if row.baseline is not None:
        return row.baseline
    if not (tied := nearest(report.rows_of("baseline"), row.calls)):
        return None
    return BestBaseline(tuple(other.name for other in tied), _unpaired(row, tied[0]))


def _unpaired(row: Row, other: Row) -> Interval | None:
    """The ratio of two rows, as wide as the intervals of their ratios to the teacher allow."""
    a, b = row.ratio, other.ratio
    if a is None or b is None:
        a, b = row.distances.frechet_distance, other.distances.frechet_distance
    if min(a.low, a.value, b.low, b.value) <= 0:
        return None
    return Interval(a.value / b.value, a.low / b.high, a.high / b.low)


def against(rival: BestBaseline | None) -> Better:
    """Whether a student is better than its best baseline: surely, as good, surely not, or undecided."""
    if rival is None:
        return "no baseline"
    ratio = rival.ratio
    if ratio is None:
        return "cannot tell"
    if ratio.high < 1:
        return "yes"
    if ratio.low > 1:
        return "no"
    return "as good" if ratio.low >= 1 / ALIKE and ratio.high <= ALIKE else "cannot tell"


# ---- how many samples it takes


def samples_needed(ratio: Interval, limit: float, n: int) -> int:
    """About how many samples would decide on which side of the limit a ratio lies, if n do not.

    They are scored in blocks of as many as the ratio's, which keep the floor and so the expected ratio.
    The interval of the logarithm has a width proportional to n^(-1/2).  Samples decide with probability
    `POWER` if the value is z(0.975) + z(0.8) standard errors from the limit (Cohen 1988, section 2).
    """
    end = ratio.low if ratio.value > limit else ratio.high
    if min(end, ratio.value) <= 0:
        return MOST
    distance = math.log(ratio.value / limit)
    return _enough(abs(math.log(end / ratio.value)), abs(distance), n, POWER)


def samples_to_be_alike(ratio: Interval, n: int) -> int:
    """About how many samples would show that two distances are within `ALIKE` of each other."""
    if min(ratio.low, ratio.value) <= 0:
        return MOST
    room = math.log(ALIKE) - abs(math.log(ratio.value))
    width = max(math.log(ratio.high / ratio.value), math.log(ratio.value / ratio.low))
    return _enough(width, room, n, (1 + POWER) / 2)  # either end may miss


def _enough(half_width: float, distance: float, n: int, power: float) -> int:
    normal = NormalDist()
    confident = normal.inv_cdf((1 + LEVEL) / 2)
    if distance <= 0:
        return MOST
    standard_error = half_width / confident
    factor = (standard_error * (confident + normal.inv_cdf(power)) / distance) ** 2
    return min(math.ceil(n * factor - 1e-9), MOST)
