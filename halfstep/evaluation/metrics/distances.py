"""Distances between two sets of features: pure functions in float64.

Tested against torchmetrics, scipy and scikit-learn.  torchmetrics itself is not used: its classes take
images batch by batch and keep a state, its Fréchet distance takes seven times as long at 4 dimensions, its
KID needs two sets of one size, its Inception score shuffles with the global generator, and it has no
precision and recall.

Intervals are in `distance_bootstrap` and `precision_recall_bootstrap`.
"""

import torch
from torch import Tensor

from halfstep.errors import ConfigError, DataError

# Rows of a matrix of all pairs held in memory at once: 1024 x 50,000 in float64 are 400 MB.
ROWS = 1024


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Squared 2-Wasserstein distance between Gaussians fitted to two sets (Heusel et al. 2017, eq. 6).

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2). With C = R'R from a QR decomposition of the centred
    rows the last trace is the sum of the singular values of R1 R2': no covariance is formed, no root of a
    rounded eigenvalue is taken, and constant features or fewer rows than D cost no accuracy.

    Biased upward by about 1/n + 1/m, so compare only equal n and the same features, and see
    `sampling_floor`. At D = 2048 about 5 s on one core for 4,000 rows.

    Args:
        real: float [n, D], features, n at least 2.
        fake: float [m, D], features, m at least 2; the distance is symmetric in the two.

    Raises:
        DataError: other shapes, or features that are not finite.
    """
    real, fake = checked(real, fake)
    return frechet_of_factors(factor(real), factor(fake))


def factor(rows: Tensor) -> tuple[Tensor, Tensor]:
    """A set's mean [D] and an upper triangular R [min(n, D), D] with R'R its covariance."""
    mean = rows.mean(0)
    centred = (rows - mean) / (len(rows) - 1) ** 0.5
    return mean, torch.linalg.qr(centred, mode="r").R


def frechet_of_factors(real: tuple[Tensor, Tensor], fake: tuple[Tensor, Tensor]) -> float:
    """The Fréchet distance of two sets, each given by its `factor`."""
    (mean, root), (other_mean, other_root) = real, fake
    spread = root.square().sum() + other_root.square().sum()
    shared = torch.linalg.svdvals(root @ other_root.T).sum()
    return max(0.0, float((mean - other_mean).square().sum() + spread - 2 * shared))


def kernel_distance(
    real: Tensor,
    fake: Tensor,
    *,
    biased: bool = False,
    subset: int | None = None,
    subsets: int = 100,
    seed: int = 0,
) -> float:
    """Squared maximum mean discrepancy under (x'y / D + 1)^3, KID (Binkowski et al. 2018, eq. 4).

    real, fake  features, float [n, D], [m, D], at least two rows each; symmetric in the two
    biased      include each row's kernel with itself: never negative, 0 for identical sets, too large by
                about 1/n + 1/m.  The unbiased published KID has the right mean for every n, and is
                negative half of the time if the true value is 0
    subset      the published protocol: the mean over `subsets` random subsets of this many rows of each set
                (100 of 1000).  None takes all rows at once: the same mean, less noise
    """
    real, fake = checked(real, fake)
    if subset is None:
        return float(kernel_form(real, fake, *(_ones(x) for x in (real, fake)), biased=biased))
    if not 2 <= subset <= min(len(real), len(fake)) or subsets < 1:
        raise ConfigError(
            f"cannot take {subsets} subsets of {subset} rows from {len(real)} and {len(fake)}: write "
            f"at least 1 subset of 2 to {min(len(real), len(fake))} rows"
        )
    generator, total = torch.Generator().manual_seed(seed), 0.0
    for _ in range(subsets):
        a, b = (x[torch.randperm(len(x), generator=generator)[:subset]] for x in (real, fake))
        total += float(kernel_form(a, b, _ones(a), _ones(b), biased=biased))
    return total / subsets


def kernel_form(
    real: Tensor,
    fake: Tensor,
    count: Tensor,
    other: Tensor,
    *,
    biased: bool = False,
    strata: int = 1,
) -> Tensor:
    """`kernel_distance` of weighted rows, for S sets of weights at once: [S].

    count, other  the weight of each row, float [S, n], [S, m]
    strata        number of classes of fake rows with cyclic labels.  Of such rows fewer pairs are of one
                  class than of two independent samples, so those pairs get the weight that they lack

    Unbiased: no row is compared with itself or its copies.
    """

    def within(x: Tensor, w: Tensor, strata: int = 1) -> Tensor:
        whole, among = _sums(x, x, w, w), w.sum(1).square()
        if biased:
            return whole / among
        diagonal = (x.square().sum(1) / x.shape[1] + 1) ** 3
        if strata == 1:
            return (whole - w.square() @ diagonal) / (among - w.square().sum(1))
        for k in range(min(strata, len(x))):
            part, v = x[k::strata], w[:, k::strata]
            own, pairs = _sums(part, part, v, v), v.sum(1).square() - v.square().sum(1)
            apart = (own - v.square() @ diagonal[k::strata]) / pairs.clamp(min=1)
            # a class with a single row has no pair, and its row stands for it
            whole += torch.where(pairs > 0, v.sum(1).square() * apart, own) - own
        return whole / among

    between = _sums(real, fake, count, other) / (count.sum(1) * other.sum(1))
    return within(real, count) + within(fake, other, strata) - 2 * between


def _sums(x: Tensor, y: Tensor, wx: Tensor, wy: Tensor) -> Tensor:
    """Sum of w_i w_j k(x_i, y_j) over all pairs, [S]."""
    total = wx.new_zeros(len(wx))
    for part, w in zip(x.split(ROWS), wx.split(ROWS, 1), strict=True):
        total += ((w @ (part @ y.T / x.shape[1] + 1) ** 3) * wy).sum(1)
    return total


def _ones(x: Tensor) -> Tensor:
    return x.new_ones(1, len(x))


def inception_score(probabilities: Tensor) -> float:
    """exp of the mean KL divergence of p(y | x) from their mean p(y) (Salimans et al. 2016, section 4).

    probabilities  float [n, classes] in [0, 1], each row sums to 1

    From 1 (all samples alike, or all undecided) to the number of classes.  Computed over all rows, not as
    the lower mean of ten splits.  Biased downward, by about (classes - 1) / n in its logarithm.
    """
    p = probabilities.double()
    if (
        p.ndim != 2
        or not len(p)
        or not bool(((p.sum(1) - 1).abs() < 1e-4).all() and (p >= 0).all())
    ):
        raise DataError(
            f"an Inception score needs rows of probabilities [n, classes] that sum to 1, got "
            f"{list(p.shape)}: apply softmax to the logits"
        )
    mean = p.mean(0)
    return float((torch.xlogy(p, p).sum(1).mean() - torch.xlogy(mean, mean).sum()).exp())


def precision_recall(real: Tensor, fake: Tensor, *, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, eqs. 1 and 2), each in [0, 1].

    real, fake  features, float [n, D], [m, D], more than k rows each
    k           a row's ball reaches its k-th nearest neighbour in the same set

    Precision is the share of fake rows inside the ball of some real row, recall the share of real rows
    inside the ball of some fake row.  Both depend on the numbers of rows: compare only equal n and m.
    """
    real, fake = checked(real, fake, least=k + 1)
    if k < 1:
        raise ConfigError(f"precision and recall need a neighbour, got k={k}: write k=3")
    return _inside(real, fake, k), _inside(fake, real, k)


def _inside(balls: Tensor, points: Tensor, k: int) -> float:
    """The share of points inside some ball."""
    hit = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for rows in torch.arange(len(balls), device=balls.device).split(ROWS):
        reach = nearest(balls, rows, k)[0][:, -1:]
        hit |= (square_distances(balls[rows], points) <= reach).any(0)
    return float(hit.double().mean())


def nearest(x: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest other rows of these rows of x: squared distances, ascending, and row numbers."""
    near = square_distances(x[rows], x)
    near[torch.arange(len(rows), device=x.device), rows] = torch.inf
    neighbours = near.topk(k, largest=False)
    return neighbours.values, neighbours.indices


def square_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2, [n, m], by one matrix product; values at the level of rounding are 0."""
    scale = x.square().sum(1, keepdim=True) + y.square().sum(1)
    apart = scale - 2 * x @ y.T
    return apart.where(apart > 1e-12 * scale, 0.0)


def checked(real: Tensor, fake: Tensor, *, least: int = 2) -> tuple[Tensor, Tensor]:
    """Both sets in float64; `DataError` unless they are finite, [n, D], with at least `least` rows."""
    if (
        real.ndim != 2
        or fake.ndim != 2
        or real.shape[1] != fake.shape[1]
        or min(len(real), len(fake)) < least
    ):
        raise DataError(
            f"a distance needs two sets [n, D] of the same D with n at least {least}, got "
            f"{list(real.shape)} and {list(fake.shape)}"
        )
    if not bool(real.isfinite().all() and fake.isfinite().all()):
        raise DataError("some features are nan or infinite: check the samples")
    return real.double(), fake.double()
