"""One thread for torch, the same bits at every address, and float64 on request."""

import os

os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # before torch is imported, as the command does

import pytest
import torch
from hypothesis import settings

settings.register_profile("halfstep", derandomize=True, deadline=None, database=None)
settings.load_profile("halfstep")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Oversubscribed OpenMP threads spin and cost up to 30x on a small or shared machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def float64():
    """float64 by default in this module, whatever happens: `usefixtures("float64")`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
