"""Samples of classes in turn: their intervals and their kernel distance; no distance lies below 0."""

import numpy as np
import pytest
import torch

from halfstep.evaluation.metrics.bootstrap import Interval, kept_strata, resampled_rows
from halfstep.evaluation.metrics.distance_bootstrap import (
    frechet_interval,
    kernel_interval,
    raw_frechet_interval,
    raw_frechet_ratio,
)
from halfstep.evaluation.metrics.distances import kernel_form
from halfstep.evaluation.row_metrics import not_negative
from tests.support.denoisers import seeded
from tests.support.features import normal

pytestmark = pytest.mark.usefixtures("float64")


def test_no_interval_of_a_distance_begins_below_zero():
    """Where resamples spread by more than the distance: few samples of classes that lie apart."""
    classes = 9 * torch.eye(4, dtype=torch.float64)
    real, fake = (classes[torch.arange(n) % 4] + normal(n, 4, n) for n in (400, 24))
    plain = raw_frechet_interval(real, fake)
    assert plain.high - plain.low > 1.5 * plain.value and plain.low == 0
    kernel = kernel_interval(real, fake)
    assert kernel.low < 0 <= not_negative(kernel).low
    assert not_negative(Interval(0.5, -0.1, 1.0)) == Interval(0.5, 0.0, 1.0)
    assert not_negative(Interval(-0.2, -0.4, -0.1)) == Interval(-0.2, 0.0, 0.0)
    same = raw_frechet_interval(real[:1].expand(9, 4), real[:1].expand(9, 4))
    assert same == Interval(0.0, 0.0, 0.0)


def test_the_kernel_distance_of_perfect_classes_in_turn_is_zero_on_average():
    """The published estimate is below 0 for them: they have too few pairs of one class."""
    means = 3 * normal(5, 6, 1)

    def one(labels, seed):
        return means[labels] + normal(len(labels), 6, seed)

    ours, published = [], []
    for seed in range(2, 42):
        real = one(torch.randint(5, (400,), generator=seeded(seed)), 1000 + seed)
        fake = one(torch.arange(43) % 5, 2000 + seed)
        ones = real.new_ones(1, 400), real.new_ones(1, 43)
        ours.append(float(kernel_form(real, fake, *ones, strata=5)))
        published.append(float(kernel_form(real, fake, *ones)))
    error = np.std(ours) / len(ours) ** 0.5
    assert abs(np.mean(ours)) < 3 * error
    assert np.mean(published) < -4 * np.std(published) / len(ours) ** 0.5
    assert np.mean(published) < np.mean(ours) - 3 * error


def test_the_kernel_form_of_strata_is_that_of_all_pairs_one_by_one():
    real, fake, strata = normal(7, 3, 1), normal(8, 3, 2), 3
    labels = np.arange(8) % strata
    kernel = lambda x, y: (float(x @ y) / 3 + 1) ** 3  # noqa: E731
    within = lambda x, i, j: kernel(x[i], x[j])  # noqa: E731
    own = np.mean([within(real, i, j) for i in range(7) for j in range(7) if i != j])
    sizes = np.bincount(labels)
    other = 0.0
    for i in range(8):
        for j in range(8):
            if labels[i] != labels[j]:
                other += within(fake, i, j) / 64
            elif i != j:
                n = sizes[labels[i]]
                other += n * n / 64 * within(fake, i, j) / (n * (n - 1))
    both = np.mean([kernel(x, y) for x in real for y in fake])
    ones = real.new_ones(1, 7), fake.new_ones(1, 8)
    measured = float(kernel_form(real, fake, *ones, strata=strata))
    assert measured == pytest.approx(own + other - 2 * both, rel=1e-9)


def test_the_interval_of_the_true_distance_is_narrower_where_classes_are_in_turn():
    means = 6 * torch.eye(4, dtype=torch.float64)
    real, fake = (means[torch.arange(n) % 4] + normal(n, 4, n) for n in (600, 400))
    plain, ours = frechet_interval(real, fake), frechet_interval(real, fake, strata=4)
    assert ours.value == plain.value and ours.high - ours.low < 0.9 * (plain.high - plain.low)


@pytest.mark.parametrize("n", [20, 40])
def test_samples_of_few_a_class_are_resampled_regardless_of_classes(n):
    """Of 1 and 2 a class, resampled within classes, intervals have no width and half of the variance."""
    means = 3 * normal(20, 4, 1)
    real = means[torch.arange(600) % 20] + normal(600, 4, 2)
    one, other = (means[torch.arange(n) % 20] + normal(n, 4, seed) for seed in (3, 4))
    ratio = raw_frechet_ratio(real, one, other, strata=20)
    assert ratio == raw_frechet_ratio(real, one, other) and ratio.high > 1.2 * ratio.low
    assert kernel_interval(real, one, strata=20) == kernel_interval(real, one)


def test_from_five_a_class_on_their_number_is_kept():
    """The variance of a mean within classes is (m - 1) / m of the classes' own: 4 / 5 of it for m = 5."""
    assert [kept_strata(n, 20) for n in (1, 20, 99, 100, 2000)] == [1, 1, 1, 20, 20]
    assert kept_strata(7, 1) == 1
    rows = [at for (at,) in resampled_rows([100], 400, 0.95, 0, strata=20)]
    assert all(torch.equal(at % 20, torch.arange(100) % 20) for at in rows)
    noise = normal(100, 1, 5)[:, 0]
    spread = torch.stack([noise[at].mean() for at in rows]).var()
    within = noise.reshape(5, 20).var(0).mean() / 100
    assert float(spread / within) == pytest.approx(4 / 5, rel=0.2)
    (fewer,) = next(iter(resampled_rows([99], 400, 0.95, 0, strata=20)))
    assert not torch.equal(fewer % 20, torch.arange(99) % 20)


def test_a_block_of_few_a_class_is_resampled_regardless_of_classes():
    """A gate's block is what is resampled, however many samples there are."""
    real, one, other = normal(300, 3, 1), normal(120, 3, 2), normal(120, 3, 3)
    few = raw_frechet_ratio(real, one, other, block=40, strata=10)
    assert few == raw_frechet_ratio(real, one, other, block=40)
    many = raw_frechet_ratio(real, one, other, block=60, strata=10)
    assert many != raw_frechet_ratio(real, one, other, block=60)
