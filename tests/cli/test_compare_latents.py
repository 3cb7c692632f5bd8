"""`halfstep compare` with images for a teacher of latents: encoded once, for all methods and the scores."""

import json
from pathlib import Path

import pytest

from halfstep.methods import budget
from halfstep.training.run_folder import RunFolder
from tests.support.families import stable_diffusion
from tests.support.pictures import pixels, save

pytestmark = pytest.mark.usefixtures("feature_cache")
WORDS = ["--teacher", "sd", "--data", "images", "--start", 4, "--counts", 2, "--batch-size", 4]
WORDS += ["--budget", 60, "--methods", "progressive", "multistep-consistency", "--samples", 8]
WORDS += ["--full", 4, "--features", "tests.cli.test_teachers:corners", "--device", "cpu"]


def test_images_are_encoded_once_for_all(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "PRECISE", 1)  # three updates
    stable_diffusion().save_pretrained(tmp_path / "sd")
    for k in range(10):
        save(tmp_path / "images" / f"{k}.png", pixels(16, 16, 3))
        (tmp_path / "images" / f"{k}.txt").write_text("a cat")
    words = ["compare", *WORDS, "--out", "out"]
    status, out, err = cli(*words, "--dry-run")
    assert status == 0 and "2 of 2" not in out, err
    assert not (tmp_path / "out").exists()

    status, _, err = cli(*words)
    assert status == 0, err
    found = json.loads(Path("out/compare.json").read_text())
    assert [mean["method"] for mean in found["means"]] == ["progressive", "multistep-consistency"]
    run = RunFolder.open("out/runs/progressive-seed0")
    assert run.config["data"] == "out/data/latents" and "size" not in run.config
    before = Path("out/data/latents").stat().st_mtime_ns
    status, out, err = cli(*words)
    assert status == 0 and out.count("finished before") == 2, err
    assert Path("out/data/latents").stat().st_mtime_ns == before
