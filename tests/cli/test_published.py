"""The published demonstration, as one command, on weights made here: the names, with smaller networks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from halfstep.cli import main
from halfstep.hub.uvit import PUBLISHED
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.pictures import to_uint8
from tests.support.networks import CODEC


@pytest.fixture
def small(tmp_path, monkeypatch):
    """(name -> what is published under it, but narrow and shallow), its weights as an official file."""

    def shrink(name, **net):
        whole = PUBLISHED[name]
        tiny = replace(whole, net={**whole.net, "embed_dim": 16, "depth": 2, "num_heads": 2, **net})
        monkeypatch.setitem(PUBLISHED, name, tiny)
        state = {
            key.removeprefix("model."): torch.randn(value.shape) * 0.05
            for key, value in tiny.blank().state_dict().items()
        }
        torch.save(state, tmp_path / f"{name}.pth")
        return tiny, tmp_path / f"{name}.pth"

    torch.manual_seed(0)
    return shrink


@pytest.fixture
def codec(tmp_path):
    torch.manual_seed(1)
    made = KLCodec.fresh(CODEC, scale=1.0).eval()
    made.save(tmp_path / "codec")
    return tmp_path / "codec"


def test_the_demonstration_of_the_official_repository(small, codec, tmp_path, capsys):
    name = "imagenet256_uvit_huge"
    tiny, weights = small(name)
    out = tmp_path / "sample.png"
    command = (
        f"sample --model {name} --weights {weights} --codec {codec} --labels 207,360 --per-class 2"
    )
    assert (
        main([*command.split(), *f"--steps 25 --guidance-scale 4 --seed 42 --out {out}".split()])
        == 0
    )
    assert "4 samples in 25 steps" in capsys.readouterr().out
    pipeline = tiny.pipeline(weights, codec=codec)
    assert pipeline.codec.scale == 0.18215
    images = pipeline.sample(
        4,
        seed=42,
        steps=25,
        sampler="dpmpp-3s",
        labels=[207, 207, 360, 360],
        guidance_scale=4.0,
        batch=8,
    )
    assert images.shape == (4, 3, 256, 256)
    with Image.open(out) as picture:
        sheet = np.asarray(picture)
    pixels = to_uint8(images)
    assert sheet.shape == (2 * 256 + 1, 2 * 256 + 1, 3)  # a row a class
    for k, (top, left) in enumerate([(0, 0), (0, 257), (257, 0), (257, 257)]):
        assert np.abs(sheet[top : top + 256, left : left + 256].astype(int) - pixels[k]).max() <= 1
    assert [path.name for path in tmp_path.glob("*.png")] == ["sample.png"]


def test_a_model_of_pixels_at_another_size(small, tmp_path, capsys):
    name = "celeba64_uvit_small"
    _, weights = small(name)
    command = (
        f"sample --model {name} --weights {weights} --n 2 --steps 3 --size 32 48 --sampler ddim"
    )
    assert main([*command.split(), "--out", str(tmp_path / "s"), "--npz"]) == 0
    assert np.load(tmp_path / "s" / "samples.npz")["images"].shape == (2, 3, 32, 48)
    assert "2 samples in 3 steps" in capsys.readouterr().out
    with Image.open(tmp_path / "s" / "000001.png") as picture:
        assert picture.size == (48, 32)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--model cifar10_uvit_small --weights w --net a:b", "leave it out"),
        ("--model cifar10_uvit_small", "--model cifar10_uvit_small needs --weights"),
        ("--model cifar10_uvit --weights w.pth", "cifar10_uvit_small"),
        ("run --model cifar10_uvit_small --weights w.pth", "give one of the two"),
        ("run --weights w.pth", "--weights and --codec belong to --model"),
        ("run --labels one", "--labels takes numbers of classes, got 'one'"),
        ("run --per-class 2", "--per-class needs --labels or --prompt"),
        ("run --labels 1 --prompt sun", "a model reads classes or texts"),
        ("run --text nowhere", "there is no folder 'nowhere'"),
    ],
)
def test_what_cannot_be_sampled(command, message, tmp_path, monkeypatch, capsys):
    from halfstep.diffusion.denoiser import Denoiser
    from halfstep.diffusion.prediction import V
    from halfstep.diffusion.schedules import Cosine
    from halfstep.models import build
    from halfstep.pipeline import Pipeline

    monkeypatch.chdir(tmp_path)
    net = build(
        "uvit", dict(img_size=4, patch_size=2, in_chans=1, embed_dim=8, depth=2, num_heads=2)
    )
    Pipeline(Denoiser(net, Cosine(), V()), (1, 4, 4)).save(tmp_path / "run")
    (tmp_path / "w.pth").write_bytes(b"")
    assert main(["sample", *command.split(), "--out", "s"]) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("halfstep: ") and err.count("\n") == 1, err
    assert not (tmp_path / "s").exists()
