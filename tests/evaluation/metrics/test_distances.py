"""KID, Inception score, precision and recall: closed forms and a second implementation of each.

The closed forms of the Fréchet distance are in test_frechet.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import poly_mmd

from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics import distances
from halfstep.evaluation.metrics.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    square_distances,
)
from tests.support.features import gaussian_kernel_distance, normal

pytestmark = pytest.mark.usefixtures("float64")


class Given(nn.Module):
    """torchmetrics' classes take a network: this one hands over what it gets."""

    def __init__(self, size):
        super().__init__()
        self.num_features = size

    def forward(self, x):
        return x


@pytest.fixture
def small_chunks(monkeypatch):
    """Rows are taken seven at a time, so that whatever spans two chunks is seen."""
    monkeypatch.setattr(distances, "ROWS", 7)


# The Fréchet distance.


@pytest.mark.parametrize("n, m, size", [(50, 70, 9), (2, 3, 5), (300, 200, 48), (20, 31, 24)])
def test_frechet_agrees_with_torchmetrics(n, m, size):
    """Also where fewer rows than dimensions leave the covariances singular."""
    a, b = normal(n, size, 1), 1.3 * normal(m, size, 2).cumsum(1) + 0.4
    metric = FrechetInceptionDistance(feature=Given(size)).set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    # Its root of a rounded eigenvalue costs half of the digits where one is 0.
    assert frechet_distance(a, b) == pytest.approx(float(metric.compute()), rel=1e-5)


def test_frechet_of_identical_and_of_shifted_singular_sets():
    x = normal(9, 40)
    x[:, 5:11] = 3.0  # features that never fire
    shift = torch.linspace(-1, 2, 40)
    assert frechet_distance(x, x) < 1e-12
    assert frechet_distance(x, x + shift) == pytest.approx(float(shift @ shift), abs=1e-11)


# The kernel distance.


def test_kernel_distance_of_two_points():
    """Every row of one set is p and of the other q: k(p, p) + k(q, q) - 2 k(p, q)."""
    p, q = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.5, 0.0, 3.0])

    def k(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    expected = k(p, p) + k(q, q) - 2 * k(p, q)
    for biased in (True, False):
        actual = kernel_distance(p.repeat(4, 1), q.repeat(7, 1), biased=biased)
        assert actual == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_of_identical_sets():
    x = normal(23, 6)
    assert abs(kernel_distance(x, x, biased=True)) < 1e-12
    diagonal = float((((x.square().sum(1) / 6) + 1) ** 3).mean())
    others = float((((x @ x.T / 6) + 1) ** 3).sum() - 23 * diagonal) / (23 * 22)
    # Without a row's kernel with itself two copies are nearer than chance: below 0 by just that.
    assert kernel_distance(x, x) == pytest.approx(-2 / 23 * (diagonal - others), rel=1e-9)


@pytest.mark.parametrize("n, m, size", [(40, 40, 7), (15, 29, 3), (2, 3, 1)])
def test_kernel_distance_agrees_with_scikit_learn(n, m, size, small_chunks):
    from sklearn.metrics.pairwise import polynomial_kernel

    a, b = normal(n, size, 1), 1.4 * normal(m, size, 2) + 0.3
    aa, ab, bb = (polynomial_kernel(x, y, degree=3) for x, y in ((a, a), (a, b), (b, b)))
    biased = aa.mean() + bb.mean() - 2 * ab.mean()
    unbiased = (
        (aa.sum() - np.trace(aa)) / (n * (n - 1))
        + (bb.sum() - np.trace(bb)) / (m * (m - 1))
        - 2 * ab.mean()
    )
    assert kernel_distance(a, b, biased=True) == pytest.approx(biased, rel=1e-9)
    assert kernel_distance(a, b) == pytest.approx(unbiased, rel=1e-9)
    assert kernel_distance(b, a) == pytest.approx(unbiased, rel=1e-9)


def test_kernel_distance_agrees_with_torchmetrics():
    a, b = normal(60, 11, 1), normal(60, 11, 2) + 0.2
    assert kernel_distance(a, b) == pytest.approx(float(poly_mmd(a, b)), rel=1e-9)


def test_kernel_distance_of_two_gaussians_has_the_right_mean():
    """Unbiased at n = 12; the biased one is far off."""
    m1, m2 = torch.zeros(3), torch.tensor([0.6, -0.3, 0.2])
    s1, s2 = torch.tensor([1.0, 0.5, 1.2]), torch.tensor([0.7, 0.9, 1.0])
    expected = gaussian_kernel_distance(m1, s1.square().diag(), m2, s2.square().diag())
    actual = {True: [], False: []}
    for k in range(3000):
        a, b = normal(12, 3, 2 * k) * s1 + m1, normal(15, 3, 2 * k + 1) * s2 + m2
        for biased, result in actual.items():
            result.append(kernel_distance(a, b, biased=biased))
    error = np.std(actual[False]) / math.sqrt(3000)
    assert abs(np.mean(actual[False]) - expected) < 4 * error < 0.1 * expected
    assert np.mean(actual[True]) > expected + 10 * error


def test_subsets_are_the_published_protocol():
    a, b = normal(80, 5, 1), normal(95, 5, 2) + 0.5
    whole = kernel_distance(a, b)
    assert kernel_distance(a, b[:80], subset=80, subsets=1) == pytest.approx(
        kernel_distance(a, b[:80]), rel=1e-9
    )
    some = [kernel_distance(a, b, subset=30, subsets=60, seed=s) for s in range(2)]
    assert some[0] != some[1] and some[0] == kernel_distance(a, b, subset=30, subsets=60)
    assert some[0] == pytest.approx(whole, rel=0.15)


@pytest.mark.parametrize("subset, subsets", [(1, 10), (9, 10), (5, 0)])
def test_subsets_that_cannot_be_taken_are_refused(subset, subsets):
    with pytest.raises(ConfigError, match="2 to 8 rows"):
        kernel_distance(normal(8, 2), normal(12, 2), subset=subset, subsets=subsets)


# The Inception score.


def test_inception_score_of_certain_and_of_undecided_samples():
    assert inception_score(torch.eye(7).repeat(5, 1)) == pytest.approx(7, rel=1e-12)
    assert inception_score(torch.eye(7)[:1].repeat(5, 1)) == pytest.approx(1, rel=1e-12)
    assert inception_score(torch.full((6, 4), 0.25)) == pytest.approx(1, rel=1e-12)


def test_inception_score_of_two_kinds():
    """(p, 1 - p) and (1 - p, p): log 2 less the entropy of p."""
    p = 0.9
    expected = math.exp(math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p))
    assert inception_score(torch.tensor([[p, 1 - p], [1 - p, p]])) == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save", "ignore:std")
