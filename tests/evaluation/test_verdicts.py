"""The two verdicts on a student, a poor teacher, and how many samples an answer takes."""

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.distance_bootstrap import raw_frechet_ratio
from halfstep.evaluation.standing import BestBaseline
from halfstep.evaluation.verdicts import (
    against,
    best_baseline,
    floor_multiple,
    is_poor,
    MOST,
    nearest,
    samples_needed,
    samples_to_be_alike,
    tolerance_test,
    worst_scale,
)
from tests.support.evidence import evidence, guided, measured, typed
from tests.support.features import normal
from tests.support.verdicts import KEPT, with_rows

# ---- better than the undistilled teacher


@pytest.mark.parametrize(
    "low, high, answer",
    [
        (0.90, 0.99, "yes"), (0.90, 1.00, "cannot tell"), (0.985, 0.999, "yes"), (0.985, 1.015, "as good"),
        (0.97, 1.01, "cannot tell"), (0.99, 1.03, "cannot tell"), (1.001, 1.01, "no"), (1.0, 1.0, "as good"),
    ],
)  # fmt: skip
def test_the_whole_interval_decides(low, high, answer):
    """.490 against .484 with an interval from 0.4 to 1.8 is no certain no."""
    assert against(BestBaseline(("x",), Interval((low + high) / 2, low, high))) == answer
    assert against(BestBaseline(("x",), Interval(0.490 / 0.484, 0.4, 1.8))) == "cannot tell"
    assert against(None) == "no baseline" and against(BestBaseline(("x",), None)) == "cannot tell"


def test_a_measured_ratio_counts_and_else_that_of_the_two_rows():
    report = typed(evidence())
    eight, four, *_ = report.students
    best = best_baseline(report, four)
    other = next(row for row in report.rows if row.name == best.names[0])
    assert best.names == ("teacher, dpmpp-2m, 4 steps",)
    assert best.ratio == Interval(
        four.ratio.value / other.ratio.value,
        four.ratio.low / other.ratio.high,
        four.ratio.high / other.ratio.low,
    )
    own = BestBaseline(("teacher, ddim, 8 steps",), Interval(1.5, 1.4, 1.6))
    assert best_baseline(report, replace(eight, baseline=own)) == own
    assert against(own) == "no"
    without = replace(four, ratio=None)
    top, bottom = four.distances.frechet_distance, other.distances.frechet_distance
    assert best_baseline(report, without).ratio == Interval(
        top.value / bottom.value, top.low / bottom.high, top.high / bottom.low
    )


def test_the_nearest_baselines_have_at_most_as_many_calls_and_may_tie():
    baselines = typed(evidence()).rows_of("baseline")
    assert [(row.sampler, row.calls) for row in nearest(baselines, 8)] == [("dpmpp-2m", 8)]
    assert [(row.sampler, row.calls) for row in nearest(baselines, 7)] == [("heun", 7)]
    assert {row.sampler for row in nearest(baselines, 1)} == {"ddim", "heun", "dpmpp-2m"}
    assert nearest(baselines, 0) == []


# ---- good enough


def test_a_guided_student_is_held_to_the_tolerance_at_its_worst_scale():
    content = guided()
    report = typed(content)
    assert worst_scale(report.guided, 4).guidance_scale == 3.0
    assert worst_scale(report.guided, 3) is None
    four = report.students[1]
    by_data = tolerance_test(report, four)
    assert not by_data.guided and by_data.limit == 1.1 and by_data.samples == 2000
    content["run"]["gate"] |= {"about": {"guidance_scales": [1.0]}, "tolerance": 2.0}
    test = tolerance_test(typed(content), four)
    assert (test.guided, test.limit, test.samples) == (True, 2.0, 10_000)
    assert test.ratio == worst_scale(report.guided, 4).floor_ratio
    content["run"]["gate"] = None
    assert tolerance_test(typed(content), four).limit is None


def test_the_samples_of_the_gate_count_where_it_saw_more():
    content = with_rows(**KEPT)
    look = {"stage": "0004-steps", "steps": 4, "ratio": measured(1.07), "samples": 8000}
    content["run"]["gate"]["decisions"] = [look | {"verdict": "passed", "weights": "9" * 64}]
    report = typed(content)
    assert [tolerance_test(report, row).samples for row in report.students[:2]] == [2000, 8000]


