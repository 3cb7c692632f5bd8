"""Two processes learn by multistep consistency what one does; the student jumps under the wrapper, too."""

import pytest

from halfstep.methods import MultistepConsistency
from halfstep.models.lora import Lora
from halfstep.training.run_folder import RunFolder
from tests.support.processes import launched
from tests.support.runs import double_teacher, doubled, furthest, halve, losses, weights_of
from tests.training.test_without_data import DoubleNoData

METHOD = MultistepConsistency(start=8, first=2, addim=0.1, updates=(8,))
OPTIONS = {"batch_size": 12, "log_every": 1, "save_every": 8}
CASES = {
    "data": {},
    "micro": {"micro_batch_size": 4},
    "lora": {"lora": Lora(rank=2)},
    "none": {"data": DoubleNoData()},
    "none-student": {"data": DoubleNoData(walk="student")},
    "ramp": {"method": MultistepConsistency(start=8, first=2, ramp_from=2, updates=(8,))},
}
SCRIPT = """
import sys
from pathlib import Path
from tests.training.test_few_step_processes import CASES, run

for name in CASES:
    run(Path(sys.argv[1]) / name, name)
"""


def run(out, name):
    options = {"method": METHOD, "data": doubled(), **OPTIONS, **CASES[name]}
    return halve(out, pipeline=double_teacher(), **options)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(SCRIPT)
    status, out, err = launched(str(folder / "script.py"), str(folder))
    assert (status, err) == (0, ""), out + err
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_does(two, tmp_path, name):
    run(tmp_path / "one", name)
    apart, whole = losses(two / name), losses(tmp_path / "one")
    assert apart == pytest.approx(whole, rel=1e-9)
    assert (
        len(whole) == 2 * 16 and whole[0] != whole[-1]
    )  # students of 2 steps and 1 have twice 8 updates
    if (
        "lora" not in CASES[name]
    ):  # of float64, whose base is stored in float32, it cannot be read again
        for steps in (2, 1):
            both, one = (
                RunFolder(of).student(steps=steps) for of in (two / name, tmp_path / "one")
            )
            assert furthest(weights_of(one), weights_of(both)) < 1e-6  # they are stored in float32
