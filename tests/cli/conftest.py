"""Folders that tests of several commands share."""

import pytest

from tests.support.commands import TINY, type_command


@pytest.fixture(scope="module")
def feature_cache(tmp_path_factory):
    """A cache of features for this module, and one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        patch.setenv("HALFSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """A run of a tiny teacher of two moons."""
    out = tmp_path_factory.mktemp("moons") / "teacher"
    assert type_command(["train", "denoiser", *TINY, "--out", out, "--updates", 60]) == 0
    return out
