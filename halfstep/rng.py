"""Randomness that depends only on (seed, stage, update, sample).

It never depends on the process, the micro-batch, the history or the clock, so that a resumed run, and a run
on several processes, draw the same numbers as an uninterrupted run on one process.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

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
    """Restore the caller's global random generators at the end of the block, also after an error.

    These are torch's on every device in use, numpy's and Python's.

    seed  torch's seed in the block; by default the state is not changed
    """
    # A device's generator that was not yet used starts from torch's seed.
    initial_seed, cuda = torch.initial_seed(), torch.cuda.is_initialized()
    cpu_state, numpy_state, python_state = (
        torch.get_rng_state(), np.random.get_state(), random.getstate(),
    )  # fmt: skip
    cuda_states = torch.cuda.get_rng_state_all() if cuda else []
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        if seed is not None:
            torch.manual_seed(seed)
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda_states)
        elif torch.cuda.is_available():
            torch.cuda.manual_seed_all(initial_seed)
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)
        torch.set_rng_state(cpu_state)


class Uniform(Protocol):
    """Draws uniform numbers in [0, 1), one a sample."""

    def uniform(self) -> Tensor: ...


@dataclass(frozen=True)
class Draw:
    """Draws random numbers for the `whole` batch of an update, and returns the `rows` of one slice.

    Two processes, or two micro-batches, each with its slice and a generator in the same state, together get
    the numbers that one process gets.
    """

    generator: Generator
    whole: int
    rows: slice
    place: tuple[int, int, int] | None = None
    """(seed, stage, update); None outside of training, as in a rehearsal."""

    @classmethod
    def all(cls, generator: Generator, whole: int) -> "Draw":
        """The draw whose slice is the whole batch."""
        return cls(generator, whole, slice(0, whole))

    def normal(self, like: Tensor) -> Tensor:
        """Unit normal noise with the shape, dtype and device of `like` (this slice's rows)."""
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

    The noise of sample k is the same to the bit whichever samples it is drawn with.  Sampling starts from
    `step` 0; step n of a stochastic sampler draws with step = n + 1.
    """
    rows = [
        _generator(seed, k, step=step).standard_normal(tuple(shape), dtype=np.float32)
        for k in samples
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, *shape)


def sample_uniforms(seed: int, samples: Sequence[int], count: int) -> Tensor:
    """`count` numbers of each of these samples, uniform in [0, 1), float64 [len(samples), count].

    Those of sample k are the same whichever samples they are drawn with.
    """
    rows = [_generator(seed, k).random(count) for k in samples]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, count).double()


def _generator(seed: int, k: int, *, step: int = 0) -> np.random.Generator:
    numbers = np.array([seed, k], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=numbers, counter=[0, 0, 0, step]))
