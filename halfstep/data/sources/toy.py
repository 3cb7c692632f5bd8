"""Points in the plane that train in seconds."""

import numpy as np
import torch

from halfstep.data.dataset import Dataset


def two_moons(samples: int = 10_000) -> Dataset:
    """Two interleaved half circles, always the same points: float32 [samples, 2] with labels.

    Each axis has mean 0 and equal variance; the farthest coordinate is at distance 1.
    """
    from sklearn.datasets import make_moons

    points, labels = make_moons(samples, noise=0.05, random_state=0)
    points = (points - points.mean(0)) / points.std(0)
    points /= np.abs(points).max()
    values = torch.from_numpy(points.astype(np.float32))
    class_labels = torch.from_numpy(labels.astype(np.int64))
    return Dataset(values, class_labels, ("upper", "lower"), origin="two-moons")