def test_inception_score_agrees_with_torchmetrics():
    logits = 2 * normal(61, 10)
    metric = InceptionScore(feature=Given(10), splits=1).set_dtype(torch.float64)
    metric.update(logits)
    actual = inception_score(logits.softmax(1))
    assert actual == pytest.approx(float(metric.compute()[0]), rel=1e-9)
    assert 1.5 < actual < 10


@pytest.mark.parametrize(
    "bad", [normal(5, 3), torch.full((5, 3), 0.5), torch.zeros(0, 3), torch.full((5, 3), math.nan)]
)
def test_what_is_no_probability_is_refused(bad):
    with pytest.raises(DataError, match="softmax"):
        inception_score(bad)


# Precision and recall.


def test_precision_and_recall_by_hand():
    """On a line, k = 1.  Balls: 0 and 1 reach 1, 5 reaches 4; of the fakes 1.5, 2.5 and 12."""
    real = torch.tensor([[0.0], [1.0], [5.0]])
    fake = torch.tensor([[1.5], [12.0], [-1.5], [2.5]])
    precision, recall = precision_recall(real, fake, k=1)
    assert precision == 2 / 4  # 1.5 and 2.5
    # 1.5 and 2.5 reach 1; 12 reaches 9.5; -1.5 reaches 3
    assert recall == 3 / 3


def second(real, fake, k):
    """Kynkäänniemi et al. 2019 by scikit-learn's brute force."""
    from sklearn.neighbors import NearestNeighbors

    def inside(balls, points):
        result = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(balls)
        reach = result.kneighbors(balls)[0][:, k]
        apart = np.linalg.norm(np.asarray(balls)[:, None] - np.asarray(points)[None], axis=-1)
        return (apart <= reach[:, None]).any(0).mean()

    return inside(real, fake), inside(fake, real)


@pytest.mark.parametrize("n, m, size, k", [(60, 45, 3, 3), (33, 90, 8, 1), (80, 80, 2, 5)])
def test_precision_and_recall_agree_with_scikit_learn(n, m, size, k, small_chunks):
    real, fake = normal(n, size, 1) + 50, 0.8 * normal(m, size, 2) + 51
    expected = second(real, fake, k)
    assert precision_recall(real, fake, k=k) == pytest.approx(expected, abs=1e-12)
    assert precision_recall(fake, real, k=k) == pytest.approx(expected[::-1], abs=1e-12)
    assert 0 < min(expected) < 1


def test_identical_distant_and_collapsed_sets():
    x = normal(50, 4)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)
    collapsed = x[:1].repeat(20, 1) + 1e-4 * normal(20, 4, 3)
    precision, recall = precision_recall(x, collapsed)
    assert precision == 1 and recall <= 1 / 50


def test_copies_are_at_no_distance():
    """However far from the origin, where a matrix product rounds: a ball of radius 0 holds its centre."""
    x = normal(6, 30) + 1e4
    apart = square_distances(x, x[[3, 1, 1]])
    assert (apart == 0).nonzero().tolist() == [[1, 1], [1, 2], [3, 0]]
    assert precision_recall(x[:1].repeat(5, 1), x[:1].repeat(7, 1)) == (1, 1)
    expected = torch.cdist(x, x[[3, 1, 1]]).square()
    assert torch.allclose(apart, expected, atol=1e-5)


def test_a_ball_needs_neighbours():
    with pytest.raises(DataError, match="n at least 4"):
        precision_recall(normal(3, 2), normal(9, 2))
    with pytest.raises(ConfigError, match="k=0"):
        precision_recall(normal(5, 2), normal(9, 2), k=0)


@pytest.mark.parametrize("distance", [kernel_distance, precision_recall, frechet_distance])
def test_float32_is_computed_in_float64_and_nan_is_refused(distance):
    a, b = normal(30, 4, 1).float(), normal(30, 4, 2).float()
    assert distance(a, b) == pytest.approx(distance(a.double(), b.double()), rel=1e-12)
    with pytest.raises(DataError, match="nan"):
        distance(a, b / 0)
    with pytest.raises(DataError, match="same D"):
        distance(a, b[:, :3])
