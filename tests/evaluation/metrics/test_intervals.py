"""Intervals: that they cover, that the wrong ones do not, and that the short cuts change nothing."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch

from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics import distance_bootstrap, distances, precision_recall_bootstrap
from halfstep.evaluation.metrics.bootstrap import basic_bootstrap, Interval
from halfstep.evaluation.metrics.distance_bootstrap import (
    frechet_interval,
    frechet_ratio,
    kernel_interval,
    raw_frechet_interval,
    raw_frechet_ratio,
)
from halfstep.evaluation.metrics.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    kernel_form,
    precision_recall,
)
from halfstep.evaluation.metrics.precision_recall_bootstrap import (
    Neighbours,
    precision_recall_intervals,
)
from halfstep.schema import plain
from tests.support.denoisers import seeded
from tests.support.features import gaussian_kernel_distance, normal

pytestmark = pytest.mark.usefixtures("float64")


def mirrored(interval):
    """The percentile interval that a basic one is the mirror image of."""
    twice = 2 * interval.value
    return Interval(interval.value, twice - interval.high, twice - interval.low)


def covers(interval, truth):
    return interval.low <= truth <= interval.high


def share(intervals, truth):
    return np.mean([covers(each, truth) for each in intervals])


class Gaussians:
    """Pairs of samples of two known Gaussians, and the Fréchet distance between those."""

    def __init__(self, size, shift, spread):
        self.size, self.scale = size, torch.linspace(0.5, 1.5, size)
        self.other = self.scale * torch.linspace(1 + spread, 1 - spread, size)
        self.shift = shift * torch.ones(size) / size**0.5
        self.frechet = self.distance(self.shift)

    def distance(self, shift):
        return float(shift.square().sum() + (self.scale - self.other).square().sum())

    def draw(self, n, m, seed):
        a, b = normal(n, self.size, 2 * seed), normal(m, self.size, 2 * seed + 1)
        return a * self.scale, b * self.other + self.shift


# An interval.


def test_an_interval_in_words_and_in_json():
    assert str(Interval(0.1874, 0.1811, 0.1938)) == "0.187 (0.181 to 0.194)"
    assert str(Interval(1234.5, 1200.2, 1260.9)) == "1234 (1200 to 1261)"
    assert str(Interval(1.0, 1.0, 1.0)) == "1.000 (1.000 to 1.000)"
    assert str(Interval(2e-5, 1e-5, 4e-5)) == "0.000020 (0.000010 to 0.000040)"
    assert plain(Interval(1.0, 0.5, 2.0)) == {"value": 1.0, "low": 0.5, "high": 2.0}


def test_the_interval_of_a_mean_is_the_textbook_one():
    x = normal(400, 1, 3)
    actual = basic_bootstrap(lambda a: float(a.mean()), x, resamples=1999)
    half = 1.96 * float(x.std()) / 20
    assert actual.value == float(x.mean())
    assert actual.low == pytest.approx(actual.value - half, abs=0.1 * half)
    assert actual.high == pytest.approx(actual.value + half, abs=0.1 * half)
    narrow = basic_bootstrap(lambda a: float(a.mean()), x, resamples=1999, level=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * half * 0.6745 / 1.96, rel=0.1)


def test_the_ends_of_39_resamples_are_the_outermost():
    """(B + 1) p: each of 39 draws cuts off a fortieth, so the first and the last cut off 2.5 %."""
    draws = iter([10.0, *range(39)])
    actual = basic_bootstrap(lambda a: float(next(draws)), torch.zeros(3), resamples=39)
    assert (actual.value, actual.low, actual.high) == (10, 20 - 38, 20 - 0)


def test_it_mirrors_a_skewed_statistic():
    """2v - q: what the resamples reach above the value, the interval reaches below it."""
    x = normal(60, 1, 1).exp()
    actual = basic_bootstrap(lambda a: float(a.square().mean()), x, resamples=999)
    assert actual.value - actual.low > 1.1 * (actual.high - actual.value)


def test_samples_of_a_tuple_are_drawn_together_and_others_apart():
    x, samples = torch.arange(50.0)[:, None], []

    def look(a, b, c):
        samples.append((bool((a == b).all()), bool((a == c).all()), a.unique().numel()))
        return float(a.mean() - c.mean())

    basic_bootstrap(look, (x, x.clone()), x, resamples=39)
    assert samples[0] == (True, True, 50)  # the samples as they are
    assert all(pair and not apart for pair, apart, _ in samples[1:])
    assert 28 < np.mean([distinct for *_, distinct in samples[1:]]) < 35  # 1 - 1/e of 50


def test_pairs_are_surer_than_strangers():
    noise = normal(200, 1, 1)
    one, two = noise, noise + 0.1 * normal(200, 1, 2)

    def apart(a, b):
        return float(a.mean() - b.mean())

    pairs, strangers = basic_bootstrap(apart, (one, two)), basic_bootstrap(apart, one, two)
    assert 5 * (pairs.high - pairs.low) < strangers.high - strangers.low


def test_it_repeats_itself():
    x = normal(30, 2)
    actual = [basic_bootstrap(inception_score, x.softmax(1), seed=s) for s in (1, 1, 2)]
    assert actual[0] == actual[1] != actual[2]


@pytest.mark.parametrize(
    "options, match",
    [
        ({"resamples": 38}, "=39"),
        ({"resamples": 100, "level": 0.99}, "=199"),
        ({"level": 95}, "level=95"),
    ],
)
def test_what_shows_no_interval_is_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        basic_bootstrap(lambda a: 0.0, torch.zeros(5), **options)
    with pytest.raises(ConfigError, match=match):
        precision_recall_intervals(normal(20, 2), normal(20, 2), **options)


def test_uneven_pairs_and_numbers_that_are_none_are_refused():
    with pytest.raises(DataError, match="got 5, 6"):
        basic_bootstrap(lambda a, b: 0.0, (torch.zeros(5), torch.zeros(6)))
    with pytest.raises(DataError, match="not finite"):
        basic_bootstrap(lambda a: float("nan"), torch.zeros(5))


# The Fréchet distance.


def test_the_basic_interval_covers_at_4_dimensions_and_the_percentile_does_not():
    """250 rows of each, where the bias is about a standard deviation."""
    pair = Gaussians(4, shift=0.3, spread=0.25)
    result = [
        basic_bootstrap(frechet_distance, *pair.draw(250, 250, k), resamples=59, seed=k)
        for k in range(200)
    ]
    assert 0.9 <= share(result, pair.frechet) <= 0.98
    assert share(map(mirrored, result), pair.frechet) < 0.85


@pytest.mark.parametrize(
    "size, n, spread, exact",
    [
        (4, 1000, 0.25, 16),
        pytest.param(16, 1000, 0.5, 16, marks=pytest.mark.slow),
        pytest.param(16, 1000, 0.5, None, marks=pytest.mark.slow),
        pytest.param(64, 1500, 0.7, 16, marks=pytest.mark.slow),
        pytest.param(64, 1500, 0.7, None, marks=pytest.mark.slow),
    ],
)
def test_it_covers_at_any_dimension(size, n, spread, exact):
    pair = Gaussians(size, shift=0.5 * spread / 0.25, spread=spread)
    result = [
        frechet_interval(*pair.draw(n, n, k), resamples=199, exact=exact, seed=k)
        for k in range(200)
    ]
    assert 0.9 <= share(result, pair.frechet) <= 0.98
    if size > 4:
        assert share(map(mirrored, result), pair.frechet) < 0.5


def test_computed_in_full_it_is_the_basic_bootstrap():
    a, b = Gaussians(5, 0.4, 0.3).draw(60, 80, 1)
    expected = basic_bootstrap(frechet_distance, a, b, seed=3)
    for actual in (frechet_interval(a, b, seed=3), frechet_interval(a, b, seed=3, exact=200)):
        for field in ("value", "low", "high"):
            assert getattr(actual, field) == pytest.approx(getattr(expected, field), rel=1e-9)


def test_a_few_exact_resamples_tell_almost_as_much():
    a, b = Gaussians(24, 1.0, 0.4).draw(700, 900, 1)
    full, few = (frechet_interval(a, b, exact=exact) for exact in (200, 16))
    width = full.high - full.low
    assert few.value == full.value and few != full
    assert few.low == pytest.approx(full.low, abs=0.06 * width)
    assert few.high == pytest.approx(full.high, abs=0.06 * width)
    # Without the remainders the bias would stay on.
    assert full.value > full.high


def test_above_128_dimensions_24_are_computed(monkeypatch):
    count = itertools.count()

    def counted(*sets):
        next(count)
        return real_one(*sets)

    real_one = distance_bootstrap.frechet_of_factors
    monkeypatch.setattr(distance_bootstrap, "frechet_of_factors", counted)
    a, b = normal(40, 129, 1), normal(50, 129, 2)
    assert frechet_interval(a, b).value == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert next(count) == 24
    with pytest.raises(ConfigError, match="exact=0"):
        frechet_interval(a, b, exact=0)


@pytest.mark.parametrize("n, m, size", [(300, 250, 5), (300, 250, 1)])
def test_the_influence_is_the_derivative_by_a_rows_weight(n, m, size):
    """By weighing one row a little more, with scipy's matrix square root."""
    a, b = (
        normal(n, size, 1),
        1.5 * normal(m, size, 2) @ torch.linspace(0.5, 1, size**2).reshape(size, size) + 0.3,
    )

    def weighed(x, w):
        w = w / w.sum()
        mean = w @ x
        return mean, (x - mean).T @ ((x - mean) * w[:, None]) * len(x) / (len(x) - 1)

    def distance(one, two):
        root = np.atleast_2d(scipy.linalg.sqrtm(one[1] @ two[1])).real
        return ((one[0] - two[0]) ** 2).sum() + np.trace(one[1] + two[1] - 2 * root)

    value, *influences = distance_bootstrap._influence(a, b)
    x, y = a.numpy(), b.numpy()
    plain = weighed(x, np.ones(n)), weighed(y, np.ones(m))
    assert value == pytest.approx(distance(*plain), rel=1e-7)
    for which, (rows, actual) in enumerate(zip((x, y), influences, strict=True)):
        for i in range(0, len(rows), 37):
            change = []
            for step in (1e-3, -1e-3):
                w = np.ones(len(rows))
                w[i] += step
                heavier = list(plain)
                heavier[which] = weighed(rows, w)
                change.append(distance(*heavier))
            expected = (change[0] - change[1]) / 2e-3 * len(rows)
            assert float(actual[i]) == pytest.approx(expected, abs=0.01 * float(actual.abs().max()))


