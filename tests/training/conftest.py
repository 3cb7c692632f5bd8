"""An uninterrupted run, which the tests of interrupted and damaged ones compare with."""

import pytest

from tests.support.runs import halve


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "r"
    halve(out)
    return out
