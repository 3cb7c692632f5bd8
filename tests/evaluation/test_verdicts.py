"""The two verdicts on a student, a poor teacher, and how many samples an answer takes."""

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import torch

from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.distance_bootstrap import raw_frechet_ratio
from halfstep.evaluation.sample_sets import SampleScorer
from halfstep.evaluation.scorer import load_features
from halfstep.evaluation.standing import BestBaseline
from halfstep.evaluation.verdicts import (
    against,
    best_baseline,
    floor_multiple,
    is_poor,
    MOST,
    nearest,
    ratio_less_floor,
    samples_needed,
    samples_to_be_alike,
    tolerance_test,
    worst_ratio,
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
    assert worst_ratio(report.guided, 4).value == pytest.approx(1.45 * 1.15)  # at a scale of 3
    assert worst_ratio(report.guided, 3) is None
    four = report.students[1]
    by_data = tolerance_test(report, four)
    assert not by_data.guided and by_data.limit == 1.1 and by_data.samples == 2000
    content["run"]["gate"] |= {"about": {"guidance_scales": [1.0]}, "tolerance": 2.0}
    test = tolerance_test(typed(content), four)
    assert (test.guided, test.limit, test.samples, test.block) == (True, 2.0, 10_000, 10_000)
    assert test.ratio == worst_ratio(report.guided, 4)
    content["run"]["gate"] = None
    assert tolerance_test(typed(content), four).limit is None


@pytest.mark.parametrize(
    "first, second, answer",
    [
        ((1.05, 1.02, 1.08), (1.04, 0.90, 1.20), "cannot tell"),
        ((1.40, 1.05, 1.90), (1.30, 1.20, 1.40), "no"),
        ((1.05, 1.02, 1.08), (1.04, 0.90, 1.09), "yes"),
    ],
)
def test_of_a_guided_student_either_end_is_the_largest_of_all_scales(first, second, answer):
    """As the gate decides: it passes a student of which no scale may be beyond the tolerance."""
    content = guided()
    about = {"guidance_scales": [1.0, 3.0]}
    content["run"]["gate"] |= {"about": about, "tolerance": 1.1, "decisions": []}
    rows = [row for row in content["guided"]["rows"] if row["role"] == "student"]
    for row, found in zip(rows, (first, second), strict=False):
        row["floor_ratio"] = dict(zip(("value", "low", "high"), found, strict=True))
        row["steps"] = row["calls"] = 8
    content["guided"]["rows"] = [content["guided"]["rows"][0], *rows[:2]]
    report = typed(content)
    ends = (max(pair) for pair in zip(first, second, strict=True))
    assert tolerance_test(report, report.students[0]).ratio == Interval(*ends)
    assert report.verdicts[0].good_enough == answer


def test_the_samples_of_the_gate_count_where_it_saw_more():
    content = with_rows(**KEPT)
    look = {"stage": "0004-steps", "steps": 4, "ratio": measured(1.07), "samples": 8000}
    content["run"]["gate"]["decisions"] = [look | {"verdict": "passed", "weights": "9" * 64}]
    report = typed(content)
    tests = [tolerance_test(report, row) for row in report.students[:2]]
    assert [(test.samples, test.block) for test in tests] == [(2000, 2000), (8000, 2000)]


# ---- a poor teacher


def with_teacher(distance, floor, **measure):
    content = evidence()
    content["rows"][0]["distances"]["frechet_distance"] = measured(distance, 0.01)
    content["measure"] |= {"floor": floor} | measure
    return typed(content)


def test_a_teacher_is_poor_from_ten_times_the_floor_on():
    assert floor_multiple(with_teacher(519, 32)) == pytest.approx(519 / 32)
    assert is_poor(with_teacher(519, 32)) and not is_poor(with_teacher(1.6, 0.32))
    assert is_poor(with_teacher(3.3, 0.32)) and not is_poor(with_teacher(3.1, 0.32))
    assert not is_poor(with_teacher(3.22, 0.32))  # its interval reaches below
    assert floor_multiple(with_teacher(1, 0.0)) is None and not is_poor(with_teacher(1, 0.0))


@pytest.mark.parametrize("samples", [500, 2000, 50_000])
def test_the_multiple_does_not_depend_on_the_number_of_samples(samples):
    """The excess over the floor is the teacher's own; of the floor only a part shrinks with n."""
    excess, apart, bias = 9.0, 0.6, 300.0
    floor, at = (apart + bias / n for n in (samples, 2000))
    report = with_teacher(floor + excess, floor, samples=samples, floor_at_2000=at)
    assert floor_multiple(report) == pytest.approx(1 + 9 / 0.75) and is_poor(report)


def test_an_older_report_of_other_samples_has_no_multiple():
    report = with_teacher(519, 32, samples=500, floor_at_2000=None)
    assert floor_multiple(report) is None and not is_poor(report)


def test_an_unknown_floor_of_few_samples_has_no_multiple():
    """Fewer samples than classes: their distance has a floor that is not known, and is no excess."""
    report = with_teacher(519, 0.0, samples=50, floor_at_2000=8.0)
    assert floor_multiple(report) is None and not is_poor(report)


def test_shares_of_classes_do_not_shrink_with_the_samples():
    """Data of .7, .2, .08 and .02, classes in turn: a teacher 5 above a floor of 10.8 is not poor."""
    generator = torch.Generator().manual_seed(1)
    shares = torch.tensor([0.7, 0.2, 0.08, 0.02])
    labels = torch.multinomial(shares, 1000, replacement=True, generator=generator)
    real = normal(1000, 3, 2) + 4 * torch.nn.functional.one_hot(labels, 4)[:, :3]
    same = {"known_features": real, "classes": 4, "labels": labels}
    few, many = (
        SampleScorer(load_features("coordinates"), real, n=n, **same) for n in (50, 10_000)
    )
    at = few.floor_of(2000)
    assert at == many.floor_of(2000) == SampleScorer(few.features, real, n=2000, **same).floor
    assert few.floor < 1.5 * at and at < 1.5 * many.floor
    for scorer in (few, many):
        report = with_teacher(scorer.floor + 5, scorer.floor, samples=scorer.n, floor_at_2000=at)
        assert floor_multiple(report) == pytest.approx(1 + 5 / at) and not is_poor(report)


def test_a_guided_teacher_leaves_the_data_on_purpose():
    assert is_poor(with_teacher(519, 32, guidance_scale=1.0))
    assert not is_poor(with_teacher(519, 32, guidance_scale=2.0))
    content = guided()
    content["measure"]["floor"] = 0.001
    assert is_poor(typed(content))  # its gate compares with the data
    content["run"]["gate"] |= {"about": {"guidance_scales": [1.0]}, "tolerance": 9.0}
    report = typed(content)
    assert not is_poor(report) and {one.good_enough for one in report.verdicts} == {"yes"}


def test_the_ratio_less_the_floor_needs_a_teacher_surely_above_it():
    """By hand: (0.178 - 0.096) / (0.173 - 0.096); the teacher's interval begins at 0.167."""
    report = typed(evidence())
    eight = report.students[0]
    assert ratio_less_floor(report, eight) == pytest.approx(0.082 / 0.077)
    assert ratio_less_floor(report, report.teacher) == 1

    def at(floor):
        return replace(report, measure=replace(report.measure, floor=floor))

    assert ratio_less_floor(at(0.168), eight) is None and ratio_less_floor(at(0.2), eight) is None
    assert ratio_less_floor(at(0.0), eight) is None  # unknown
    frechet = replace(eight.distances, frechet_distance=Interval(0.09, 0.08, 0.1))
    assert ratio_less_floor(report, replace(eight, distances=frechet)) == 0


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
    assert samples_needed(Interval(1.2, 0.0, 1.5), 1.1, 100) == MOST
    assert samples_needed(Interval(0.0, 0.0, 1.5), 1.1, 100) == MOST


def test_alike_is_shown_where_both_ends_lie_within():
    """Two one-sided tests: z(0.975) + z(0.9) standard errors of room where the ratio is 1."""
    z, n = NormalDist().inv_cdf(0.975), 400
    half = 0.05
    ratio = Interval(1.0, math.exp(-half), math.exp(half))
    expected = n * (half / z * (z + NormalDist().inv_cdf(0.9)) / math.log(1.02)) ** 2
    assert samples_to_be_alike(ratio, n) == math.ceil(expected)
    assert samples_to_be_alike(Interval(1.03, 1.0, 1.06), n) == MOST
    assert samples_to_be_alike(Interval(1.0, 0.0, 1.06), n) == MOST


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