# A ratio of two.


def test_a_ratio_of_equals_is_one_and_of_a_known_pair_is_near():
    pair = Gaussians(6, 1.0, 0.4)
    real, fake = pair.draw(500, 500, 1)
    same = frechet_ratio(real, fake, fake)
    assert same.value == 1 and same.low == pytest.approx(1) and same.high == pytest.approx(1)
    worse = frechet_ratio(real, fake + pair.shift, fake)
    assert covers(worse, pair.distance(2 * pair.shift) / pair.frechet)
    assert worse.value == pytest.approx(
        frechet_distance(real, fake + pair.shift) / frechet_distance(real, fake), rel=1e-9
    )
    stranger = frechet_ratio(real, pair.draw(500, 500, 2)[1] + pair.shift, fake)
    assert worse.high - worse.low < stranger.high - stranger.low


def test_a_ratio_takes_the_bias_off_each_distance():
    pair, samples = Gaussians(6, 1.0, 0.4), []
    real, fake = pair.draw(300, 400, 1)
    over = fake + 0.5 * pair.shift

    def both(r, s, t):
        samples.append((frechet_distance(r, s), frechet_distance(r, t)))
        return 0.0

    basic_bootstrap(both, real, (over, fake), seed=5)
    (a, b), draws = samples[0], np.array(samples[1:])
    ratios = np.sort((2 * a - draws[:, 0]) / (2 * b - draws[:, 1]))
    actual = frechet_ratio(real, over, fake, seed=5)
    assert actual.value == pytest.approx(a / b, rel=1e-9)
    assert ratios[4] <= actual.low <= ratios[5] and ratios[194] <= actual.high <= ratios[195]