# ---- a poor teacher


def with_teacher(distance, floor, samples=2000, real=1797):
    content = evidence()
    content["rows"][0]["distances"]["frechet_distance"] = measured(distance, 0.01)
    content["measure"] |= {"floor": floor, "samples": samples, "real": real}
    return typed(content)


def test_a_teacher_is_poor_from_ten_times_the_floor_on():
    assert floor_multiple(with_teacher(519, 32)) == pytest.approx(519 / 32)
    assert is_poor(with_teacher(519, 32)) and not is_poor(with_teacher(1.6, 0.32))
    assert is_poor(with_teacher(3.3, 0.32)) and not is_poor(with_teacher(3.1, 0.32))
    assert not is_poor(with_teacher(3.22, 0.32))  # its interval reaches below
    assert floor_multiple(with_teacher(1, 0.0)) is None and not is_poor(with_teacher(1, 0.0))


@pytest.mark.parametrize("samples", [500, 2000, 50_000])
def test_the_multiple_does_not_depend_on_the_number_of_samples(samples):
    """The excess over the floor is the teacher's own, and the floor is a constant times 1/n + 1/N."""
    excess, bias, real = 0.9, 300.0, 60_000
    floor = bias * (1 / samples + 1 / real)
    report = with_teacher(floor + excess, floor, samples, real)
    assert floor_multiple(report) == pytest.approx(1 + excess / (bias * (1 / 2000 + 1 / real)))


# ---- how many samples


def test_the_number_of_samples_is_the_textbooks():
    """To find a mean half a standard deviation off, at 5 % and with a power of 80 %, takes 32."""
    z, n = NormalDist().inv_cdf(0.975), 10
    half = z / math.sqrt(n)
    ratio = Interval(math.exp(0.5), math.exp(0.5 - half), math.exp(0.5 + half))
    assert samples_needed(ratio, 1.0, n) == 32
    below = Interval(math.exp(-0.5), math.exp(-0.5 - half), math.exp(-0.5 + half))
    assert samples_needed(below, 1.0, n) == 32
    wide = replace(ratio, high=math.exp(5))  # the end on the limit's side counts
    assert samples_needed(wide, 1.0, n) == 32 == samples_needed(replace(below, low=1e-3), 1.0, n)
    assert samples_needed(Interval(1.1, 1.0, 1.2), 1.1, 100) == MOST


def test_alike_is_shown_where_both_ends_lie_within():
    """Two one-sided tests: z(0.975) + z(0.9) standard errors of room where the ratio is 1."""
    z, n = NormalDist().inv_cdf(0.975), 400
    half = 0.05
    ratio = Interval(1.0, math.exp(-half), math.exp(half))
    expected = n * (half / z * (z + NormalDist().inv_cdf(0.9)) / math.log(1.02)) ** 2
    assert samples_to_be_alike(ratio, n) == math.ceil(expected)
    assert samples_to_be_alike(Interval(1.03, 1.0, 1.06), n) == MOST


def test_so_many_samples_do_decide():
    """The ratio of two samplers of the same noise, in blocks as the gate takes them."""
    real = normal(300, 3, 1)

    def ratio(blocks, seed):
        under = normal(60 * blocks, 3, seed)
        over = 1.02 * under + 0.05
        return raw_frechet_ratio(real, over, under, block=60, resamples=79)

    few = [ratio(2, seed) for seed in range(10, 22)]
    value = math.exp(np.mean([math.log(each.value) for each in few]))
    width = np.mean([math.log(each.high / each.low) for each in few]) / 2
    limit = value * math.exp(0.8 * width)  # of which so few samples cannot tell
    mean = Interval(value, value * math.exp(-width), value * math.exp(width))
    needed = samples_needed(mean, limit, 120)
    assert 120 < needed < 1000
    many = [ratio(round(needed / 60), seed) for seed in range(30, 50)]
    assert 0.55 <= np.mean([each.high <= limit for each in many]) <= 0.97
    assert np.mean([each.high <= limit for each in few]) < 0.5
