"""The mean over seeds and images: known intervals, and how often they are wrong where the truth is known."""

from math import sqrt
from statistics import stdev

import pytest
import torch
from scipy import stats

from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics.crossed_mean import crossed_mean, student_quantile


def half(values, level=0.95):
    mean = crossed_mean(torch.tensor(values, dtype=torch.float64))
    interval = mean.interval(level, least=-9, most=9)
    assert interval.high - mean.value == pytest.approx(mean.value - interval.low)
    return interval.high - mean.value


def test_seeds_alone_give_students_interval():
    """Every image has its seed's value."""
    by_seed = [0.1, 0.25, 0.4]
    expected = 4.302652729911275 * stdev(by_seed) / sqrt(3)
    assert half([[v] * 7 for v in by_seed]) == pytest.approx(expected)


def test_images_alone_give_the_normal_interval():
    """Every seed has its image's value."""
    by_image = [0.0, 1.0, -1.0, 0.5, 0.25]
    expected = 1.959963984540054 * stdev(by_image) / sqrt(5)
    assert half([by_image] * 3) == pytest.approx(expected)
    assert half([by_image]) == pytest.approx(expected)  # of one seed


def test_both_are_added_as_squares():
    seeds, images = [0.1, 0.25, 0.4], [0.0, 1.0, -1.0, 0.5, 0.25]
    a = 4.302652729911275 * stdev(seeds) / sqrt(3)
    b = 1.959963984540054 * stdev(images) / sqrt(5)
    assert half([[s + i for i in images] for s in seeds]) == pytest.approx(sqrt(a * a + b * b))


def test_parts_are_those_of_the_analysis_of_variance():
    """Mean squares by numpy alone, on numbers without any structure."""
    values = torch.randn(4, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = values.numpy()
    seeds, images = x.mean(1), x.mean(0)
    rest = ((x - seeds[:, None] - images + x.mean()) ** 2).sum() / (3 * 8)
    between = 4 * ((images - x.mean()) ** 2).sum() / 8
    mean = crossed_mean(values)
    assert mean.value == pytest.approx(x.mean())
    assert mean.seed_spread == pytest.approx(seeds.std(ddof=1))
    assert mean.rest_spread == pytest.approx(sqrt(rest / 9))
    assert mean.image_error == pytest.approx(sqrt(max(between - rest, 0) / (4 * 9)))


def test_seeds_that_agree_by_chance_are_not_believed():
    """Each of three seeds has another one of 50 images right: McNemar's 3 against 0 is no proof."""
    values = [[float(k == s) for k in range(50)] for s in range(3)]
    mean = crossed_mean(torch.tensor(values))
    assert mean.seed_spread == pytest.approx(0, abs=1e-12)
    assert half(values) == pytest.approx(1.96 * sqrt(3) / 150, rel=0.02)
    assert mean.interval(0.95).low < 0.001


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(
    "parts", [(0.1, 0.0, 0.3), (0.0, 0.3, 0.1), (0.05, 0.3, 0.3), (0.0, 0.0, 0.3)]
)
def test_intervals_hold_as_often_as_they_say(seeds, parts):
    """1,500 samples of Gaussian seeds, images and rest; a tenth of a point is two standard errors."""
    generator = torch.Generator().manual_seed(7 * seeds)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    wrong, runs = 0, 1500
    for _ in range(runs):
        a, b, c = parts
        values = a * noise(seeds, 1) + b * noise(1, 60) + c * noise(seeds, 60)
        interval = crossed_mean(values).interval()
        wrong += interval.low > 0 or interval.high < 0
    assert wrong / runs < 0.05 + 2 * sqrt(0.05 * 0.95 / runs)


def test_the_seeds_that_are_needed_are_the_fewest():
    values = torch.tensor([[0.2] * 6, [0.0] * 6, [0.1] * 6])
    mean = crossed_mean(values)
    needed = mean.seeds_needed(0.95)
    assert (
        needed == 7
    )  # t(5) 2.571 / sqrt(6) = 1.05, t(6) 2.447 / sqrt(7) = .925 of the spread, 0.1
    assert mean.half_width(needed, 0.95) < 0.1 <= mean.half_width(needed - 1, 0.95)
    assert mean.seeds_needed(0.95, 0.3) == 4  # 0.2 from it: t(3) / 2 = 1.59 of the spread
    assert crossed_mean(values[:1]).seeds_needed(0.95) is None
    only_images = torch.tensor([[1.0, -0.9, 0.1]] * 3)
    assert crossed_mean(only_images).seeds_needed(0.95) is None  # more images, not more seeds


def test_intervals_end_where_values_do():
    mean = crossed_mean(torch.tensor([[0.9] * 4, [0.1] * 4]))
    assert mean.interval(0.95, least=0.0) == type(mean.interval(0.95))(mean.value, 0.0, 1.0)
    assert mean.interval(0.95).low == -1.0


def test_quantiles_are_students():
    for tail, n in ((0.025, 3), (0.001, 2), (0.3, 40)):
        assert student_quantile(tail, n) == pytest.approx(stats.t.ppf(1 - tail, n - 1))


def test_refusals():
    with pytest.raises(DataError, match="at least 2 images"):
        crossed_mean(torch.ones(3, 1))
    with pytest.raises(DataError, match="seeds"):
        crossed_mean(torch.ones(3))
    for tail, n in ((0.0, 3), (0.1, 1)):
        with pytest.raises(ConfigError, match="two values or more"):
            student_quantile(tail, n)
