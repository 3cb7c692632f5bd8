"""Distances between two sets of features."""

import torch
from torch import nn, Tensor

from halfstep.errors import DataError


class _Given(nn.Module):
    """Features are computed beforehand; torchmetrics is handed them as they are."""

    def __init__(self, size: int):
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared 2-Wasserstein distance between Gaussians fitted to two sets (Heusel et al. 2017, eq. 6).

    a, b  features, float [n, D], [m, D], at least two rows each

    Computed by torchmetrics in float64.  Biased upward: by about 1/n + 1/m, so compare only equal n and
    the same features, and see `sampling_floor`.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise DataError(
            f"a distance needs two sets [n, D] of the same D with n at least 2, got {list(a.shape)} and "
            f"{list(b.shape)}"
        )
    if not bool(a.isfinite().all() and b.isfinite().all()):
        raise DataError(
            "some features are nan or infinite: the samples that they come from are, too"
        )
    metric = FrechetInceptionDistance(feature=_Given(a.shape[1])).set_dtype(torch.float64)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    return float(metric.compute())


def sampling_floor(real: Tensor, n: int, *, splits: int = 8, seed: int = 0) -> float:
    """What `frechet_distance` of n perfect samples to `real` is expected to be, from its bias alone.

    The mean distance between random halves of the real features, scaled by (1/n + 1/len(real)) over the
    halves' own (2/h): the bias is that to first order.
    """
    if n < 1 or len(real) < 4:
        raise DataError(f"a floor needs n of at least 1 and 4 real rows, got {n} and {len(real)}")
    half = len(real) // 2
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for _ in range(splits):
        order = torch.randperm(len(real), generator=generator)
        total += frechet_distance(real[order[:half]], real[order[half : 2 * half]])
    return total / splits * (1 / n + 1 / len(real)) / (2 / half)
