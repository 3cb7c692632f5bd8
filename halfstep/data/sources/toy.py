"""Points in the plane that train in seconds."""

import numpy as np
import torch

from halfstep.data.dataset import Dataset

NOISE = 0.05


def two_moons(samples: int = 10_000) -> Dataset:
    """Two interleaved half circles, always the same points: float32 [samples, 2] with labels.

    The points of scikit-learn's `make_moons(samples, noise=0.05, random_state=0)`, to the bit. Each axis
    has mean 0 and equal variance; the farthest coordinate is at distance 1.
    """
    upper, lower = (np.linspace(0, np.pi, n) for n in (samples // 2, samples - samples // 2))
    x = np.append(np.cos(upper), 1 - np.cos(lower))
    y = np.append(np.sin(upper), 1 - np.sin(lower) - 0.5)
    order, draw = np.arange(samples), np.random.RandomState(0)
    draw.shuffle(order)
    points = np.stack([x, y], 1)[order]
    points += draw.normal(scale=NOISE, size=points.shape)
    points = (points - points.mean(0)) / points.std(0)
    points /= np.abs(points).max()
    labels = torch.from_numpy((order >= len(upper)).astype(np.int64))
    return Dataset(
        torch.from_numpy(points.astype(np.float32)), labels, ("upper", "lower"), origin="two-moons"
    )
