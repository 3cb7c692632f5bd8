"""`halfstep compare`: its lines, its dry run, its refusals."""

import json
import re
from pathlib import Path

import pytest

from tests.support.runs import refused

pytestmark = pytest.mark.usefixtures("feature_cache")
WORDS = ["--data", "two-moons", "--batch-size", 8, "--start", 4, "--counts", 2, 1, "--samples", 64]
WORDS += ["--budget", 8000, "--methods", "progressive", "--out", "out"]


def test_two_seeds_of_a_method(moons, cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = ["compare", "--teacher", moons, *WORDS, "--seeds", 2]
    status, out, err = cli(*words, "--dry-run")
    assert status == 0 and not err and not list(moons.parent.glob("out"))
    lines = [line.split() for line in out.splitlines()]
    plan = [line[:4] for line in lines if line and line[0].startswith("progressive-seed")]
    assert plan == [[f"progressive-seed{k}", "100", "100", "8,000"] for k in (0, 1)]
    assert "about" in out and "new" in out

    status, out, err = cli(*words)
    assert status == 0 and not err and "2 of 2" in out
    table, after = out.split("64 samples a student\n")[1].split("numbers ")
    assert "halfstep export out/runs/progressive-seed0" in after
    assert "progressive" in table and all(len(line) <= 80 for line in table.splitlines())
    found = json.loads(Path("out/compare.json").read_text())
    assert [mean["steps"] for mean in found["means"]] == [2, 1]

    monkeypatch.delenv("COLUMNS")  # a pipe, which has no width
    status, out, _ = cli(*words)
    assert status == 0 and out.count("finished before") == 2
    rows = [line for line in out.splitlines() if line.startswith(("target,", "progressive "))]
    assert len(rows) == 3 and all(re.search(r"\d \(\d.* to \d.*\)", row) for row in rows)
    verdicts = [line for line in out.splitlines() if line.startswith("verdict")]
    assert len(verdicts) == 2 and all(line.endswith("has a student.") for line in verdicts)
    assert "rmse to the pictures of each\n" in out


def test_one_sentence(moons, cli):
    words = ["compare", "--teacher", moons, *WORDS]
    assert refused(cli(*words, "--budget", 100), "--budget 8000")
    assert refused(cli(*words, "--methods", "progressiv"), "progressive")
    assert refused(cli(*words, "--data", "none"), "data")
    assert refused(cli("compare", "--data", "two-moons", "--out", "out"), "--methods")
    assert refused(cli("compare", *WORDS), "--teacher")
    for option, value in (("--features", "nan"), ("--guidance-scale", 2)):
        assert refused(cli(*words, option, value), "write" if option != "--features" else "choose")
    assert not Path("out").exists()
    assert refused(cli("compare", "--target-sampler", "dim", *WORDS), "ddim")
