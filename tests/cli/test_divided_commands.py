"""`sample`, `latents` and `evaluate` of several processes: the files of one process, to the bit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from halfstep.models.autoencoder.kl import KLCodec
from tests.cli.commands import halving, SHIPPED, TINY, type_command
from tests.support.group import typed
from tests.support.pictures import pixels, save

SAMPLE = ["sample", SHIPPED, "--n", 7, "--batch-size", 2, "--steps", 2, "--npz", "--first", 3]
LATENTS = ["latents", "--data", "photos", "--codec", "codec", "--size", 8, "--shard", 2]
LATENTS += ["--batch-size", 2]
EVALUATE = ["--samples", 600, "--split-samples", 260, "--cost-rounds", 0, "--baselines", "ddim"]
EVALUATE += ["--metrics", "frechet", "--full", 4]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos, a codec, and a run of two moons, in a folder with what one process makes of them."""
    place = tmp_path_factory.mktemp("divided")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("HALFSTEP_CACHE", str(place / "cache"))
        for k in range(9):
            save(place / "photos" / ("cats" if k < 4 else "dogs") / f"{k}.png", pixels(8, 8, 3))
        torch.manual_seed(0)
        config = {"in_channels": 3, "out_channels": 3, "block_out_channels": [4, 8]}
        config |= {"norm_num_groups": 2, "latent_channels": 2, "layers_per_block": 1}
        KLCodec.fresh(config, scale=0.5).save(place / "codec")
        assert type_command(["train", "denoiser", *TINY, "--out", "t", "--updates", 5]) == 0
        assert type_command(halving("t", "run", "--tolerance", 0, "--stop", 4)) == 0
        for k in (2, 3):
            shutil.copytree("run", f"run-{k}")
        assert type_command([*SAMPLE, "--out", "s"]) == 0
        assert type_command([*LATENTS, "--out", "l"]) == 0
        assert type_command(["evaluate", "run", *EVALUATE]) == 0
        shutil.rmtree("cache")
        yield place


@pytest.fixture(scope="module", params=[pytest.param(n, marks=pytest.mark.slow) for n in (2, 3)])
def several(place, request):
    """The number of processes, and what each of them said."""
    world = request.param
    commands = [
        [*SAMPLE, "--out", f"s-{world}"],
        [*LATENTS, "--out", f"l-{world}"],
        ["evaluate", f"run-{world}", *EVALUATE],
    ]
    return world, typed(place, *commands, world=world)


def same_files(one, many, *but):
    """Whether two folders have the same files with the same contents."""
    names = sorted(p.name for p in one.iterdir() if p.name not in but)
    assert names == sorted(p.name for p in many.iterdir() if p.name not in but)
    return all((one / name).read_bytes() == (many / name).read_bytes() for name in names)


def test_two_processes_sample_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert type_command([*SAMPLE, "--out", "one"]) == 0
    first, second = typed(tmp_path, [*SAMPLE, "--out", "two"])
    assert (first["status"], second["status"], second["out"], second["err"]) == ([0], [0], "", "")
    assert same_files(tmp_path / "one", tmp_path / "two", "samples.npz")


def test_all_end_well_and_one_speaks(several):
    _, processes = several
    assert [each["status"] for each in processes] == [[0, 0, 0]] * len(processes)
    assert [each["err"] for each in processes] == [""] * len(processes)
    assert processes[0]["out"].count("report    run-") == 1
    assert all(each["out"] == "" for each in processes[1:])


def test_samples_are_those_of_one(place, several):
    assert same_files(place / "s", place / f"s-{several[0]}", "samples.npz")
    one, many = (
        np.load(place / name / "samples.npz")["images"] for name in ("s", f"s-{several[0]}")
    )
    assert one.shape == (7, 1, 8, 8) and np.array_equal(one, many)


def test_latents_are_those_of_one(place, several):
    world, _ = several
    assert same_files(place / "l", place / f"l-{world}", "verified.json", "latents.json", ".lock")
    one, many = (
        json.loads((place / name / "latents.json").read_text()) for name in ("l", f"l-{world}")
    )
    assert one == many and len(one["shards"]) == 5 and one["complete"]


def test_a_report_is_that_of_one(place, several):
    one, many = (place / name for name in ("run", f"run-{several[0]}"))
    texts = [Path(p, "report.json").read_text().replace(p.name, "run") for p in (one, many)]
    report, other = map(json.loads, texts)
    del report["checksum"], other["checksum"]  # of the folder's name, too
    assert report == other and len(report["rows"]) > 2
    assert any(row["split"] for row in report["rows"])


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_where_one_is_killed_the_other_says_so_and_any_number_goes_on(place, killed):
    out = f"l-killed-{killed}"
    (other,) = typed(place, [*LATENTS, "--out", out], killed=killed)
    assert other["status"] == [2]
    assert other["err"].startswith("halfstep: another process") and other["err"].count("\n") == 1
    assert not json.loads((place / out / "latents.json").read_text())["complete"]
    done = typed(place, [*LATENTS, "--out", out], world=3)
    assert [each["status"] for each in done] == [[0]] * 3
    assert same_files(place / "l", place / out, "verified.json", "latents.json", ".lock")
    one, many = (json.loads((place / name / "latents.json").read_text()) for name in ("l", out))
    assert one == many


@pytest.mark.slow
def test_other_options_are_refused_by_all(place):
    results = typed(place, [*SAMPLE, "--out", "x"], last=["--seed", 5])
    assert [each["status"] for each in results] == [[2], [2]]
    assert all("differ in seed: 0 in process 0, 5 in process 1" in each["err"] for each in results)
    assert not (place / "x").exists()
