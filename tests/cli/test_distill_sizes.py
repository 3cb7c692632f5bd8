"""`halfstep distill` without updates and batch: numbers that fit the data, once and for the whole run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfstep import distill, load_data, Progressive, TrainingConfig
from halfstep.pipeline import Pipeline
from tests.cli.commands import TINY, type_command
from tests.support.runs import everything


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 100 images."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for k in range(100):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{k:03d}.png")
    return folder


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """100 points in the plane, and a teacher of them."""
    folder = tmp_path_factory.mktemp("points")
    np.save(folder / "points.npy", np.random.default_rng(0).uniform(-1, 1, (100, 2)))
    words = [*TINY[:-1], folder / "points.npy", "--updates", 20, "--out", folder / "teacher"]
    assert type_command(["train", "denoiser", *words]) == 0
    return folder


def forwards(out):
    """Updates and forwards of the stages of a dry run."""
    rows = re.findall(r"^\S+ +([\d,]+) +([\d,]+) +\d.*$", out, re.MULTILINE)
    return [tuple(int(part.replace(",", "")) for part in row) for row in rows]


def test_a_student_of_a_folder_costs_about_as_much_as_its_teacher(pictures, cli):
    """2,000 updates of 32 samples and 3 forwards; 8 shares of 130 updates and 5 forwards."""
    data = ["--data", pictures, "--size", 32]
    status, out, err = cli("train", "denoiser", *data, "--out", "runs/teacher", "--dry-run")
    assert status == 0 and forwards(out) == [(2_000, 192_000)], err
    small = ["--net-config", "embed_dim", 16, "depth", 2, "num_heads", 2, "patch_size", 8]
    assert cli("train", "denoiser", *data, *small, "--updates", 1, "--out", "runs/teacher")[0] == 0
    words = ["--teacher", "runs/teacher", *data, "--tolerance", 0, "--out", "runs/student"]
    status, out, err = cli("distill", "progressive", *words, "--dry-run")
    assert status == 0 and not Path("runs/student").exists(), err
    assert [updates for updates, _ in forwards(out)] == [130, 130, 130, 130, 260, 260]
    total = sum(cost for _, cost in forwards(out))
    assert total == 8 * 130 * 32 * 5 and total < 1.3 * 192_000


def test_the_numbers_are_recorded_and_the_same_command_goes_on(points, cli):
    words = ["--teacher", points / "teacher", "--data", points / "points.npy", "--tolerance", 0]
    words = ["distill", "progressive", *words, "--start", 2, "--out", "d"]
    status, out, err = cli(*words)
    assert status == 0 and re.search(r"^updates +260 of 32 samples each", out, re.MULTILINE), err
    run = json.loads(Path("d/run.json").read_text())
    assert (run["options"]["updates"], run["options"]["batch_size"]) == ([130], 32)
    before = everything(Path("d"))
    for again in (words, ["distill", "progressive", "--config", "d/config.toml"]):
        status, out, err = cli(*again)
        assert status == 0 and "finished before" in out, err
    assert everything(Path("d")) == before
    status, _, err = cli(*words, "--updates", 131)
    assert status == 2 and "updates" in err


def test_numbers_that_are_given_or_in_a_file_stay(points, cli, tmp_path):
    words = ["--teacher", points / "teacher", "--data", points / "points.npy", "--tolerance", 0]
    words = ["distill", "progressive", *words, "--start", 4, "--stop", 2, "--out", "d", "--dry-run"]
    (tmp_path / "own.toml").write_text("updates = [7]\nbatch_size = 16\n")
    # 200 passes are at least 2,000 updates, whatever the batch.
    for more, updates, batch in (
        (["--batch-size", 64], 260, 64),
        (["--updates", 9], 18, 32),
        (["--config", "own.toml"], 14, 16),
        (["--config", "own.toml", "--updates", 9], 18, 16),
    ):
        status, out, err = cli(*words, *more)
        assert status == 0 and forwards(out) == [(updates, updates * batch * 5)], err


def test_without_data_the_numbers_are_those_of_50_000(points, cli):
    words = ["--teacher", points / "teacher", "--data", "none", "--start", 8, "--stop", 4]
    status, out, err = cli("distill", "progressive", *words, "--out", "d", "--dry-run")
    [(updates, cost)] = forwards(out)
    assert status == 0 and updates == 5_000, err
    assert 5_000 * 128 * 5 < cost < 1.001 * 5_000 * 128 * 5  # and the beginnings of the walks


def test_from_python_updates_follow_from_the_data_and_the_given_batch(points, tmp_path):
    teacher = Pipeline.load(points / "teacher/stages/teacher")
    data = load_data(str(points / "points.npy"))
    training = TrainingConfig(batch_size=4)  # 5,000 updates are 200 passes, 320 a sixteenth
    distill(teacher, data, tmp_path / "d", method=Progressive(start=4, stop=2), training=training)
    run = json.loads((tmp_path / "d/run.json").read_text())
    assert run["options"]["updates"] == [320]
    assert [stage["updates"] for stage in run["plan"]["stages"]] == [640]
