"""The command's refusals before data are read."""

import numpy as np
import pytest
from PIL import Image

from halfstep.cli import main
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import BetaTable, Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.models import build
from halfstep.pipeline import Pipeline


def teacher(schedule, **options):
    denoiser = Denoiser(
        build("mlp", {"dim": 2, "width": 8, "depth": 1}), schedule, V(), time=NetTime(offset=-1)
    )
    return Pipeline(denoiser, (2,), **options)


@pytest.mark.parametrize(
    "pipeline, options",
    [
        (teacher(Cosine(), times=(uniform(4),)), ["--start", "8", "--stop", "2"]),
        (teacher(BetaTable()), ["--start", "1024", "--stop", "512"]),
        (
            teacher(BetaTable()),
            ["--start", "512", "--stop", "256", "--updates", "1"],
        ),  # full is 1024
        (teacher(Cosine()), ["--start", "8", "--stop", "2", "--full", "4"]),
    ],
)
def test_the_command_refuses_before_it_reads(pipeline, options, tmp_path, monkeypatch, capsys):
    pipeline.save(tmp_path / "teacher")
    monkeypatch.setattr(
        "halfstep.cli.commands.distill.loading", lambda *arguments: pytest.fail("it was read")
    )
    out = tmp_path / "r"
    call = ["distill", "progressive", "--teacher", str(tmp_path / "teacher"), "--data", "two-moons"]
    assert main([*call, "--out", str(out), *options]) == 2
    assert not out.exists() and capsys.readouterr().err.count("\n") == 1


def test_the_command_refuses_a_folder_of_other_samples(tmp_path, capsys, monkeypatch):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(
        "halfstep.data.sources.image_files._read_all", lambda *a: pytest.fail("it was read")
    )
    teacher(Cosine()).save(tmp_path / "teacher")
    call = [
        "distill",
        "progressive",
        "--teacher",
        str(tmp_path / "teacher"),
        "--data",
        str(tmp_path),
    ]
    assert main([*call, "--out", str(tmp_path / "r"), "--start", "4", "--stop", "2"]) == 2
    assert "shape" in capsys.readouterr().err
