"""Intervals of precision and recall, by half-samples, because copies of rows break nearest neighbours."""

from dataclasses import dataclass

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
    neighbours: "Neighbours | None" = None,
) -> tuple[Interval, Interval]:
    """Intervals of `precision_recall`, for its mean over samples of this size, by half-samples.

    In a bootstrap sample the nearest neighbours of a row are its copies: balls shrink and both numbers fall
    (by 0.1 at k = 3).  Resampling only which points were hit keeps the balls and gives two thirds of the
    true spread: most of it comes from the balls.  Halves drawn without replacement have no copies: around
    its mean, the statistic of a random half varies as that of the whole (1/(n/2) - 1/n = 1/n; Politis,
    Romano & Wolf 1999, section 2.3), and somewhat more for neighbours, the safe side.  No bias is removed,
    because the numbers have a meaning only at their n.

    neighbours  `Neighbours.of(real, k)`, to compute it once for several `fake`
    """
    real, fake = checked(real, fake, least=2 * k + 2)
    if k < 1:
        raise ConfigError(f"precision and recall need a neighbour, got k={k}: write k=3")
    inside = _Balls(real, fake, neighbours or Neighbours.of(real, k))
    outside = _Balls(fake, real, Neighbours.of(fake, k))
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


@dataclass(frozen=True)
class Neighbours:
    """Each row's nearest other rows, enough that k of them are in any half (except 1 in 10^10)."""

    distances: Tensor
    """Squared, ascending, float64 [n, count]."""
    rows: Tensor
    """Their numbers, int64 [n, count]."""
    k: int

    @classmethod
    def of(cls, rows: Tensor, k: int = 3) -> "Neighbours":
        """The neighbours of features, float [n, D]; `DataError` unless finite and at least 2k + 2."""
        (rows, _), count = checked(rows, rows, least=2 * k + 2), min(len(rows) - 1, 4 * k + 36)
        parts = torch.arange(len(rows), device=rows.device).split(ROWS)
        near = [nearest(rows, part, count) for part in parts]
        return cls(torch.cat([x for x, _ in near]), torch.cat([x for _, x in near]), k)


class _Balls:
    """The points inside some row's ball, for any subset of the rows and points.

    Stores the pairs of row and point closer than the last of the row's stored neighbours.
    """

    def __init__(self, rows: Tensor, points: Tensor, near: Neighbours):
        self.near, pairs = near, []
        for part in torch.arange(len(rows), device=rows.device).split(ROWS):
            apart = square_distances(rows[part], points)
            row, point = (apart <= near.distances[part, -1:]).nonzero(as_tuple=True)
            pairs.append((part[row], point, apart[row, point]))
        self.row, self.point, self.apart = (torch.cat(x) for x in zip(*pairs, strict=True))

    def share(self, rows: Tensor, points: Tensor) -> float:
        """The share of these points inside some ball of these rows; both are masks."""
        near = self.near
        last = (rows[near.rows].cumsum(1) >= near.k).byte().argmax(1, keepdim=True)
        reach = near.distances.gather(1, last)[:, 0].where(rows, -1.0)
        hit = torch.zeros_like(points)
        hit[self.point[self.apart <= reach[self.row]]] = True
        return float(hit[points].double().mean())
