"""`halfstep distill` of a teacher that predicts eps: the plan, the dry run, the gate, what the run is for."""

import json
import re
from pathlib import Path

import pytest

from halfstep.evaluation.report_files import read_report
from halfstep.pipeline import Pipeline
from tests.cli.commands import halving, TINY, type_command
from tests.support.runs import everything, refused

pytestmark = pytest.mark.usefixtures("feature_cache")
WORDS = ["--stop", 2, "--until", 1, "--full", 16]


@pytest.fixture(scope="module")
def eps(tmp_path_factory):
    """A run of a tiny eps teacher of two moons, on a table of 1000 levels."""
    out = tmp_path_factory.mktemp("eps") / "teacher"
    words = ["--predicts", "eps", "--noise-schedule", "beta-table", "--updates", 60]
    assert type_command(["train", "denoiser", *TINY, *words, "--out", out]) == 0
    return out


def test_the_plan_says_it_and_the_run_can_be_used(eps, cli):
    words = halving(eps, "d", *WORDS, "--reparameterise-updates", 3)
    status, out, err = cli(*words, "--dry-run")
    assert status == 0 and not Path("d").exists(), err
    assert re.findall(r"^(\S+) +(\d+) +[\d,]+ +\d+ s$", out, re.MULTILINE) == [
        ("v-teacher", "3"), ("0004-steps", "5"), ("0002-steps", "10"),
    ]  # fmt: skip
    status, out, err = cli(*words)
    assert status == 0, err
    assert re.search(r"^plan +eps to v in 3 updates, 8 -> 4 -> 2 steps$", out, re.MULTILINE)
    assert re.search(r"^updates +18 of ", out, re.MULTILINE)
    gate = json.loads(Path("d/gate.json").read_text())
    assert gate["tolerance"] == 1.1 and gate["about"]["full"] == 16
    assert [each["stage"] for each in gate["decisions"]] == ["0004-steps", "0002-steps"]
    before = everything(Path("d"))
    status, out, err = cli("distill", "progressive", "--config", "d/config.toml")
    assert status == 0 and "finished before" in out, err
    assert everything(Path("d")) == before
    assert cli("sample", "d", "--steps", 4, "--n", 4, "--out", "s")[0] == 0
    few = ["--samples", 16, "--split-samples", 0, "--cost-rounds", 1, "--metrics", "frechet"]
    status, _, err = cli("evaluate", "d", *few, "--full", 16, "--baselines", "ddim")
    assert status == 0, err
    rows = read_report(Path("d")).rows
    assert [row.steps for row in rows if row.role == "student"] == [4, 2]
    # The v teacher alone is an ordinary pipeline, which needs no such stage any more.
    v_teacher = Path("d/stages/v-teacher")
    assert Pipeline.load(v_teacher).describe()["parameterisation"] == "v"
    assert refused(
        cli(*halving(v_teacher, "e", "--reparameterise-updates", 3)),
        "leave reparameterise_updates out",
    )
    assert not Path("e").exists()


def test_the_start_is_found_with_the_eps_teacher(eps, cli):
    words = halving(eps, "a", *WORDS)
    words[words.index("--start") + 1] = "auto"
    status, out, err = cli(*words)
    assert status == 0, err
    start = int(re.search(r"^start +(\d+) steps: ", out, re.MULTILINE)[1])
    assert re.search(rf"^plan +eps to v in 5 updates, {start} -> ", out, re.MULTILINE)
    stages = {path.name for path in Path("a/stages").iterdir()}
    assert {"v-teacher", "0002-steps"} <= stages
