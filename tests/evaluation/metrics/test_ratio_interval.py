"""The interval of a ratio of two Fréchet distances, which the gate compares with its tolerance."""

import numpy as np
import pytest
import torch

from halfstep.errors import DataError
from halfstep.evaluation import (
    frechet_distance,
    Interval,
)
from halfstep.evaluation.metrics.bootstrap import quantiles, resampled_rows
from halfstep.evaluation.metrics.distance_bootstrap import raw_frechet_ratio
from tests.support.denoisers import seeded


def pairs(n, seed, size=4):
    """Features of two samplers of the same noise, one worse than the other."""
    z = torch.randn(n, size, generator=seeded(seed), dtype=torch.float64)
    noise = torch.randn(n, size, generator=seeded(10_000 + seed), dtype=torch.float64)
    return 1.35 * z + 0.1 * noise + 0.2, 1.2 * z + 0.12


def resampled(real, over, under, resamples, level=0.95):
    """Both distances, and their resamples [resamples, 2], by `frechet_distance` alone."""
    draws = [
        (frechet_distance(real, over[rows]), frechet_distance(real, under[rows]))
        for (rows,) in resampled_rows([len(over)], resamples, level, 0)
    ]
    return frechet_distance(real, over), frechet_distance(real, under), np.array(draws)


def test_the_ratio_spreads_as_its_distances_do():
    real = torch.randn(300, 4, generator=seeded(1), dtype=torch.float64)
    over, under = pairs(80, 0)
    top, bottom, draws = resampled(real, over, under, 60, 0.9)
    actual = raw_frechet_ratio(real, over, under, resamples=60, level=0.9)
    log = (draws[:, 0] - draws[:, 0].mean()) / top - (draws[:, 1] - draws[:, 1].mean()) / bottom
    low, high = (top / bottom * np.exp(end) for end in quantiles(-log, 0.9))
    assert actual.value == pytest.approx(top / bottom, rel=1e-9)
    assert (actual.low, actual.high) == pytest.approx((low, high), rel=1e-9)


def test_the_short_cut_for_many_features_changes_little():
    real = torch.randn(900, 40, generator=seeded(1), dtype=torch.float64)
    over, under = pairs(700, 2, size=40)
    full, short = (raw_frechet_ratio(real, over, under, exact=k) for k in (200, 24))
    assert short.value == full.value
    for end in ("low", "high"):
        assert getattr(short, end) == pytest.approx(
            getattr(full, end), abs=0.15 * (full.high - full.low)
        )


@pytest.mark.parametrize("n", [60, 300])
def test_the_interval_covers_the_expected_ratio_at_that_n(n):
    """And a percentile interval of resampled ratios does not at 60, for they lie too near to 1."""
    trials, fewer = 80, 30
    real = torch.randn(800, 4, generator=seeded(1), dtype=torch.float64)
    sets = [pairs(n, seed) for seed in range(1, 501)]
    truth = np.mean([frechet_distance(real, a) / frechet_distance(real, b) for a, b in sets])
    intervals = [raw_frechet_ratio(real, *pair, resamples=39) for pair in sets[:trials]]
    covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    percentile = 0
    for over, under in sets[:fewer]:
        _, _, draws = resampled(real, over, under, 39)
        low, high = quantiles(draws[:, 0] / draws[:, 1], 0.95)
        percentile += low <= truth <= high
    assert 0.9 <= covered <= 0.99, covered
    assert n > 60 or percentile / fewer < 0.85, percentile / fewer


def test_it_shrinks_with_n_and_is_1_without_width_for_equal_samples():
    real = torch.randn(500, 4, generator=seeded(1), dtype=torch.float64)
    widths = []
    for n in (60, 960):
        made = [torch.randn(n, 4, generator=seeded(k), dtype=torch.float64) for k in range(6)]
        intervals = [raw_frechet_ratio(real, 1.5 * z + 0.2, 1.4 * z, resamples=79) for z in made]
        widths.append(np.mean([interval.high - interval.low for interval in intervals]))
    assert widths[1] < 0.5 * widths[0]
    over, _ = pairs(60, 3)
    assert raw_frechet_ratio(real, over, over.clone()) == Interval(1.0, 1.0, 1.0)


def test_pairs_make_it_narrow():
    """The same noise in both, against noise of their own."""
    real = torch.randn(500, 4, generator=seeded(1), dtype=torch.float64)
    z, other = (torch.randn(200, 4, generator=seeded(k), dtype=torch.float64) for k in (5, 6))
    paired = raw_frechet_ratio(real, 1.31 * z, 1.3 * z)
    apart = raw_frechet_ratio(real, 1.31 * other, 1.3 * z)
    assert paired.high - paired.low < 0.1 * (apart.high - apart.low)


def test_ratios_that_mean_nothing_are_refused():
    x = torch.randn(40, 4, generator=seeded(1), dtype=torch.float64)
    constant = torch.zeros(40, 4)
    with pytest.raises(DataError, match="over a distance of 0"):
        raw_frechet_ratio(constant, x, constant)
    with pytest.raises(DataError, match="same number of rows"):
        raw_frechet_ratio(x, x, x[:30])
    with pytest.raises(DataError, match="two sets"):
        raw_frechet_ratio(x, x[:, :3], x)
