"""`python -m benchmarks.numbers` sees what changed, and nothing else."""

import json

import torch

from benchmarks.numbers import differences, digest, losses, measured, RUNS
from halfstep.methods import METHODS


def test_a_changed_number_a_lost_one_and_a_new_one_are_differences():
    before = {"a": [1.0, float("nan")], "b": "x", "c": 2}
    assert differences(before, {"a": [1.0, float("nan")], "b": "x", "c": 2}) == []
    lines = differences(before, {"a": [1.0 + 2**-52, float("nan")], "b": "x", "d": 2})
    assert [line.split(":")[0] for line in lines] == ["a", "c", "d"]


def test_a_digest_is_of_every_bit_and_of_the_shape():
    x = torch.tensor([[0.0, 1.0]])
    assert digest(x) == digest(x.clone())
    others = {digest(x), digest(x.T), digest(torch.tensor([[-0.0, 1.0]])), digest(x + 1e-7)}
    assert len(others) == 4


def test_a_report_is_its_numbers_without_times_and_places():
    report = {
        "rows": [{"frechet": 0.5, "seconds": 3.0, "steps": 4}],
        "folder": "x",
        "cost": {"n": 1},
    }
    assert dict(measured(report)) == {"/rows/0/frechet": 0.5, "/rows/0/steps": 4}


def test_losses_are_those_of_every_line_that_has_one(tmp_path):
    lines = [{"update": 1, "loss": 0.5}, {"updates": 2}, {"update": 2, "loss": 0.25}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert losses(tmp_path) == [0.5, 0.25]


def test_every_method_is_recorded():
    typed = [line.split()[1] for line in RUNS.values()]
    assert set(METHODS) | {"knowledge", "denoiser", "classifier", "codec"} == set(typed)
