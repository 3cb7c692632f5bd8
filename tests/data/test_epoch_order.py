"""The order of samples in training."""

import pytest
import torch

from halfstep.data import rows
from halfstep.errors import ConfigError
from tests.support.refusals import refused


@pytest.mark.parametrize("batch, n", [(4, 12), (5, 12), (1, 1), (7, 7), (12, 5), (31, 4), (3, 1)])
def test_every_epoch_is_a_permutation(batch, n):
    epochs = 4
    updates = -(-epochs * n // batch)
    drawn = [rows(3, 1, k, batch, n) for k in range(updates)]
    assert all(r.shape == (batch,) and r.dtype == torch.int64 for r in drawn)
    laid = torch.cat(drawn)[: epochs * n].reshape(epochs, n)
    for epoch in laid:
        assert epoch.sort().values.tolist() == list(range(n))
    if n >= 7:
        assert len({tuple(epoch.tolist()) for epoch in laid}) == epochs


def test_an_update_depends_on_its_number_alone():
    forward = [rows(0, 0, k, 5, 12) for k in range(9)]
    for k in (8, 0, 3, 3):
        rows(1, 4, 100 + k, 5, 12).fill_(-1)  # what others draw, or write into their rows
        again = rows(0, 0, k, 5, 12)
        assert torch.equal(again, forward[k])
        again.fill_(-1)
    assert torch.equal(rows(0, 0, 2, 5, 12), forward[2])


def test_batch_size_only_cuts_the_same_order():
    whole = torch.cat([rows(7, 2, k, 4, 10) for k in range(15)])
    other = torch.cat([rows(7, 2, k, 6, 10) for k in range(10)])
    assert torch.equal(whole, other)


def test_seed_and_stage_change_the_order():
    drawn = {tuple(rows(s, g, 0, 50, 50).tolist()) for s in range(3) for g in range(3)}
    assert len(drawn) == 9


@pytest.mark.parametrize(
    "bad", [(-1, 0, 0, 4, 9), (0, 0, -1, 4, 9), (0, 0, 0, 0, 9), (0, 0, 0, 4, 0)]
)
def test_orders_that_cannot_be(bad):
    with refused(ConfigError, "no batch of"):
        rows(*bad)
