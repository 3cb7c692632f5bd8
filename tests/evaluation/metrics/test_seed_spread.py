"""Ratios over seeds: intervals that cover the truth as often as they say, and are never of no width."""

import math
from statistics import stdev

import numpy as np
import pytest
import torch
from scipy import stats

from halfstep.errors import DataError
from halfstep.evaluation.metrics.distance_bootstrap import raw_frechet_ratio
from halfstep.evaluation.metrics.distances import frechet_distance
from halfstep.evaluation.metrics.seed_spread import SharedDistances
from tests.support.comparisons import shared

REAL = torch.randn(1500, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def noise(seed, n=300):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator, dtype=torch.float64)


def test_of_single_samplers_it_is_the_report_s_interval():
    z = noise(0)
    over, under = 1.4 * z, 1.2 * z
    found = SharedDistances.of(REAL, [under, over]).ratio([1], [0])
    expected = raw_frechet_ratio(REAL, over, under)
    for end in ("value", "low", "high"):
        assert getattr(found, end) == pytest.approx(getattr(expected, end), rel=1e-12)


def test_without_noise_of_samples_it_is_welch_s_interval():
    """Of log means, to first order in the spread."""
    a, b = [1.00, 1.02, 0.97], [1.10, 1.13, 1.08, 1.12]
    found = shared([*a, *b]).ratio([3, 4, 5, 6], [0, 1, 2])
    mean_a, mean_b = np.mean(a), np.mean(b)
    parts = [(stdev(x) / np.mean(x)) ** 2 / len(x) for x in (a, b)]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 3)
    width = stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    assert found.value == pytest.approx(mean_b / mean_a)
    assert math.log(found.high / found.value) == pytest.approx(width, rel=1e-6)
    assert math.log(found.value / found.low) == pytest.approx(width, rel=1e-6)


def test_equal_seeds_keep_the_noise_of_the_samples():
    """Three seeds with the same distances have no spread, and no interval of no width."""
    z = noise(1)
    samples = [1.2 * z, *[1.4 * z] * 3]
    many = SharedDistances.of(REAL, samples)
    found, single = many.ratio([1, 2, 3], [0]), many.ratio([1], [0])
    assert many.spread([1, 2, 3]) == 0
    assert found.high - found.low == pytest.approx(single.high - single.low, rel=0.15)


def test_what_two_share_is_no_noise_of_their_ratio():
    """Resamples that move both alike leave the ratio as it is."""
    apart = np.random.default_rng(0).normal(size=(200, 1)) * 0.1
    both = SharedDistances(np.array([1.0, 2.0]), apart * [1.0, 2.0])
    found = both.ratio([1], [0])
    assert found.high - found.low < 1e-12
    own = SharedDistances(np.array([1.0, 2.0]), apart * [1.0, 0.0]).ratio([1], [0])
    assert own.high - own.low > 0.5


def test_the_spread_is_pooled_over_methods():
    found = shared([1.0, 1.0, 2.0, 2.2, 1.8])
    assert found.spread([0, 1]) == 0
    assert found.spread([2, 3, 4]) == pytest.approx(0.1)
    assert found.spread([0, 1], [2, 3, 4]) == pytest.approx(math.sqrt(2 * 0.01 / 3))
    assert found.spread([0], [1]) is None


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_interval_covers_the_ratio_of_many_seeds_and_samples(seeds):
    """Two methods whose seeds differ, on samples of their own: the truth is that of endless seeds.

    A sampler of seed s draws (scale + e_s) z: its distance has the noise of the samples and that of the seed.
    """
    generator = np.random.default_rng(seeds)

    def drawn(scale, z, count):
        return [(scale + 0.02 * float(generator.normal())) * z for _ in range(count)]

    big = [noise(100 + k, 150) for k in range(60)]
    means = [
        np.mean([frechet_distance(REAL, x) for z in big for x in drawn(scale, z, 4)])
        for scale in (1.3, 1.4)
    ]
    truth, hits, trials = means[1] / means[0], 0, 60
    for trial in range(trials):
        z = noise(1000 + trial, 150)
        every = SharedDistances.of(REAL, [*drawn(1.3, z, seeds), *drawn(1.4, z, seeds)])
        found = every.ratio(range(seeds, 2 * seeds), range(seeds))
        assert found.low < found.value < found.high
        hits += found.low <= truth <= found.high
    # 95 % of 60, give or take three standard errors below; wider is safe, as the noise counts twice.
    assert hits >= 0.95 * trials - 3 * math.sqrt(trials * 0.95 * 0.05)


def test_a_higher_level_is_wider():
    found = shared([1.0, 1.02, 1.1, 1.13])
    narrow, wide = (found.ratio([2, 3], [0, 1], level=level) for level in (0.95, 0.99))
    assert wide.low < narrow.low and narrow.high < wide.high


def test_a_level_beyond_the_resamples_has_ends_all_the_same():
    """200 resamples have no 0.1 % quantile."""
    found = shared([1.0, 1.1], noise=0.02)
    usual, rare = (found.ratio([1], [0], level=level) for level in (0.95, 0.999))
    assert rare.low < usual.low and usual.high < rare.high
    apart = found.apart / found.measured
    deviation = (apart[:, 1] - apart[:, 0]).std(ddof=1)
    assert math.log(rare.high / rare.value) == pytest.approx(stats.t.ppf(0.9995, 199) * deviation)


def test_a_distance_of_0_has_no_ratio():
    with pytest.raises(DataError, match="0"):
        SharedDistances.of(torch.zeros(9, 3), [torch.zeros(5, 3)] * 2)
