"""Two processes write the walks that one writes, each some of the files, and train on them as one does."""

import json
import shutil

import pytest

from halfstep.data.walks.store import open_walks, SHARD
from halfstep.methods import CachedWalks
from halfstep.pipeline import Pipeline
from tests.support.processes import launched
from tests.support.runs import double_teacher, everything, furthest, halve, job, weights_of

METHOD = CachedWalks(
    start=4, first=2, stop=1, updates=(6,), noises=2 * SHARD + 10, new_noises=300, solver="ddim"
)
OPTIONS = {"batch_size": 12, "log_every": 1, "save_every": 4}
SCRIPT = """
import json, os, sys
from pathlib import Path
from halfstep.diffusion.samplers import sample
from halfstep.methods.diffusion import kept_walks
from tests.training.test_walk_processes import METHOD, OPTIONS
from tests.support.runs import double_teacher, halve, job

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
walked, walk = [], kept_walks.TeacherWalker.walk

def counted(self, numbers, cond):
    walked.append(numbers.start)
    return walk(self, numbers, cond)

kept_walks.TeacherWalker.walk = counted
halve(folder / "two", data="none", method=METHOD, pipeline=double_teacher(), **OPTIONS)
(folder / f"walked-{rank}.json").write_text(json.dumps(walked))
"""


def files(walks):
    kept = {name: content for name, content in everything(walks).items() if name.endswith(".npy")}
    return {**kept, "walks.json": (walks / "walks.json").read_bytes()}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(SCRIPT)
    status, out, err = launched(str(folder / "script.py"), str(folder))
    assert (status, err) == (0, ""), out + err
    return folder


def test_each_process_walks_some_and_none_twice(two):
    first, second = (json.loads((two / f"walked-{rank}.json").read_text()) for rank in (0, 1))
    assert first
    assert second
    assert SHARD in second
    assert 0 in first
    assert len(open_walks(two / "two" / "walks")) == 2 * SHARD + 10 + 600


def test_the_files_are_those_of_one(two, tmp_path):
    student = halve(
        tmp_path / "one", data="none", method=METHOD, pipeline=double_teacher(), **OPTIONS
    )
    assert files(tmp_path / "one" / "walks") == files(two / "two" / "walks")
    other = Pipeline.load(two / "two" / "stages" / "0001-steps")
    assert furthest(weights_of(student), weights_of(other)) < 1e-6


def test_one_process_goes_on_where_two_stopped(two, tmp_path):
    shutil.copytree(two / "two" / "walks", tmp_path / "walks")
    for name in (f"points-00001-{SHARD}.npy", f"points-00002-{SHARD}.npy"):
        (tmp_path / "walks" / name).unlink()
    halve(
        tmp_path / "r", data="none", method=METHOD, pipeline=double_teacher(), **OPTIONS,
        job=job(walks=tmp_path / "walks"),
    )  # fmt: skip
    assert files(tmp_path / "walks") == files(two / "two" / "walks")
