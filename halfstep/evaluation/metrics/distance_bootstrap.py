"""Intervals of the distances: each by the resampling that is right for it, at a cost that can be borne.

frechet_interval            in minutes at D = 2048, where the plain bootstrap takes a third of an hour
frechet_ratio               one Fréchet distance over another, fakes of the same noise
raw_frechet_interval        one, and
raw_frechet_ratio           a ratio, as so many samples score it, floor and all: what tells samplers apart
kernel_interval             KID, from one pass over the kernel
precision_recall_intervals  by halves, because a bootstrap's copies break nearest neighbours

An Inception score needs no more than `basic_bootstrap(inception_score, probabilities)`.
"""

import numpy as np
import torch
from torch import Tensor

from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics.bootstrap import (
    basic,
    Interval,
    quantiles,
    resampled_rows,
    seeded,
    shared_size,
)
from halfstep.evaluation.metrics.distances import (
    checked,
    factor,
    frechet_of_factors,
    kernel_form,
    nearest,
    ROWS,
    square_distances,
)
from halfstep.rng import key

EXACT = 24
"""Resamples that `frechet_interval` computes in full where D is above `SMALL`."""
SMALL = 128


def frechet_interval(
    real: Tensor,
    fake: Tensor,
    *,
    resamples: int = 200,
    exact: int | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """`basic_bootstrap(frechet_distance, real, fake)`, affordable at D = 2048.

    exact  resamples that are computed in full; None is all of them up to D = 128, and 24 above

    A resampled distance is the distance, plus the mean influence of the rows drawn (its first-order
    change by each row, from one singular value decomposition), plus a remainder that is small and
    steady.  So only `exact` resamples pay for a decomposition, and the others borrow their remainders in
    turn (Davison & Hinkley 1997, section 9.2).  With 4,000 rows of 2048 on one core: 2.5 minutes, all
    200 in full 17.

    It needs rows, about 10 D of each set: at D = 64 it covered 96 % of the time with 640, 86 % with 256
    (the bias is then no longer the bootstrap's), and below D, where a resample loses a third of the
    rank, it means nothing.
    """
    measured, draws = _frechet_draws(real, (fake,), resamples, exact, level, seed)
    return basic(measured[0], draws[:, 0], level)


def frechet_ratio(
    real: Tensor,
    over: Tensor,
    under: Tensor,
    *,
    resamples: int = 200,
    exact: int | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """frechet_distance(real, over) / frechet_distance(real, under), resampled in pairs.

    over, under  features of two samplers of the same noise, float [m, D]: rows are drawn together, and
                 the same real rows for both
    exact        see `frechet_interval`

    The bias in both pulls a ratio towards 1, and not by an amount that resampling doubles: the basic
    bootstrap of the ratio covered 55 % of the time in a trial.  So the bias is taken off each distance,
    not off their ratio: quantiles of (2a - a*) / (2b - b*).  `DataError` where the
    denominator cannot be told from 0.
    """
    measured, draws = _frechet_draws(real, (over, under), resamples, exact, level, seed)
    top, bottom = (2 * np.array(measured) - draws).T
    # By angle, because a ratio leaps from +inf to -inf where the denominator passes through 0.
    low, high = quantiles(np.arctan2(top, bottom), level)
    below = basic(measured[1], draws[:, 1], level)
    if below.low <= 0 or abs(high) >= np.pi / 2 or abs(low) >= np.pi / 2:
        raise DataError(
            f"a ratio over a distance of {below} means nothing, for that may be 0: take more samples"
        )
    return Interval(measured[0] / measured[1], float(np.tan(low)), float(np.tan(high)))


def raw_frechet_interval(
    real: Tensor,
    fake: Tensor,
    *,
    resamples: int = 200,
    exact: int | None = None,
    strata: int = 1,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """frechet_distance(real, fake) as any m samples would score it, the floor left in.

    exact   see `frechet_interval`
    strata  the number of classes, where the samples' labels go in turn (see `resampled_rows`): without it a
            resample has classes by chance, which the samples have not: near the floor most of
            its spread

    The real images are given; only the samples' noise is in the interval, which shrinks with m.  Resampled
    distances are all too large by about as much; their spread about their own mean is the distance's.
    For curves and tables of numbers taken at one m; `frechet_interval` is for the true distance.
    """
    measured, draws = _frechet_draws(
        real, (fake,), resamples, exact, level, seed, given=True, strata=strata
    )
    apart = draws[:, 0] - draws.mean()
    return Interval(measured[0], *quantiles(measured[0] - apart, level))


def raw_frechet_ratio(
    real: Tensor,
    over: Tensor,
    under: Tensor,
    *,
    block: int | None = None,
    resamples: int = 200,
    exact: int | None = None,
    strata: int = 1,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """frechet_distance(real, over) / frechet_distance(real, under) at this m, the floor left in both.

    over, under  features of two samplers of the same noise, float [m, D]: rows are drawn together
    block        take the distances of so many rows at a time and divide their sums: more rows then make
                 the ratio surer and leave it the ratio at m = block, for the floor does not shrink
    exact        see `frechet_interval`
    strata       see `raw_frechet_interval`

    What two samplers are told apart by, and what the gate asks: both carry the same floor, so nothing is
    taken off for bias, and the number has its meaning at its m (see `frechet_ratio` for the ratio
    without).  Each distance spreads as in `raw_frechet_interval`, relative to itself: the ratio's
    logarithm by the difference.  Resampled ratios themselves lie too near to 1 and too near together,
    for the floor counts twice in them: at m = 60 to 1000 and D = 4 they covered 75 to 97 % of the time,
    this 95 to 99 %.
    """
    rows = shared_size((over, under))
    size = min(block or rows, rows)
    parts = [
        _frechet_draws(
            real,
            (a, b),
            resamples,
            exact,
            level,
            key(seed, k) if k else seed,
            given=True,
            strata=strata,
        )
        for k, (a, b) in enumerate(zip(over.split(size), under.split(size), strict=True))
        if len(a) == size
    ]
    measured = [sum(found[i] for found, _ in parts) for i in (0, 1)]
    draws = np.sum([found for _, found in parts], axis=0)
    top, bottom = measured
    if min(measured) <= 0:
        raise DataError("a ratio over a distance of 0, or of it, means nothing: take more samples")
    apart = (draws - draws.mean(0)) / measured
    ends = np.exp(quantiles((apart[:, 1] - apart[:, 0]).clip(-50, 50), level))
    return Interval(top / bottom, *(float(end) * top / bottom for end in ends))


def kernel_interval(
    real: Tensor, fake: Tensor, *, resamples: int = 200, level: float = 0.95, seed: int = 0
) -> Interval:
    """The basic bootstrap of `kernel_distance`, unbiased, where no row meets its own copies.

    A resample is how often each row counts, so one pass over the kernel serves all: n = m = 2000 take
    2 s of one core at D = 2048, n = m = 10,000 a minute.
    """
    real, fake = checked(real, fake)
    counts = [[x.new_ones(len(x))] for x in (real, fake)]
    for rows in resampled_rows([len(real), len(fake)], resamples, level, seed):
        for found, at, x in zip(counts, rows, (real, fake), strict=True):
            found.append(torch.bincount(at, minlength=len(x)).to(x))
    value, *draws = kernel_form(real, fake, *(torch.stack(x) for x in counts)).tolist()
    return basic(value, draws, level)


def precision_recall_intervals(
    real: Tensor,
    fake: Tensor,
    *,
    k: int = 3,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Interval, Interval]:
    """Intervals of `precision_recall`, for its mean over samples of this size; by half-samples.

    A bootstrap draws rows again, and a row's copies are its nearest neighbours: balls shrink and both
    numbers fall (by 0.1 at k = 3).  Resampling only which points were hit leaves the balls as they
    are and gives two thirds of the true spread, for most of it comes from the balls.  So halves are
    drawn without replacement, which makes no copies: about its own mean a random half's statistic varies
    as that of the whole does (1/(n/2) - 1/n = 1/n; Politis, Romano & Wolf 1999, section 2.3), and
    somewhat more for neighbours, the safe side.  Nothing is taken off for bias: the numbers have no
    meaning but at their n.
    """
    real, fake = checked(real, fake, least=2 * k + 2)
    if k < 1:
        raise ConfigError(f"a ball needs a neighbour, k={k} has none: write 3")
    inside, outside = _Balls(real, fake, k), _Balls(fake, real, k)
    everything = [torch.ones(len(x), dtype=torch.bool, device=x.device) for x in (real, fake)]
    values = inside.share(*everything), outside.share(*everything[::-1])
    generator, draws = seeded(resamples, level, seed), np.empty((resamples, 2))
    for draw in draws:
        halves = []
        for x in (real, fake):
            half = torch.zeros(len(x), dtype=torch.bool)
            half[torch.randperm(len(x), generator=generator)[: len(x) // 2]] = True
            halves.append(half.to(x.device))
        draw[:] = inside.share(halves[0], halves[1]), outside.share(halves[1], halves[0])
    apart = draws.mean(0) - draws
    ends = [value + np.array(quantiles(a, level)) for value, a in zip(values, apart.T, strict=True)]
    first, second = (
        Interval(value, *(float(x) for x in end.clip(0, 1)))
        for value, end in zip(values, ends, strict=True)
    )
    return first, second


class _Balls:
    """Which points lie in some row's ball, when only some of the rows and points are there.

    Kept are each row's nearest others, enough that k of them are in any half (all but 1 in 10^10), and
    the pairs of row and point that are nearer than the last of them: a half costs one look at those.
    """

    def __init__(self, rows: Tensor, points: Tensor, k: int):
        kept, self.k = min(len(rows) - 1, 4 * k + 36), k
        near, pairs = [], []
        for part in torch.arange(len(rows), device=rows.device).split(ROWS):
            found = nearest(rows, part, kept)
            apart = square_distances(rows[part], points)
            row, point = (apart <= found[0][:, -1:]).nonzero(as_tuple=True)
            near.append(found)
            pairs.append((part[row], point, apart[row, point]))
        self.far, self.who = (torch.cat(x) for x in zip(*near, strict=True))
        self.row, self.point, self.apart = (torch.cat(x) for x in zip(*pairs, strict=True))

    def share(self, rows: Tensor, points: Tensor) -> float:
        """The share of these points in some ball of these rows; both are masks."""
        last = (rows[self.who].cumsum(1) >= self.k).byte().argmax(1, keepdim=True)
        reach = self.far.gather(1, last)[:, 0].where(rows, -1.0)
        hit = torch.zeros_like(points)
        hit[self.point[self.apart <= reach[self.row]]] = True
        return float(hit[points].double().mean())


def _frechet_draws(
    real: Tensor,
    fakes: tuple[Tensor, ...],
    resamples: int,
    exact: int | None,
    level: float,
    seed: int,
    *,
    given: bool = False,
    strata: int = 1,
) -> tuple[list[float], np.ndarray]:
    """Each fake's distance, and its resamples [resamples, fakes]; of fakes alone where real is given."""
    pairs = [checked(real, fake) for fake in fakes]
    real, fakes = pairs[0][0], tuple(fake for _, fake in pairs)
    if exact is None:
        exact = resamples if real.shape[1] <= SMALL else EXACT
    if exact < 1:
        raise ConfigError(f"exact={exact}: write at least 1 resample to compute in full")
    measured, linear = [], []
    for fake in fakes:
        value, *rows = _influence(real, fake)
        measured.append(value)
        linear.append(rows)
    draws = np.empty((resamples, len(fakes)))
    left: list[np.ndarray] = []
    sizes, whole = [*([] if given else [len(real)]), shared_size(fakes)], factor(real)
    for b, rows in enumerate(resampled_rows(sizes, resamples, level, seed, strata=strata)):
        *i, j = (at.to(real.device) for at in rows)
        near = np.array(measured) + [float(y[j].mean()) for _, y in linear]
        if not given:
            near += [float(x[i[0]].mean()) for x, _ in linear]
        if b < exact:
            root = whole if given else factor(real[i[0]])
            draws[b] = [frechet_of_factors(root, factor(fake[j])) for fake in fakes]
            left.append(draws[b] - near)
        else:
            draws[b] = near + left[b % len(left)]
    return measured, draws


def _influence(real: Tensor, fake: Tensor) -> tuple[float, Tensor, Tensor]:
    """The Fréchet distance, and its derivative by the weight of every row of either set: [n], [m].

    By C1 it is 1 - T, with T the matrix that carries the one Gaussian to the other; in the factors of
    `frechet_distance`, C = R'R and R1 R2' = U S V', x'Tx is |S^(1/2) U' R1'^(-1) x|^2, and the rows
    times R1^(-1) are the Q of their decomposition: nothing is inverted.
    """
    means = real.mean(0), fake.mean(0)
    centred = [x - mean for x, mean in zip((real, fake), means, strict=True)]
    q, root = torch.linalg.qr(centred[0])
    p, other = torch.linalg.qr(centred[1])
    scale = ((len(real) - 1) * (len(fake) - 1)) ** 0.5
    u, s, v = torch.linalg.svd(root @ other.T / scale, full_matrices=False)
    shift = means[0] - means[1]
    found = []
    for x, basis, turn, sign in zip(centred, (q, p), (u, v.T), (2, -2), strict=True):
        carried = ((basis @ turn) * s.sqrt()).square().sum(1) * (len(x) - 1)
        influence = sign * (x @ shift) + x.square().sum(1) - carried
        found.append(influence - influence.mean())
    trace = sum(float(x.square().sum()) / (len(x) - 1) for x in centred)
    value = max(0.0, float(shift.square().sum() - 2 * s.sum()) + trace)
    return value, found[0], found[1]
