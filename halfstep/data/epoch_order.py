"""The order of samples in training: a function of (seed, stage, update), never of the history."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halfstep.errors import ConfigError


@lru_cache(maxsize=4)  # an update touches one epoch or two; a miss costs one permutation
def _permutation(seed: int, stage: int, epoch: int, n: int) -> NDArray[np.int64]:
    key = np.random.SeedSequence([seed, stage, epoch])
    return np.random.default_rng(key).permutation(n)


def rows(seed: int, stage: int, update: int, batch: int, n: int) -> Tensor:
    """The rows of an update's batch, int64 [batch], out of n samples.

    They lie at positions update * batch and on in a sequence of permutations, one for each
    (seed, stage, epoch): every sample occurs once an epoch, and a batch may span two epochs.
    """
    if min(seed, stage, update) < 0 or batch < 1 or n < 1:
        raise ConfigError(
            f"no batch of {batch} from {n} samples at seed {seed}, stage {stage}, update {update}: "
            "batch and samples are at least 1, the others at least 0"
        )
    start, stop = update * batch, (update + 1) * batch
    parts = [
        _permutation(seed, stage, epoch, n)[max(start - epoch * n, 0) : stop - epoch * n]
        for epoch in range(start // n, (stop - 1) // n + 1)
    ]
    return torch.from_numpy(np.concatenate(parts))  # a copy: the cache keeps its own
