"""`halfstep distill flow-map`: its gate, any number of steps, what is written and what is refused."""

import json
import re
from pathlib import Path

import pytest
import torch

from halfstep import RunFolder
from tests.cli.commands import type_command
from tests.support.runs import refused

pytestmark = pytest.mark.usefixtures("feature_cache")


def flow_map(teacher, out, *words):
    small = [
        "--batch-size",
        8,
        "--start",
        8,
        "--first",
        4,
        "--t-end-embed-dim",
        8,
        "--device",
        "cpu",
    ]
    gate = [] if "--tolerance" in words else ["--tolerance", 0]
    return [
        "distill", "flow-map", "--teacher", teacher, "--data", "two-moons", "--out", out,
        "--updates", 20, *small, *gate, *words,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(moons, tmp_path_factory):
    out = tmp_path_factory.mktemp("flow") / "r"
    gate = ["--tolerance", 100, "--samples", 64, "--full", 8]
    assert type_command(flow_map(moons, out, *gate)) == 0
    return out


def test_the_gate_measures_each_number_and_says_which_pass(run, capsys):
    record = json.loads((run / "gate.json").read_text())
    assert [(d["stage"], d["steps"]) for d in record["decisions"]] == [
        ("flow-map", 4), ("flow-map", 2), ("flow-map", 1)
    ]  # fmt: skip
    assert (record["best"], record["best_steps"], record["stopped"]) == ("flow-map", 1, None)
    assert [p.name for p in (run / "stages").iterdir()] == ["flow-map"]


def test_the_commands_lines(moons, cli):
    status, out, err = cli(*flow_map(moons, "f", "--tolerance", 100, "--samples", 64, "--full", 8))
    assert status == 0, err
    assert re.search(r"^gate +all of 4, 2 and 1 steps pass$", out, re.MULTILINE)
    assert re.search(r"^plan +4, 2 and 1 steps of one flow map along 8 of the teacher$", out, re.M)
    assert re.search(r"^best +f/stages/flow-map$", out, re.MULTILINE)
    assert "halfstep sample f --steps 1 " in out and "halfstep evaluate f" in out
    status, out, _ = cli(*flow_map(moons, "g"))
    assert "halfstep sample g --steps 1 " in out


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_any_number_of_steps_is_sampled(run, cli, steps, tmp_path):
    out = tmp_path / "s"
    assert cli("sample", run, "--steps", steps, "--n", 5, "--npz", "--out", out)[0] == 0
    assert cli("sample", run, "--steps", 9, "--n", 5, "--npz", "--out", tmp_path / "t")[0] == 2


def test_a_report_has_each_number(run, cli, tmp_path, monkeypatch):
    words = ["--samples", 64, "--split-samples", 0, "--cost-rounds", 1, "--full", 8]
    status, out, err = cli("evaluate", run, *words)
    assert status == 0, err
    report = json.loads((run / "report.json").read_text())
    rows = [row for row in report["rows"] if row["role"] == "student"]
    assert [(row["steps"], row["sampler"], row["calls"]) for row in rows] == [
        (4, "flow-map", 4), (2, "flow-map", 2), (1, "flow-map", 1)
    ]  # fmt: skip
    assert len({row["cost"]["multiply_adds"] // row["calls"] for row in rows}) == 1
    status, out, _ = cli("runs", run)
    assert status == 0 and "flow-map" in out


def test_a_dry_run_has_its_cost(moons, cli):
    status, out, _ = cli(*flow_map(moons, "f", "--dry-run"))
    assert status == 0 and not Path("f").exists()
    assert re.search(r"^flow-map +20 +720 ", out, re.MULTILINE)  # 160 rows: 3, and 80 + 2 * 80
    assert "--lora-rank" not in out


def test_its_programs_and_what_has_no_class(run, cli, tmp_path):
    for name in ("torch-export", "onnx"):
        status, _, err = cli(
            "export", run, "--format", name, "--steps", 3, "--out", tmp_path / name
        )
        assert status == 0, err
    status, _, err = cli("export", run, "--format", "diffusers", "--out", tmp_path / "d")
    assert refused((status, "", err), "target time")
    status, _, err = cli("export", run, "--format", "comfyui", "--out", tmp_path / "c")
    assert status == 2
    status, _, err = cli("export", run, "--out", tmp_path / "p")
    assert status == 0, err
    loaded = RunFolder(run).student(3)
    again = type(loaded).load(tmp_path / "p")
    assert torch.equal(again.sample(2, steps=3), loaded.sample(2, steps=3))
