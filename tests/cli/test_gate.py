"""The gate of `halfstep distill progressive`: its lines, its file, and `--start auto`."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from halfstep.pipeline import Pipeline
from tests.cli.commands import contents, halving, SHIPPED, type_command
from tests.support.runs import refused

pytestmark = pytest.mark.usefixtures("feature_cache")


def test_the_gate_stops_a_run_and_says_why(moons, cli):
    """A teacher of one look at 16 steps: its students, hardly trained, are worse or better by luck."""
    status, out, err = cli(*halving(moons, "d", "--tolerance", 1))
    assert status == 0, err
    record = json.loads(Path("d/gate.json").read_text())
    sentences = re.findall(r"^gate +(.*)$", out, re.MULTILINE)
    assert len(sentences) == len(record["decisions"]) >= 1
    about = record["about"]
    assert (about["features"], about["full"], about["samples"]) == ("coordinates", 16, 64)
    stages = sorted((p.name for p in Path("d/stages").iterdir()), reverse=True)
    assert stages == [decision["stage"] for decision in record["decisions"]]
    if record["stopped"]:
        assert record["stopped"] == f"Stopped at {sentences[-1]}."
    best = re.findall(r"^best +(.*)$", out, re.MULTILINE)
    kept = f"d/stages/{record['best']}" if record["best"] else "none passed the gate"
    assert len(best) == 1 and best[0].startswith(kept)


def test_a_run_in_which_nothing_passed_says_so(moons, cli, monkeypatch):
    monkeypatch.setattr("halfstep.evaluation.gate.within", lambda decision, tolerance: False)
    status, out, _ = cli(*halving(moons, "n", "--tolerance", 2))
    assert status == 0 and re.search(
        r"^best +none passed the gate: .*--tolerance 0", out, re.MULTILINE
    )


@pytest.fixture(scope="module")
def stopped(moons, tmp_path_factory):
    """The student of 2 steps is spoilt on purpose, by a learning rate of 1; that of 4 steps is not."""
    out = tmp_path_factory.mktemp("stopped") / "d"
    words = ["--updates", 0, 20, 20, "--learning-rate", 1, "--max-grad-norm", 0, "--tolerance", 1.6]
    assert type_command([*halving(moons, out), *words]) == 0
    return out


def test_a_gate_that_stopped_keeps_the_best(stopped):
    record = json.loads((stopped / "gate.json").read_text())
    assert [(decision["steps"], decision["verdict"]) for decision in record["decisions"]] == [
        (4, "passed"), (2, "broken"),
    ]  # fmt: skip
    assert record["stopped"].startswith("Stopped at 2 steps: ") and record["best"] == "0004-steps"
    assert not (stopped / "stages" / "0001-steps").exists()


def test_the_same_command_again_measures_nothing_and_shows_the_best(stopped, cli, monkeypatch):
    before = contents(stopped)
    monkeypatch.setattr(Pipeline, "sample", None)
    status, out, err = cli("distill", "progressive", "--config", stopped / "config.toml")
    assert status == 0, err
    assert "finished before" in out and not re.search(r"^gate ", out, re.MULTILINE)
    assert f"best      {stopped}/stages/0004-steps" in out
    assert f"look      halfstep sample {stopped} --steps 4 " in out
    assert contents(stopped) == before


@pytest.mark.parametrize(
    "words, message",
    [
        (["--tolerance", 1.2], "tolerance 1.6 and now with 1.2"),
        (["--full", 32], "full 16 and now with 32"),
        (["--samples", 65], "samples 64 and now with 65"),
        (["--gate-seed", 3], "seed 0 and now with 3"),
    ],
)
def test_a_run_asked_otherwise_is_refused_and_untouched(words, message, stopped, cli):
    before = contents(stopped)
    actual = cli("distill", "progressive", "--config", stopped / "config.toml", *words)
    assert refused(actual, message) and "delete" in actual[2]
    assert contents(stopped) == before


def test_a_damaged_gate_is_refused(stopped, cli):
    shutil.copytree(stopped, "d")
    Path("d/gate.json").write_text('{"tolerance": 1.6}')
    actual = cli("distill", "progressive", "--config", "d/config.toml", "--out", "d")
    assert refused(actual, "d/gate.json' is damaged")


def test_until_1_goes_on_where_it_was_stopped(stopped, cli):
    shutil.copytree(stopped, "d")
    words = ["distill", "progressive", "--config", "d/config.toml", "--out", "d", "--until", 1]
    status, out, err = cli(*words)
    assert status == 0, err
    assert re.findall(r"^gate +(\d+ step)", out, re.MULTILINE) == ["1 step"]
    record = json.loads(Path("d/gate.json").read_text())
    assert record["stopped"] is None and record["best"] == "0004-steps"
    assert [decision["steps"] for decision in record["decisions"]] == [4, 2, 1]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--tolerance", 0.5], "tolerance"),
        (["--tolerance", -1], "tolerance"),
        (["--until", 0], "until must be at least 1"),
        (["--full", 4], "--full 4 below --start 8"),
        (["--samples", 2], "samples must be at least 8"),
        (["--features", "digitz"], "perhaps you meant 'digits'"),
        (["--start", "auto", "--full", 12, "--stop", 2], "cannot halve from 12 to 2"),
        (["--start", "auto", "--dry-run"], "give --start a number for --dry-run"),
        (["--start", "auto", "--updates", 3, 4, 5], "--updates has 3 numbers: give one for all"),
    ],
)
def test_a_gate_that_cannot_be_leaves_no_folder(words, message, moons, cli, tmp_path):
    assert refused(cli(*halving(moons, "d"), *words), message)
    assert not list(tmp_path.iterdir())


def test_images_that_no_features_are_known_for_say_how_to_do_without(cli, tmp_path, monkeypatch):
    from halfstep.evaluation import scorer

    monkeypatch.setattr(scorer, "find_spec", lambda name: None)
    np.save("x.npy", np.zeros((9, 1, 8, 8), np.float32))
    words = ["--teacher", SHIPPED, "--data", "x.npy", "--out", "d", "--start", 4]
    assert refused(
        cli("distill", "progressive", *words), "--tolerance 0, which halves without a gate"
    )
    assert not Path("d").exists()


def test_a_student_is_halved_further_with_its_own_steps_as_full(moons, cli):
    """A student takes no other steps: --full is its own, not twice --start."""
    assert cli(*halving(moons, "a", "--tolerance", 0, "--stop", 4))[0] == 0
    words = ["--start", 4, "--stop", 2, "--tolerance", 99]
    status, _, err = cli(*halving("a", "b"), *words)
    assert status == 0, err
    assert json.loads(Path("b/gate.json").read_text())["about"]["full"] == 4
    assert refused(cli(*halving("a", "c"), *words, "--full", 16), "not distilled for 16 steps")


# --start auto.


def test_the_start_is_chosen_once(moons, cli, monkeypatch):
    """This teacher, hardly trained, is no worse in few steps than in 64."""
    words = ["distill", "progressive", "--teacher", moons, "--data", "two-moons", "--out", "d"]
    words += ["--updates", 1, "--start", "auto", "--stop", 4, "--samples", 64, "--tolerance", 9]
    status, out, err = cli(*words)
    assert status == 0, err
    start = int(re.search(r"^start +(\d+) steps: they are as good as 64$", out, re.MULTILINE)[1])
    assert start in (8, 16, 32) and f"plan      {start} -> " in out
    record = tomllib.loads(Path("d/config.toml").read_text())
    assert (record["start"], record["full"]) == (start, 64)
    assert json.loads(Path("d/gate.json").read_text())["about"]["full"] == 64
    before = contents(Path("d"))
    monkeypatch.setattr(Pipeline, "sample", None)
    for again in (words, ["distill", "progressive", "--config", "d/config.toml"]):
        status, out, err = cli(*again)
        assert status == 0 and "finished before" in out, err
        assert contents(Path("d")) == before


def test_auto_in_anothers_folder_is_refused(moons, cli):
    shutil.copytree(moons, "t")
    actual = cli(*halving(moons, "t"), "--start", "auto")
    assert refused(actual, "holds a run of 'train denoiser'")
