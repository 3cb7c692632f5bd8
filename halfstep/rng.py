"""Randomness that depends on (seed, stage, update, sample) and on nothing else.

Never on the process, the micro-batch, the history or the clock: so a resumed run, and a run on several
processes, see what an uninterrupted run on one process sees.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor


def key(*parts: int) -> int:
    """A 32-bit seed from integers such as (seed, stage, update); neighbours are unrelated.

    Seeds are never added: torch's CPU generator reads 32 bits, and seed + k makes neighbours equal.
    """
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


@contextmanager
def fork_rng(seed: int | None = None) -> Iterator[None]:
    """Inside it global random generators may be used; afterwards they are as they were, also after an error.

    torch's on every device that is in use, numpy's and Python's: they are the caller's.

    seed  torch's inside it; by default it begins with what is there
    """
    # Drawn from before, a device's generator begins with the seed that torch's own one was given.
    given, cuda = torch.initial_seed(), torch.cuda.is_initialized()
    ours, numpys, pythons = torch.get_rng_state(), np.random.get_state(), random.getstate()
    theirs = torch.cuda.get_rng_state_all() if cuda else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        if seed is not None:
            torch.manual_seed(seed)
        yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)
        if cuda:
            torch.cuda.set_rng_state_all(theirs)
        elif torch.cuda.is_available():
            torch.cuda.manual_seed_all(given)
        if mps is not None:
            torch.mps.set_rng_state(mps)
        torch.set_rng_state(ours)


@dataclass(frozen=True)
class Draw:
    """Draws for the `whole` batch of an update, and returns the `rows` of this slice of it.

    Two processes, or two micro-batches, each with its own slice and a generator in the same state, get
    together what one process gets.
    """

    generator: Generator
    whole: int
    rows: slice

    @classmethod
    def all(cls, generator: Generator, whole: int) -> "Draw":
        """The slice that is everything."""
        return cls(generator, whole, slice(0, whole))

    def normal(self, like: Tensor) -> Tensor:
        """Unit normal noise, shape, dtype and device of `like` (this slice's rows)."""
        shape = self.whole, *like.shape[1:]
        device = self.generator.device
        drawn = torch.randn(shape, generator=self.generator, device=device, dtype=like.dtype)
        return drawn[self.rows]

    def integers(self, n: int) -> Tensor:
        """Uniform in {0, ..., n - 1}, int64, one a sample."""
        device = self.generator.device
        drawn = torch.randint(n, (self.whole,), generator=self.generator, device=device)
        return drawn[self.rows]

    def uniform(self) -> Tensor:
        """Uniform in [0, 1), float64 (float32 where the device has no float64), one a sample."""
        device = self.generator.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        drawn = torch.rand(self.whole, generator=self.generator, device=device, dtype=dtype)
        return drawn[self.rows]


def sample_noise(
    seed: int, samples: Sequence[int], shape: Sequence[int], *, step: int = 0
) -> Tensor:
    """Unit normal noise of these samples of this seed, float32 [len(samples), *shape].

    The noise of sample k is the same to the bit whichever samples it is drawn with.  `step` 0 is what a
    walk starts from; a stochastic sampler's step n draws with step = n + 1.
    """
    rows = [
        np.random.Generator(
            np.random.Philox(key=np.array([seed, k], dtype=np.uint64), counter=[0, 0, 0, step])
        ).standard_normal(tuple(shape), dtype=np.float32)
        for k in samples
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, *shape)
