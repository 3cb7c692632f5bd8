"""The Fréchet distance and its sampling floor, by closed forms and a second implementation."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from halfstep.errors import DataError
from halfstep.evaluation import frechet_distance
from tests.support.denoisers import seeded


def white(n, size, seed=0):
    """n points whose sample mean is 0 and whose sample covariance is 1, exactly."""
    x = torch.randn(n, size, generator=seeded(seed), dtype=torch.float64)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (n - 1))).T


def second(a, b):
    """The same distance by scipy's matrix square root, as Heusel et al. 2017 print it."""
    a, b = a.double().numpy(), b.double().numpy()
    cov_a, cov_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root.real)


def test_identical_sets_are_at_no_distance():
    x = torch.randn(41, 6, generator=seeded(1))
    assert abs(frechet_distance(x, x)) < 1e-9


def test_a_shift_costs_its_square():
    x, shift = white(37, 5), torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5], dtype=torch.float64)
    assert frechet_distance(x, x + shift) == pytest.approx(14.25, abs=1e-9)


def test_two_gaussians_with_diagonal_covariances():
    """|m1 - m2|^2 + sum (s1 - s2)^2."""
    s1, s2 = torch.tensor([1.0, 2.0, 0.1, 5.0]), torch.tensor([3.0, 2.0, 0.4, 4.5])
    a, b = white(43, 4, 1) * s1 + 1, white(31, 4, 2) * s2 - 0.5
    expected = 4 * 1.5**2 + float((s1.double() - s2.double()).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-6)


def test_two_gaussians_that_are_turned_against_each_other():
    """In the plane, tr (C1 C2)^(1/2) = sqrt(tr C1 C2 + 2 sqrt(det C1 C2))."""
    c1 = torch.tensor([[4.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    c2 = torch.tensor([[1.0, -0.7], [-0.7, 3.0]], dtype=torch.float64)
    a = white(29, 2, 1) @ torch.linalg.cholesky(c1).T
    b = white(53, 2, 2) @ torch.linalg.cholesky(c2).T
    product = c1 @ c2
    root = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product))))
    expected = float(c1.trace() + c2.trace()) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("n, m, size", [(200, 301, 7), (64, 40, 33), (500, 500, 64), (2, 3, 1)])
def test_a_second_implementation_agrees(n, m, size):
    a = torch.randn(n, size, generator=seeded(3))
    b = 0.5 * torch.randn(m, size, generator=seeded(4)).cumsum(1) + 0.2
    assert frechet_distance(a, b) == pytest.approx(second(a, b), rel=1e-6, abs=1e-6)


def test_it_is_symmetric_and_computed_in_float64():
    a = torch.randn(90, 8, generator=seeded(5)) + 1000  # float32 would cancel
    b = torch.randn(70, 8, generator=seeded(6)) + 1000
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-8)
    assert frechet_distance(a, b) == pytest.approx(second(a, b), abs=1e-5)


@pytest.mark.parametrize(
    "a, b",
    [
        (torch.zeros(5, 3), torch.zeros(5, 4)),
        (torch.zeros(1, 3), torch.zeros(5, 3)),
        (torch.zeros(5, 3), torch.zeros(0, 3)),
        (torch.zeros(5, 3, 1), torch.zeros(5, 3, 1)),
    ],
)
def test_sets_that_have_no_distance_are_refused(a, b):
    with pytest.raises(DataError, match="two sets"):
        frechet_distance(a, b)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_no_numbers_are_refused(bad):
    x = torch.randn(9, 3, generator=seeded())
    y = x.clone()
    y[4, 1] = bad
    with pytest.raises(DataError, match="nan or infinite"):
        frechet_distance(x, y)
