"""Sizes and options that no command takes are refused, in a rehearsal too, and leave nothing behind."""

import numpy as np
import pytest
import torch
from PIL import Image

from halfstep import capacity
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.models import build
from halfstep.pipeline import Pipeline
from tests.support.runs import refused

FLOATS = ("learning-rate", "max-grad-norm", "weight-decay", "ema")
TRAIN = "train denoiser --data two-moons --net mlp --updates 1 --batch-size 8 --device cpu"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        *((f"--sampling-clip {value}", "sampling_clip") for value in (-1, "nan", "inf", "1e400")),
        *((f"--time-scale {value}", "scale") for value in (0, "nan", "1e308")),
        *((f"--time-offset {value}", "time_offset") for value in ("nan", "-inf")),
        *((f"--{name} nan", name.replace("-", "_")) for name in FLOATS),
        *((f"--net-config {pair}", pair.split()[0]) for pair in ("width 0", "depth -1", "width NaN")),
        *((f"--schedule-config {pair}", "logsnr") for pair in ("logsnr_min 30", "logsnr_max NaN")),
        ("--net-config width " + "9" * 5000, "width"),
        ("--updates 1000000000000000", "updates"),
        ("--size 0", "size"),
        ("--net-config dim 3", "does not take"),
        ("--net :", "names no function"),
        ("--device meta", "device"),
        ("--out=", "--out is empty"),
        ("--out file.txt", "file.txt"),
        ("--out full", "full"),
    ],
)  # fmt: skip
def test_a_run_and_its_rehearsal_refuse_the_same(cli, tmp_path, words, message):
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    out = [] if "--out" in words else ["--out", "r"]
    for more in ([], ["--dry-run"]):
        assert refused(cli(*TRAIN.split(), *out, *words.split(), *more), message)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_gate_is_refused_by_a_rehearsal_too(cli):
    assert cli(*TRAIN.split(), "--out", "t")[0] == 0
    distill = (
        "distill progressive --teacher t --data two-moons --start 4 --stop 2 --updates 1 --out s"
    )
    for words, message in (
        ("--tolerance 0.5", "tolerance"),
        ("--tolerance nan", "tolerance"),
        ("--full 2", "--full"),
        ("--full 3000000", "full"),
        ("--samples 7", "samples"),
        ("--until 0", "until"),
        ("--features nothing:here", "nothing"),
        ("--gate-seed -1", "seed"),
    ):
        for more in ([], ["--dry-run"]):
            assert refused(cli(*distill.split(), *words.split(), *more), message)


def test_a_command_s_batch_that_no_memory_holds(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "memory", lambda: 2**20)
    words = TRAIN.replace("--batch-size 8", "--batch-size 131073").split()  # of 2 floats
    for more in ([], ["--dry-run"]):
        assert refused(cli(*words, "--out", "r", *more), "batch")
    assert list(tmp_path.iterdir()) == []


def test_a_large_picture_is_read_without_a_warning_of_others(cli, tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48)
    (tmp_path / "d").mkdir()
    for k in range(3):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "d" / f"{k}.png")
    words = TRAIN.replace("two-moons", "d").replace("mlp", "uvit").split()
    words += ["--size", "16", "--out", "r", "--dry-run"]
    status, out, err = cli(*words)
    assert status == 0 and not err and "3 samples" in out and not list(recwarn)
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "d" / "bomb.png")
    assert refused(cli(*words), "bomb.png")


def test_samples_that_no_memory_holds_are_not_drawn(cli, tmp_path):
    assert cli(*TRAIN.split(), "--out", "t")[0] == 0
    for words, message in (
        ("--n 999999999999", "n = "),
        ("--first 999999999999999999999", "first"),
        ("--steps 1000000000", "steps"),
        ("--guidance-scale nan", "guidance_scale"),
        ("--variance nan", "variance"),
        ("--per-class 5", "--per-class needs"),
        ("--seed -1", "seed"),
    ):
        assert refused(cli("sample", "t", "--out", "s.png", *words.split()), message)
    (tmp_path / "text.txt").write_text("x")
    assert refused(cli("sample", "t", "--out", "text.txt"), "text.txt")
    assert not (tmp_path / "s.png").exists() and (tmp_path / "text.txt").read_text() == "x"


def test_samples_that_diverge_are_not_written(cli, tmp_path):
    """A network whose answers leave float32: one sentence, and no picture of it."""
    net = build("mlp", {"dim": 2, "width": 8, "depth": 1})
    pipeline = Pipeline(Denoiser(net, Cosine(), V()), (2,))
    with torch.no_grad():
        pipeline.denoiser.net.model.leave.bias.fill_(3e38)
    pipeline.save(tmp_path / "wild")
    assert refused(cli("sample", "wild", "--steps", 4, "--out", "s.png"), "diverged")
    assert not (tmp_path / "s.png").exists()
