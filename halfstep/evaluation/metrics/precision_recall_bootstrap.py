"""Intervals of precision and recall, by half-samples, because copies of rows break nearest neighbours."""

import numpy as np
import torch
from torch import Tensor

from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.bootstrap import Interval, quantiles, seeded
from halfstep.evaluation.metrics.distances import checked, nearest, ROWS, square_distances


def precision_recall_intervals(
    real: Tensor,
    fake: Tensor,
    *,
    k: int = 3,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Interval, Interval]:
    """Intervals of `precision_recall`, for its mean over samples of this size, by half-samples.

    In a bootstrap sample the nearest neighbours of a row are its copies: balls shrink and both numbers fall
    (by 0.1 at k = 3).  Resampling only which points were hit keeps the balls and gives two thirds of the
    true spread: most of it comes from the balls.  Halves drawn without replacement have no copies: around
    its mean, the statistic of a random half varies as that of the whole (1/(n/2) - 1/n = 1/n; Politis,
    Romano & Wolf 1999, section 2.3), and somewhat more for neighbours, the safe side.  No bias is removed,
    because the numbers have a meaning only at their n.
    """
    real, fake = checked(real, fake, least=2 * k + 2)
    if k < 1:
        raise ConfigError(f"precision and recall need a neighbour, got k={k}: write k=3")
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
    """The points inside some row's ball, for any subset of the rows and points.

    Stores each row's nearest neighbours, enough that k of them are in any half (except 1 in 10^10), and the
    pairs of row and point closer than the last of them.
    """

    def __init__(self, rows: Tensor, points: Tensor, k: int):
        count, self.k = min(len(rows) - 1, 4 * k + 36), k
        near, pairs = [], []
        for part in torch.arange(len(rows), device=rows.device).split(ROWS):
            nearest_rows = nearest(rows, part, count)
            apart = square_distances(rows[part], points)
            row, point = (apart <= nearest_rows[0][:, -1:]).nonzero(as_tuple=True)
            near.append(nearest_rows)
            pairs.append((part[row], point, apart[row, point]))
        self.distances, self.neighbours = (torch.cat(x) for x in zip(*near, strict=True))
        self.row, self.point, self.apart = (torch.cat(x) for x in zip(*pairs, strict=True))

    def share(self, rows: Tensor, points: Tensor) -> float:
        """The share of these points inside some ball of these rows; both are masks."""
        last = (rows[self.neighbours].cumsum(1) >= self.k).byte().argmax(1, keepdim=True)
        reach = self.distances.gather(1, last)[:, 0].where(rows, -1.0)
        hit = torch.zeros_like(points)
        hit[self.point[self.apart <= reach[self.row]]] = True
        return float(hit[points].double().mean())
