"""The sampling floor: what a simulation of perfect samples scores, of classes by chance and in turn."""

from itertools import count

import pytest
import torch

from halfstep.errors import DataError
from halfstep.evaluation import frechet_distance, sampling_floor
from halfstep.evaluation.metrics.distance_bootstrap import raw_frechet_interval
from halfstep.evaluation.metrics.distances import factor
from halfstep.evaluation.metrics.floor import _factor, BY_CHANCE, noted_floor
from tests.support.denoisers import seeded

SIZE = 6
MEANS = 4 * torch.randn(3, SIZE, generator=seeded(9), dtype=torch.float64)


def of(labels, seed):
    """Perfect features of these classes."""
    return MEANS[labels] + torch.randn(
        len(labels), SIZE, generator=seeded(seed), dtype=torch.float64
    )


def in_turn(n, seed):
    return of(torch.arange(n) % 3, seed)


def drawn(shares, n, seed):
    return torch.multinomial(torch.tensor(shares), n, replacement=True, generator=seeded(seed))


@pytest.mark.parametrize("real, n", [(1800, 600), (600, 2000), (600, 12)])
def test_the_floor_is_what_perfect_samples_score(real, n):
    """A Gaussian's own samples, drawn afresh, against the estimate from the real ones alone."""
    draws = count(10)
    truth = []
    for _ in range(12):
        rows = torch.randn(real + n, 8, generator=seeded(next(draws)), dtype=torch.float64)
        truth.append(frechet_distance(rows[:real], rows[real:]))
    floor = sampling_floor(torch.randn(real, 8, generator=seeded(1), dtype=torch.float64), n)
    assert floor == pytest.approx(sum(truth) / len(truth), rel=0.2)


def test_the_floor_falls_with_more_samples_and_repeats_itself():
    real = torch.randn(400, 5, generator=seeded(2))
    assert sampling_floor(real, 4000) < sampling_floor(real, 400) < sampling_floor(real, 40)
    assert sampling_floor(real, 100) == sampling_floor(real, 100)
    assert sampling_floor(real, 100, seed=1) != sampling_floor(real, 100)


@pytest.mark.parametrize("rows, n", [(3, 10), (10, 0), (10, 1)])
def test_a_floor_needs_rows(rows, n):
    with pytest.raises(DataError, match="a floor needs"):
        sampling_floor(torch.zeros(rows, 2), n)


@pytest.mark.parametrize(
    "shares, n, count",
    [((1.0, 1.0, 1.0), 60, 900), ((1.0, 1.0, 1.0), 1500, 900), ((5.0, 3.0, 2.0), 90, 900)],
)
def test_of_classes_in_turn_the_floor_is_what_perfect_samples_of_them_score(shares, n, count):
    """Of classes by chance it is several times as much; where shares differ, that stays without noise."""
    truth, floors, chance = [], [], []
    for seed in range(0, 120, 5):
        labels = drawn(shares, count, seed)
        real = of(labels, seed + 1)
        truth.append(frechet_distance(real, in_turn(n, seed + 2)))
        floors.append(sampling_floor(real, n, labels=labels, splits=8))
        chance.append(sampling_floor(real, n))
    floor = sum(floors) / len(floors)
    assert floor == pytest.approx(sum(truth) / len(truth), rel=0.08)
    if shares[0] == shares[1] and n < count:
        assert sum(chance) / len(chance) > 2 * floor


def test_perfect_samples_lie_on_both_sides_of_the_floor():
    """A report never has a perfect sampler surely below the floor."""
    labels = drawn((1.0, 1.0, 1.0), 600, 1)
    real = of(labels, 2)
    floor = sampling_floor(real, 90, labels=labels)
    intervals = [raw_frechet_interval(real, in_turn(90, k), strata=3) for k in range(3, 13)]
    assert sum(i.low <= floor <= i.high for i in intervals) >= 8
    assert {i.value < floor for i in intervals} == {True, False}


def test_rows_of_unknown_classes_are_left_out_and_one_class_is_as_none():
    labels = drawn((1.0, 1.0, 1.0), 300, 1)
    real = of(labels, 2)
    unknown = torch.cat([labels, torch.full((100,), -1)])
    more = torch.cat([real, 50 + torch.zeros(100, SIZE, dtype=real.dtype)])
    known = sampling_floor(real, 50, labels=labels)
    assert sampling_floor(more, 50, labels=unknown) == pytest.approx(
        known * (1 / 50 + 1 / 400) / (1 / 50 + 1 / 300), rel=0.05
    )
    assert sampling_floor(real, 50, labels=torch.zeros(300, dtype=torch.int64)) == pytest.approx(
        sampling_floor(real, 50), rel=1e-9
    )


def test_a_class_of_one_row_and_fewer_samples_than_classes():
    real = of(torch.tensor([0, 1, 1, 2, 2, 2, 2]), 3)
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 2])
    assert sampling_floor(real, 30, labels=labels) > 0
    assert sampling_floor(real, 2, labels=labels) > sampling_floor(real, 30, labels=labels)


