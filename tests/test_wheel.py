"""The wheel: what a user installs is all there, and works in an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packaging.metadata import Metadata

ROOT = Path(__file__).parents[1]
DEMO = ["demo", "--quick", "--n", "400", "--out", "seen"]
ROW = {"sampler", "steps", "calls", "frechet_distance", "rmse_to_teacher", "seconds_per_sample"}


LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".hypothesis", ".*_cache", "__pycache__", "*.part", "*.egg-info", "build", "dist",
    "runs", "_build",
)  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a copy of the sources, and that of a source distribution with the wheel made from it."""
    folder = tmp_path_factory.mktemp("wheel")
    copied = folder / "source"
    shutil.copytree(ROOT, copied, ignore=LEFT_OUT)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "-o", folder / "dist", copied],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return copied, folder / "dist"


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built[1].glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_source_distribution_has_all_that_is_tracked(built):
    """And so builds a wheel, runs the tests and makes the documentation."""
    copied, dist = built
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    missing = {name for name in tracked(copied) if (ROOT / name).is_file()} - packed
    assert not missing, sorted(missing)
    for name in ("tests/conftest.py", "docs/pictures/figure1.png", "LICENSE", "CHANGELOG.md"):
        assert name in packed, name
    assert not [name for name in packed if ".venv" in name or "__pycache__" in name]


def tracked(copied):
    """The files that git tracks; of a source distribution, without git, all of its files."""
    done = subprocess.run(
        ["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=False
    )
    if done.returncode == 0 and "pyproject.toml" in done.stdout.split():
        return done.stdout.splitlines()
    return [path.relative_to(copied).as_posix() for path in copied.rglob("*")]


def test_all_of_the_package_is_in_the_wheel(names):
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "halfstep").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".part"
    }
    assert sources <= set(names), sorted(sources - set(names))
    assert "halfstep/py.typed" in names
    assert "halfstep/presets/digits.toml" in names
    assert "halfstep/assets/digits-classifier/classifier.safetensors" in names
    assert "halfstep/report/page.html.j2" in names
    assert "halfstep/assets/digits/digits.safetensors" in names
    for name in ("LICENSE", "THIRD_PARTY.md"):
        assert any(path.endswith(f"licenses/{name}") for path in names), name


def test_nothing_else_is(names):
    for name in names:
        assert name.startswith(("halfstep/", "halfstep-")), name
        assert "__pycache__" not in name and "test" not in name.replace("testing.py", ""), name


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < 5 * 2**20


def test_what_it_says_of_itself(wheel, names):
    (path,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(path).decode()
        entry = archive.read(path.replace("METADATA", "entry_points.txt")).decode()
    assert "License-Expression: Apache-2.0" in metadata and "Requires-Python: >=3.11" in metadata
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    assert any(line.startswith("Requires-Dist: torch") for line in needed)
    Metadata.from_email(metadata, validate=True)  # as the index does
    assert not any("torchvision" in line or "timm" in line for line in needed)
    assert "halfstep = halfstep.cli:main" in entry


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The command of a fresh environment that has this wheel, and our libraries from where we run."""
    home = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index",
         "--disable-pip-version-check", "--prefix", home, "--ignore-installed", wheel],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    import torch

    # A plain folder of a .pth is added after this one, and no .pth in it is read: our own editable
    # installation is not seen.
    (site / "libraries.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return home / "bin"


def typed(installed, words, folder, timeout):
    cache = {"HALFSTEP_CACHE": str(installed.parent / "cache")}
    env = {**os.environ, **cache, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    return subprocess.run(
        [installed / "python", "-m", "halfstep", *words],
        cwd=folder, capture_output=True, text=True, timeout=timeout, env=env,
    )  # fmt: skip


@pytest.mark.slow
def test_the_wheel_is_what_runs(installed, tmp_path):
    done = subprocess.run(
        [installed / "python", "-c", "import halfstep; print(halfstep.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.startswith(str(installed.parent)), done.stdout + done.stderr


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel_in_an_empty_folder(installed, tmp_path):
    done = typed(installed, DEMO, tmp_path, 900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["seen"]

    results = json.loads((tmp_path / "seen" / "results.json").read_text())
    rows = [results["teacher"], *results["baselines"], *results["students"]]
    for row in rows:
        assert row.keys() >= ROW
        assert row["seconds_per_sample"] > 0 and row["frechet_distance"] > 0
        assert row["calls"] == (2 * row["steps"] - 1 if row["sampler"] == "heun" else row["steps"])
    assert results["teacher"]["rmse_to_teacher"] == 0
    assert [row["steps"] for row in results["students"]] == [8, 4, 2, 1]
    baselines = {(row["sampler"], row["calls"]) for row in results["baselines"]}
    plain = {(s, n) for s in ("ddim", "dpmpp-2m") for n in (8, 4, 2, 1)}
    assert baselines == plain | {("heun", n) for n in (7, 3, 1)}
    with np.load(tmp_path / "seen" / "report.npz") as pictures:  # teacher and students
        assert pictures["grid"].shape == (1 + len(results["students"]), 12, 8, 8, 1)
    for name in ("samples.png", "quality.png", "report.html"):
        assert (tmp_path / "seen" / name).stat().st_size > 10_000
    for name in ("samples.png", "quality.png", "report.html"):
        assert str(Path("seen") / name) in done.stdout
    report = json.loads((tmp_path / "seen" / "report.json").read_text())
    assert report["verdict"] in done.stdout.replace("\n", " ")
    assert len(report["rows"]) == 1 + len(results["baselines"]) + len(results["students"])
    for row in report["rows"]:
        got = row["distances"]["frechet_distance"]
        assert got["low"] < got["high"] and row["cost"]["seconds_per_sample"].keys() == {"1", "64"}

    again = typed(installed, DEMO, tmp_path, 900)
    assert again.returncode == 0, again.stderr
    later = json.loads((tmp_path / "seen" / "results.json").read_text())
    for one, two in zip(results["students"], later["students"], strict=True):
        assert one["frechet_distance"] == two["frechet_distance"]  # nothing was trained again
