"""Which method is best, and whether the difference is larger than a seed's: known answers, few false ones."""

import numpy as np
import pytest

from halfstep.evaluation.method_data import MethodMean
from halfstep.evaluation.method_verdicts import verdict_at
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.seed_spread import SharedDistances
from tests.support.comparisons import shared

ONE = Interval(1.0, 1.0, 1.0)


def verdict(distances, noise=0.0, rmse=None):
    """Of {method: [a distance for each seed]}."""
    values, numbers = [], {}
    for name, seeds in distances.items():
        numbers[name] = list(range(len(values), len(values) + len(seeds)))
        values += seeds
    every = shared(values, noise)
    return verdict_at(4, means(every, numbers, rmse), every, numbers)


def means(every, numbers, rmse=None):
    return [
        MethodMean(
            method=name, steps=4, calls=4, seeds=len(ks), distance=every.mean(ks), ratio=ONE,
            target_ratio=ONE, spread=None, rmse=(rmse or {}).get(name), rmse_spread=None,
            teacher_rmse=None,
        )
        for name, ks in numbers.items()
    ]  # fmt: skip


def test_better_by_more_than_its_seeds():
    found = verdict({"a": [1.0, 1.01, 0.99], "b": [1.2, 1.21, 1.19], "c": [1.5, 1.52, 1.48]})
    assert (found.best, found.second, found.answer, found.alike) == ("a", "b", "better", ())
    assert found.difference.value == pytest.approx(1.2) and found.difference.low > 1
    assert found.spread == pytest.approx(0.0092, rel=0.02)


def test_a_difference_within_the_seeds_is_none():
    found = verdict({"a": [1.0, 1.1, 0.9], "b": [1.05, 1.15, 0.95], "c": [2.0, 2.01, 1.99]})
    assert (found.best, found.answer, found.alike) == ("a", "cannot tell", ("b",))


def test_a_difference_within_the_samples_is_none():
    assert verdict({"a": [1.0] * 3, "b": [1.05] * 3}, noise=0.1).answer == "cannot tell"
    assert verdict({"a": [1.0] * 3, "b": [1.05] * 3}, noise=0.001).answer == "better"


def test_one_seed_cannot_tell_of_seeds():
    found = verdict({"a": [1.0], "b": [1.2, 1.21, 1.19]}, noise=0.001)
    assert found.answer == "one seed" and found.best == "a"
    assert verdict({"a": [1.0], "b": [1.05]}, noise=0.1).answer == "cannot tell"
    assert verdict({"a": [1.0, 1.1]}).answer == "alone"


def test_the_faithful_may_be_another():
    found = verdict({"a": [1.0], "b": [1.2]}, rmse={"a": 0.02, "b": 0.01})
    assert (found.best, found.faithful) == ("a", "b")
    assert verdict({"a": [1.0], "b": [1.2]}).faithful is None


@pytest.mark.parametrize("methods, seeds", [(2, 3), (5, 3), (4, 2)])
def test_equal_methods_are_hardly_ever_told_apart(methods, seeds):
    """The best is chosen after the measurement: at most 5 % of trials call it better, and 3 errors more."""
    generator, false, trials = np.random.default_rng(methods), 0, 400
    numbers = {f"m{k}": list(range(k * seeds, (k + 1) * seeds)) for k in range(methods)}
    for _ in range(trials):
        distances = 1 + 0.03 * generator.normal(size=methods * seeds)
        apart = 0.01 * generator.normal(size=(200, methods * seeds))
        distances += 0.01 * generator.normal(size=methods * seeds)
        every = SharedDistances(distances, apart - apart.mean(0))
        found = verdict_at(4, means(every, numbers), every, numbers)
        false += found.answer == "better"
    assert false <= trials * 0.05 + 3 * (trials * 0.05 * 0.95) ** 0.5


def test_a_large_difference_is_told():
    generator, told = np.random.default_rng(1), 0
    numbers = {"a": [0, 1, 2], "b": [3, 4, 5]}
    for _ in range(100):
        distances = np.array([1.0] * 3 + [1.25] * 3) * (1 + 0.03 * generator.normal(size=6))
        every = shared(distances, 0.01)
        told += verdict_at(4, means(every, numbers), every, numbers).answer == "better"
    assert told > 90