def test_a_ratio_over_nothing_is_refused():
    real, fake = normal(100, 4, 1), normal(100, 4, 2)
    with pytest.raises(DataError, match="may be 0"):
        frechet_ratio(real, fake + 1, fake)
    with pytest.raises(DataError, match="same number of rows"):
        frechet_ratio(real, fake[:50] + 1, fake)


@pytest.mark.slow
def test_the_ratio_covers_where_the_ratio_of_the_biased_does_not():
    """The bias pulls a ratio to 1, and more than twice as far in resamples of it as in itself."""
    pair = Gaussians(16, shift=0.5, spread=0.25)
    worse = 0.2 * pair.shift
    truth = pair.distance(pair.shift + worse) / pair.frechet
    good, plain = [], []
    for k in range(100):
        real, fake = pair.draw(1000, 1000, k)
        good.append(frechet_ratio(real, fake + worse, fake, resamples=99, exact=16, seed=k))
        plain.append(
            basic_bootstrap(
                lambda r, s, t: frechet_distance(r, s) / frechet_distance(r, t),
                real,
                (fake + worse, fake),
                resamples=99,
                seed=k,
            )
        )
    assert share(good, truth) >= 0.9
    assert share(plain, truth) < 0.8


# KID.


def test_a_counted_row_never_meets_its_copies():
    a, b = normal(7, 3, 1), normal(5, 3, 2)
    rows, others = torch.tensor([0, 0, 3, 4, 4, 4, 6]), torch.tensor([1, 1, 2, 0, 4])

    def k(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    def within(x, at):
        pairs = [(i, j) for i in at.tolist() for j in at.tolist() if i != j]
        return np.mean([k(x[i], x[j]) for i, j in pairs])

    between = np.mean([k(a[i], b[j]) for i in rows for j in others])
    counts = [
        torch.bincount(at, minlength=len(x)).double()[None] for at, x in ((rows, a), (others, b))
    ]
    expected = within(a, rows) + within(b, others) - 2 * between
    assert float(kernel_form(a, b, *counts)) == pytest.approx(expected, rel=1e-9)
    copies = kernel_distance(a[rows], b[others], biased=True)
    assert float(kernel_form(a, b, *counts, biased=True)) == pytest.approx(copies, rel=1e-9)


def test_the_kernel_interval_covers_and_a_plain_bootstrap_does_not():
    size, shift = 8, 0.15
    one, m = torch.eye(size), torch.full((size,), shift)
    truth = gaussian_kernel_distance(torch.zeros(size), one, m, one)
    good, plain = [], []
    for k in range(200):
        a, b = normal(150, size, 2 * k), normal(150, size, 2 * k + 1) + shift
        good.append(kernel_interval(a, b, resamples=99, seed=k))
        if k < 60:
            plain.append(basic_bootstrap(kernel_distance, a, b, resamples=39, seed=k))
    assert good[0].value == pytest.approx(plain[0].value, rel=1e-9)
    assert 0.9 <= share(good, truth) <= 0.98
    assert share(plain, truth) < 0.8


# Precision and recall.


@pytest.mark.parametrize("k", [1, 3])
def test_a_half_is_looked_at_as_if_the_rest_had_never_been(k, monkeypatch):
    for module in (distances, precision_recall_bootstrap):
        monkeypatch.setattr(module, "ROWS", 13)
    real, fake = normal(90, 3, 1), 0.8 * normal(70, 3, 2) + 0.3
    balls = precision_recall_bootstrap._Balls(real, fake, Neighbours.of(real, k))
    for seed in range(20):
        rows, points = (torch.rand(n, generator=seeded(seed)) < 0.5 for n in (90, 70))
        assert balls.share(rows, points) == precision_recall(real[rows], fake[points], k=k)[0]


def test_neighbours_that_are_shared_change_no_bit():
    real, near = normal(60, 3, 1), Neighbours.of(normal(60, 3, 1))
    for seed in (2, 3):
        fake = normal(50, 3, seed) + 0.2
        options = {"resamples": 39, "seed": seed}
        shared = precision_recall_intervals(real, fake, neighbours=near, **options)
        assert shared == precision_recall_intervals(real, fake, **options)
    with pytest.raises(DataError, match="at least 8"):
        Neighbours.of(normal(7, 3))


@pytest.mark.slow
def test_halves_give_the_spread_and_copies_do_not():
    """The truth is the mean over samples of this size, from 300 of them."""

    def pair(seed):
        return normal(200, 4, 2 * seed), 0.9 * normal(200, 4, 2 * seed + 1) + 0.4

    truth = np.mean([precision_recall(*pair(1000 + s)) for s in range(300)], axis=0)
    halves = [precision_recall_intervals(*pair(k), resamples=59, seed=k) for k in range(100)]
    copies = [
        basic_bootstrap(lambda a, b: precision_recall(a, b)[0], *pair(k), resamples=39, seed=k)
        for k in range(40)
    ]
    assert halves[0][0].value == copies[0].value == precision_recall(*pair(0))[0]
    assert share([each[0] for each in halves], truth[0]) >= 0.9
    assert share([each[1] for each in halves], truth[1]) >= 0.9
    assert share(copies, truth[0]) < 0.7 and share(map(mirrored, copies), truth[0]) < 0.7
    # Not by being wide: 1.2 times as wide as the truth varies.
    varies = np.std([precision_recall(*pair(2000 + s)) for s in range(200)], axis=0)
    for which in (0, 1):
        width = np.mean([each[which].high - each[which].low for each in halves])
        assert width < 1.35 * 2 * 1.96 * varies[which]


def test_precision_and_recall_stay_in_their_range_and_need_neighbours():
    x = normal(60, 2)
    for actual in precision_recall_intervals(x, x + 1e-9):
        assert 0 <= actual.low <= actual.high <= 1
    with pytest.raises(DataError, match="n at least 8"):
        precision_recall_intervals(x[:7], x)
    with pytest.raises(ConfigError, match="k=0"):
        precision_recall_intervals(x, x, k=0)


# As many samples as there are, floor and all.


def test_the_raw_interval_covers_what_so_many_samples_score():
    """Around the mean over many draws of 120 fakes; quantiles of the resamples lie a floor too high."""
    real = 0.8 * normal(500, 8, 1)
    fakes = [0.7 * normal(120, 8, seed) + 0.1 for seed in range(2, 302)]
    usual = np.mean([frechet_distance(real, fake) for fake in fakes])
    result = [raw_frechet_interval(real, fake, resamples=79) for fake in fakes[:120]]
    assert 0.88 <= share(result, usual) <= 0.99
    shifted = [
        basic_bootstrap(lambda x: frechet_distance(real, x), fake, resamples=79)
        for fake in fakes[:60]
    ]
    assert share([mirrored(interval) for interval in shifted], usual) < 0.8
    assert all(interval.low < interval.value < interval.high for interval in result)


def test_the_raw_interval_shrinks_with_the_samples():
    real, fake = normal(400, 3, 1), 1.2 * normal(1600, 3, 2)
    few, many = (raw_frechet_interval(real, fake[:n]) for n in (100, 1600))
    assert 2.5 < (few.high - few.low) / (many.high - many.low) < 7


def test_blocks_are_resampled_apart_and_a_part_of_one_is_left_out():
    real, under = normal(200, 3, 1), normal(40, 3, 2)
    over = 1.5 * under + 0.3
    one = raw_frechet_ratio(real, over, under, resamples=400)
    # the same block again, which has a seed of its own: as many numbers again, so by the root of 2 surer
    again = raw_frechet_ratio(
        real, torch.cat([over, over]), torch.cat([under, under]), block=40, resamples=400
    )
    assert again.value == pytest.approx(one.value, rel=1e-9)
    assert 0.6 < (again.high - again.low) / (one.high - one.low) < 0.82
    more = torch.cat([over, over[:30] + 5]), torch.cat([under, under[:30]])
    assert raw_frechet_ratio(real, *more, block=40, resamples=400) == one
    assert raw_frechet_ratio(real, *more, resamples=400).value > 2 * one.value


def test_the_intervals_of_precision_and_recall_are_those_of_halves_one_by_one():
    real, fake, resamples = normal(41, 2, 1), 0.8 * normal(30, 2, 2) + 0.4, 39
    generator, draws = seeded(7), []
    for _ in range(resamples):
        a, b = (x[torch.randperm(len(x), generator=generator)[: len(x) // 2]] for x in (real, fake))
        draws.append(precision_recall(a, b, k=2))
    result = precision_recall_intervals(real, fake, k=2, resamples=resamples, seed=7)
    both = precision_recall(real, fake, k=2)
    for value, values, interval in zip(both, np.array(draws).T, result, strict=True):
        apart = np.sort(
            values.mean() - values
        )  # of 39, the ends of a 95 % interval are the outermost
        ends = np.clip([value + apart[0], value + apart[-1]], 0, 1)
        assert interval.value == value and [interval.low, interval.high] == pytest.approx(
            list(ends)
        )
    assert both[0] != both[1]
