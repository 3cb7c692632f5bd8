"""Default batches and updates by the number of data, in numbers that were computed by hand."""

import pytest
import torch

from halfstep.data import Dataset, NoData
from halfstep.methods.default_updates import (
    default_batch,
    default_updates,
    every_time_updates,
    halving_updates,
    number_of,
)


@pytest.mark.parametrize(
    ("n", "batch"),
    [
        (1, 32),
        (100, 32),
        (511, 32),
        (512, 64),
        (1_000, 64),
        (1_023, 64),
        (1_024, 128),
        (10**6, 128),
    ],
)
def test_the_batch_is_an_eighth_of_the_data(n, batch):
    assert default_batch(n) == batch


@pytest.mark.parametrize(
    ("n", "batch", "updates"),
    [
        (100, 32, 2_000),  # 625 would be 200 passes
        (1_797, 128, 2_900),  # 2,808
        (50_000, 128, 79_000),  # 78,125
        (50_000, 256, 40_000),  # 39,063
        (64_000, 128, 100_000),
        (1_281_167, 128, 300_000),
    ],
)
def test_the_updates_are_200_passes(n, batch, updates):
    assert default_updates(n, batch) == updates


@pytest.mark.parametrize(
    ("teacher", "halving", "every_time"),
    [
        (800_000, 50_000, 200_000),  # of the paper
        (1_601, 110, 410),  # 100.06 and 400.25
        (2_000, 130, 500),  # 125; 100 images
        (2_900, 190, 730),  # 181.25 and 725; digits
        (79_000, 5_000, 20_000),  # 4,937.5 and 19,750; 50,000 images
        (300_000, 19_000, 75_000),  # 18,750
    ],
)
def test_shares_of_the_teachers_updates(teacher, halving, every_time):
    assert (halving_updates(teacher), every_time_updates(teacher)) == (halving, every_time)


def test_walks_from_noise_count_as_50_000():
    assert number_of(NoData()) == number_of(NoData(labels=(0, 1, 2))) == 50_000
    assert number_of(Dataset(torch.zeros(7, 2))) == 7