@pytest.mark.parametrize(
    "labels, n", [([-1] * 9, 30), ([0] + [-1] * 8, 30), ([1, 1] + [-1] * 7, 2)]
)
def test_too_few_rows_of_known_classes_are_refused(labels, n):
    with pytest.raises(DataError, match="4 real rows of a known class"):
        sampling_floor(of(torch.zeros(9, dtype=torch.int64), 1), n, labels=torch.tensor(labels))


def test_one_row_of_the_only_class_of_the_samples_is_refused():
    labels = torch.tensor([0, 1, 1, 1, 1])
    with pytest.raises(DataError, match="needs 4 real rows of their classes"):
        sampling_floor(of(labels, 1), 10, labels=labels, classes=1)


def test_labels_of_another_number_than_the_rows_are_refused():
    real, labels = in_turn(9, 1), torch.arange(8) % 3
    with pytest.raises(DataError, match="8 labels for 9 real rows"):
        sampling_floor(real, 30, labels=labels)
    with pytest.raises(DataError, match="8 labels for 9 real rows"):
        noted_floor(real, 30, labels=labels, classes=4)


def test_samples_take_their_own_classes_not_those_of_the_data():
    """Samples of the first two classes of three: a third of the data is of a class without samples."""
    labels = drawn((1.0, 1.0, 1.0), 900, 1)
    real = of(labels, 2)
    truth = [frechet_distance(real, of(torch.arange(90) % 2, k)) for k in range(3, 23)]
    floor = sampling_floor(real, 90, labels=labels, classes=2)
    assert floor == pytest.approx(sum(truth) / len(truth), rel=0.05)
    assert floor > 5 * sampling_floor(real, 90, labels=labels)
    assert noted_floor(real, 90, labels=labels, classes=2) == (floor, "")
    assert sampling_floor(real, 90, labels=labels, classes=3) == sampling_floor(
        real, 90, labels=labels
    )


def test_a_class_of_the_samples_without_real_rows():
    """The function refuses it; a report has no floor and says why, unless no sample is of that class."""
    labels = torch.arange(90) % 3
    real = of(labels, 2)
    with pytest.raises(DataError, match="class 3 of the samples has no real rows"):
        sampling_floor(real, 30, labels=labels, classes=5)
    floor, note = noted_floor(real, 30, labels=labels, classes=5)
    assert floor == 0 and note == "unknown: 2 of the 5 classes of the samples have no real images"
    floor, note = noted_floor(real, 3, labels=labels, classes=5)
    assert floor == sampling_floor(real, 3, labels=labels) and not note


@pytest.mark.parametrize("labels", [None, [-1] * 90, [0, 1, 2] + [-1] * 87])
def test_without_labels_the_floor_is_of_classes_by_chance_and_says_so(labels):
    real = in_turn(90, 2)
    labels = None if labels is None else torch.tensor(labels)
    by_chance = sampling_floor(real, 30)
    assert noted_floor(real, 30, labels=labels, classes=3) == (by_chance, BY_CHANCE)
    assert noted_floor(real, 30, labels=labels) == (by_chance, "")
    assert by_chance > 1.5 * sampling_floor(real, 30, labels=torch.arange(90) % 3)


@pytest.mark.parametrize("classes", [1, 2])
def test_fewer_rows_than_two_a_dimension_make_the_floor_too_low_and_it_says_so(classes):
    labels = torch.arange(48) % 2
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(48, 24, generator=generator, dtype=torch.float64)
    floor, note = noted_floor(real, 30, labels=labels, classes=classes)
    assert floor > 0 and not note
    floor, note = noted_floor(real[:47], 30, labels=labels[:47], classes=classes)
    assert floor > 0 and note == "too low: 47 real images, and 24 features need 48"
    unknown = labels.clone()
    unknown[:9] = -1  # of a known class are 39, and of no class that samples take in turn all 48
    too_low = f"too low: {48 if classes == 1 else 39} real images, and 24 features need 48"
    note = noted_floor(real, 30, labels=unknown, classes=classes)[1]
    assert note == ("" if classes == 1 else too_low)
    note = noted_floor(real[:47], 30, classes=2)[1]
    assert note == f"{BY_CHANCE}; too low: 47 real images, and 24 features need 48"
    few = [
        real[:24],
        *(torch.randn(24, 24, generator=generator, dtype=torch.float64) for _ in range(9)),
    ]
    truth = [
        frechet_distance(rows, torch.randn(500, 24, generator=generator, dtype=torch.float64))
        for rows in few
    ]
    low = [sampling_floor(rows, 500) for rows in few]
    assert sum(low) / sum(truth) == pytest.approx(0.75, abs=0.08)


def test_even_weights_give_the_mean_and_covariance_of_a_distance():
    rows = in_turn(9, 1)
    (mean, root), (even_mean, even) = factor(rows), _factor(rows, torch.full((9,), 1 / 9))
    assert torch.allclose(even_mean, mean, rtol=1e-6)
    assert torch.allclose(even.T @ even, root.T @ root, rtol=1e-6, atol=1e-6)
