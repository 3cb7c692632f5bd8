"""Randomness depends on (seed, stage, update, sample): slices, neighbours, batches, steps."""

from itertools import pairwise

import pytest
import torch

from halfstep.batch import Batch, Cond
from halfstep.errors import ConfigError
from halfstep.rng import Draw, key, sample_noise
from tests.support.denoisers import seeded


def draws(draw, like):
    return draw.normal(like), draw.integers(7), draw.uniform()


@pytest.mark.parametrize("cuts", [(0, 5), (0, 1, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5)])
def test_slices_together_are_the_whole(cuts):
    """Two processes, or micro-batches, see what one process sees, to the bit."""
    like = torch.empty(5, 3, 4, 6, dtype=torch.float64)
    whole = draws(Draw.all(seeded(3), 5), like)
    parts = [draws(Draw(seeded(3), 5, slice(a, b)), like[a:b]) for a, b in pairwise(cuts)]
    for one, *many in zip(whole, *parts, strict=True):
        assert torch.equal(one, torch.cat(many))
    assert [d.dtype for d in whole] == [torch.float64, torch.int64, torch.float64]
    assert whole[0].shape == like.shape


def test_normal_is_shaped_by_like_and_sized_by_the_batch():
    draw = Draw(seeded(), 5, slice(1, 3))
    assert draw.normal(torch.empty(2, 3)).shape == (2, 3)
    assert draw.normal(torch.empty(2, 3)).dtype == torch.float32
    assert Draw.all(seeded(), 0).normal(torch.empty(0, 3)).shape == (0, 3)


def test_draws_have_their_distributions():
    n = 40_000
    draw = Draw.all(seeded(), n)
    normal, uniform = draw.normal(torch.empty(n, 1, dtype=torch.float64)), draw.uniform()
    assert abs(normal.mean()) < 4 / n**0.5 and abs(normal.std() - 1) < 4 / (2 * n) ** 0.5
    assert abs(uniform.mean() - 0.5) < 4 * (1 / 12 / n) ** 0.5
    assert uniform.min() >= 0 and uniform.max() < 1
    counts = draw.integers(4).bincount(minlength=4) / n
    assert len(counts) == 4 and bool(((counts - 0.25).abs() < 4 * (0.1875 / n) ** 0.5).all())


def test_the_generator_moves_on():
    draw = Draw.all(seeded(), 4)
    assert not torch.equal(draw.uniform(), draw.uniform())


def test_keys_of_neighbours_differ():
    """Seeds are not added: (seed, stage, update) and its neighbours are all different."""
    keys = {key(s, stage, k) for s in range(8) for stage in range(5) for k in range(50)}
    assert len(keys) == 8 * 5 * 50
    assert all(0 <= k < 2**32 for k in keys)
    assert key(1, 2, 3) == key(1, 2, 3)
    assert key(0, 1) != key(1, 0) and key(1, 2) != key(2, 1)
    first = torch.randn(3, generator=seeded(key(0, 0, 1)))
    assert not torch.equal(first, torch.randn(3, generator=seeded(key(0, 0, 2))))


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    shape, samples = (3, 4, 6), [9, 0, 4, 2**33]
    whole = sample_noise(7, samples, shape)
    assert whole.shape == (4, *shape) and whole.dtype == torch.float32
    for row, k in zip(whole, samples, strict=True):
        assert torch.equal(row, sample_noise(7, [k], shape)[0])
    assert torch.equal(whole[1:3], sample_noise(7, samples[1:3], shape))
    assert sample_noise(7, [], shape).shape == (0, *shape)
    assert sample_noise(7, range(3), (2,)).shape == (3, 2)


def test_noise_of_neighbours_differs():
    """Seed, sample and step each matter, at both ends of the seeds that there are."""
    seeds = (0, 1, 2**32, 2**63, 2**63 + 1, 2**64 - 1)
    drawn = [
        sample_noise(seed, [k], (4,), step=step)
        for seed in seeds
        for k in (0, 1, 2)
        for step in (0, 1, 2)
    ]
    rows = {tuple(row.flatten().tolist()) for row in drawn}
    assert len(rows) == len(seeds) * 3 * 3
    assert torch.equal(sample_noise(3, [5], (4,)), sample_noise(3, [5], (4,), step=0))


def test_steps_are_separate_streams():
    """Noise of a long image must not run into the noise of the next step."""
    long = sample_noise(0, [0], (5000,))[0]
    after = sample_noise(0, [0], (50,), step=1)[0]
    windows = long.unfold(0, 50, 1)
    assert not bool((windows == after).any(1).any())


def test_sample_noise_is_normal():
    noise = sample_noise(11, range(400), (5, 4, 5)).double()
    n = noise.numel()
    assert abs(noise.mean()) < 4 / n**0.5 and abs(noise.std() - 1) < 4 / (2 * n) ** 0.5
    assert abs(noise.mean((1, 2, 3)).std() * 10 - 1) < 4 / 800**0.5  # rows are independent


def test_rows_of_conditions_and_batches():
    cond = Cond(label=torch.arange(5), guidance_scale=torch.linspace(0, 4, 5))
    batch = Batch(torch.arange(10.0).reshape(5, 2), cond)
    part = batch[1:3]
    assert part.x0.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert part.cond.label.tolist() == [1, 2] and part.cond.guidance_scale.tolist() == [1.0, 2.0]
    assert part.cond.encoder_hidden_states is None
    assert Batch(batch.x0)[0:1].cond is None
    assert cond.to("cpu").label.tolist() == cond.label.tolist()


def test_conditions_are_joined_or_refused():
    one, other = Cond(label=torch.tensor([1, 2])), Cond(label=torch.tensor([3]))
    assert one.cat(other).label.tolist() == [1, 2, 3]
    assert one.cat(other).encoder_hidden_states is None
    with pytest.raises(ConfigError, match="one of two conditions has no guidance"):
        one.cat(Cond(label=torch.tensor([3]), guidance_scale=torch.tensor([1.0])))
