"""Runs of one student on kept walks: any number of steps, resumed to the bit, walks of another run."""

import shutil

import pytest
import torch

from halfstep import RunFolder
from halfstep.data import NoData
from halfstep.errors import ConfigError
from halfstep.methods import CachedWalks
from halfstep.models.lora import Lora
from tests.support.runs import bits, halted, halve, job, logged_lines

METHOD = CachedWalks(start=4, first=4, updates=(3,), noises=20, solver="heun", one_student=True)


def test_one_student_serves_every_number_and_resumes_to_the_bit(tmp_path):
    student = halve(tmp_path / "whole", data=NoData(), method=METHOD)
    assert student.sampler == "flow-map" and len(student.fine_times) == 5
    for steps in (1, 2, 3, 4):
        assert student.sample(2, steps=steps).isfinite().all()
    again = RunFolder(tmp_path / "whole").student(3)
    assert torch.equal(again.sample(2), student.sample(2, steps=3))
    halted(tmp_path / "killed", "flow-map", 4, data=NoData(), method=METHOD)
    halve(tmp_path / "killed", data=NoData(), method=METHOD)
    assert bits(tmp_path / "killed") == bits(tmp_path / "whole")
    assert logged_lines(tmp_path / "killed") == logged_lines(tmp_path / "whole")


def test_it_learns_from_walks_that_are_given(tmp_path):
    """Those of a run of one student for each number of steps: none is walked again."""
    plain = CachedWalks(start=4, first=4, updates=(3,), noises=20, solver="heun")
    halve(tmp_path / "plain", data=NoData(), method=plain)
    shutil.copytree(tmp_path / "plain" / "walks", tmp_path / "walks")
    before = {p.name: p.read_bytes() for p in (tmp_path / "walks").rglob("*.npy")}
    given = halve(
        tmp_path / "given", data=NoData(), method=METHOD, job=job(walks=tmp_path / "walks")
    )
    own = halve(tmp_path / "own", data=NoData(), method=METHOD)
    assert torch.equal(given.sample(2, steps=1), own.sample(2, steps=1))
    assert not (tmp_path / "given" / "walks").exists()
    after = {p.name: p.read_bytes() for p in (tmp_path / "walks").rglob("*.npy")}
    assert before == after


def test_a_lora_has_no_layer_for_the_end(tmp_path):
    with pytest.raises(ConfigError, match="leave lora out"):
        halve(tmp_path / "r", data=NoData(), method=METHOD, lora=Lora(rank=2))
