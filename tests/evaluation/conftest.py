"""Small images, and the candidates that are evaluated on them."""

import pytest
import torch

from halfstep.data import Dataset
from halfstep.diffusion.time_grids import uniform
from halfstep.evaluation import Candidates
from tests.support.denoisers import seeded
from tests.support.evaluation import pipeline, SHAPE, students


@pytest.fixture(scope="module")
def data():
    values = torch.rand(60, *SHAPE, generator=seeded(1)) * 2 - 1
    return Dataset(values, torch.arange(60) % 2, ("even", "odd"))


@pytest.fixture(scope="module")
def candidates(data):
    return Candidates(pipeline(), students(4, 2, 1), data, uniform(8))
