"""`halfstep train codec`: from data to a codec on the disk, killed in between, asked again."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from halfstep.cli.commands.train_codec import main as codec
from halfstep.data import load
from halfstep.errors import ConfigError
from halfstep.methods.autoencoding import Autoencoding, psnr
from halfstep.models.autoencoder.kl import KLCodec, load_codec
from halfstep.training import TrainingConfig
from halfstep.workflows.options import DataOptions, FolderOptions
from halfstep.workflows.train_codec import (
    CodecOptions,
    encoded,
    fresh_codec,
    held_out_images,
    train_codec,
    TrainCodecConfig,
)
from tests.support.runs import bits

TINY = [
    "--width",
    "4",
    "--batch-size",
    "5",
    "--learning-rate",
    "3e-3",
    "--save-every",
    "2",
    "--device",
    "cpu",
]


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Types `halfstep train codec` on digits in an empty folder; what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words, data="digits", out="c"):
        capsys.readouterr()
        words = ["--data", data, "--out", out, *TINY, *map(str, words)]
        assert codec(words) == 0
        return capsys.readouterr().out

    return run


def said(out, label):
    return re.search(rf"^{label} +(\S+)", out, re.MULTILINE)[1]


def test_from_data_to_a_codec(cli, tmp_path):
    out = cli("--updates", 6, "--codec-config", "layers_per_block", 2, "--latent-channels", 3)
    net = load_codec(tmp_path / "c")
    assert net.digest() == load_codec(tmp_path / "c/codec").digest()
    assert (net.factor, net.channels, net.config["layers_per_block"]) == (2, 3, 2)
    assert net.config["block_out_channels"] == (4, 8)
    assert "latents of shape [3, 4, 4]" in out and "1,000 of the images that it was trained" in out
    data = load("digits")
    # The latents that the scale was taken on have unit variance.
    latents = torch.cat([z for _, z in encoded(net, data, 5000, 0)])
    assert len(latents) == 1797
    assert float((latents * net.scale).double().std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert float(said(out, "scale").rstrip(",")) == pytest.approx(net.scale, abs=1e-5)
    images, decoded = zip(
        *((x, net.decode(z * net.scale)) for x, z in encoded(net, data, 1000, 0)), strict=True
    )
    ratio = psnr(torch.cat(images), torch.cat(decoded)).mean()
    assert float(said(out, "psnr")) == pytest.approx(float(ratio), abs=0.006)
    with Image.open(tmp_path / "c/reconstructions.png") as picture:
        assert picture.size == (4 * (12 * 9 - 1), 4 * 17)
        above = np.asarray(picture)[: 4 * 8 : 4, : 4 * 8 : 4]
    np.testing.assert_array_equal(above, ((images[0][0, 0] + 1) * 127.5).round().byte().numpy())
    assert "next      halfstep latents --codec c --data digits --out LATENTS" in out


def test_rows_come_from_all_over_the_data():
    data = load("digits")
    net = fresh_codec(CodecOptions(width=4), data, "digits", 0)
    images = torch.cat([x for x, _ in encoded(net, data, 300, 0)])
    assert len(images) == 300
    assert torch.equal(images[299], data.batch(torch.tensor([299 * 1797 // 300])).x0[0])
    few = [(len(x), len(z)) for x, z in encoded(net, data, 9999, 0)]
    assert sum(n for n, _ in few) == 1797 and all(a == b for a, b in few)


def test_fresh_weights_depend_on_the_seed_alone():
    data = load("digits")
    made = [fresh_codec(CodecOptions(width=4), data, "digits", seed).digest() for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]


def test_fresh_latents_have_little_noise():
    data = load("digits")
    net = fresh_codec(CodecOptions(width=8), data, "digits", 0)
    log_variance = net.moments(data.batch(torch.arange(100)).x0).chunk(2, 1)[1]
    assert float(log_variance.mean()) == pytest.approx(-6, abs=1)


@pytest.mark.parametrize(
    "factor, widths", [(1, (4,)), (2, (4, 8)), (4, (4, 8, 16)), (8, (4, 8, 16, 16))]
)
def test_a_level_for_each_halving(factor, widths):
    net = fresh_codec(CodecOptions(width=4, factor=factor), load("digits"), "digits", 0)
    assert net.factor == factor and net.config["block_out_channels"] == widths
    groups = [fresh_codec(CodecOptions(width=w), load("digits"), "digits", 0) for w in (2, 24, 32)]
    assert [net.config["norm_num_groups"] for net in groups] == [1, 2, 8]


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("after", [3, 5])
def test_a_killed_run_goes_on_to_the_bit(cli, tmp_path, monkeypatch, after):
    cli("--updates", 6, out="whole")
    forward, calls = KLCodec.forward, []

    def dying(self, *args):
        calls.append(1)
        if len(calls) > after:
            raise Killed
        return forward(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(KLCodec, "forward", dying)
        with pytest.raises(Killed):
            cli("--updates", 6, out="killed")
    assert not (tmp_path / "killed/codec").exists()
    cli("--updates", 6, out="killed")
    assert bits(tmp_path / "killed") == bits(tmp_path / "whole")
    scales = {
        json.loads((tmp_path / out / place / "codec.json").read_text())["scale"]
        for out in ("whole", "killed")
        for place in ("codec", "stages/codec")
    }
    assert len(scales) == 1


def test_the_same_command_again_changes_nothing(cli, tmp_path):
    first = cli("--updates", 2)
    before = bits(tmp_path / "c")
    again = cli("--updates", 2)
    assert "this run was finished before" in again and bits(tmp_path / "c") == before
    assert said(first, "psnr") == said(again, "psnr")
    file, stage = (tmp_path / f"c/{place}/codec.safetensors" for place in ("codec", "stages/codec"))
    assert file.samefile(stage)


def test_a_run_can_be_extended(cli, tmp_path):
    cli("--updates", 2, "--learning-rate-schedule", "constant")
    cli("--updates", 6, "--learning-rate-schedule", "constant", "--extend")
    cli("--updates", 6, "--learning-rate-schedule", "constant", out="whole")
    assert bits(tmp_path / "c") == bits(tmp_path / "whole")
    digests = {load_codec(tmp_path / place).digest() for place in ("c", "c/codec", "whole")}
    assert len(digests) == 1


def test_another_network_in_the_same_folder_is_refused(cli):
    cli("--updates", 1)
    for words in (["--width", 8], ["--kl-weight", 1e-3], ["--error", "squared"]):
        with pytest.raises(ConfigError, match=r"'c' was made with .* choose another --out"):
            cli("--updates", 1, *words)


def test_bf16_trains_and_is_scaled_in_float32(cli, tmp_path):
    cli("--updates", 2, out="high")
    cli("--updates", 2, "--precision", "bf16", out="low")
    high, low = load_codec(tmp_path / "high"), load_codec(tmp_path / "low")
    assert low.digest() != high.digest()
    assert all(weight.dtype == torch.float32 for weight in low.parameters())
    latents = torch.cat([z for _, z in encoded(low, load("digits"), 5000, 0)])
    assert float((latents * low.scale).double().std(correction=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "words, data, message",
    [
        ([], "two-moons", "a codec needs images, and 'two-moons' has none: give other data"),
        (["--factor", 3], "digits", "factor is a power of 2, got 3: write for example --factor 2"),
        (["--factor", 0], "digits", "factor"),
        (["--factor", 16], "digits", "images of 8 x 8 do not divide so"),
        (["--latent-channels", 0], "digits", "latent_channels"),
        (["--codec-config", "wide", 3], "digits", "no option of a codec called 'wide'"),
        (["--codec-config", "in_channels", 3], "digits", r"encodes images \[B, 3, H, W\]"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(cli, tmp_path, words, data, message):
    with pytest.raises(ConfigError, match=message):
        cli(*words, data=data)
    assert not list(tmp_path.iterdir())


def test_a_rehearsal_leaves_nothing(cli, tmp_path):
    out = cli("--updates", 30, "--dry-run")
    assert "codec" in out and "30" in out and "450" in out  # forwards: 3 of 5 images each
    assert not list(tmp_path.iterdir())


@pytest.fixture
def cifar(tmp_path):
    """A CIFAR-10 of three images, and two to be tested on."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 3), ("test", 2)):
        images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=np.arange(n))
    return tmp_path


def test_reconstructions_are_judged_on_images_not_trained_on(cli, cifar):
    out = cli("--updates", 1, data=f"cifar10:{cifar}")
    assert "dB on 2 test images, which it was not trained on" in out
    dataset = DataOptions(data=f"cifar10:{cifar}")
    assert len(held_out_images(dataset)) == 2
    (cifar / "test.npz").unlink()
    assert held_out_images(dataset) is None


def test_an_odd_codec_without_its_last_convolution_trains(cli, tmp_path):
    cli("--updates", 1, "--codec-config", "use_quant_conv", "false", "use_post_quant_conv", "false")
    assert load_codec(tmp_path / "c").model.quant_conv is None


def test_a_codec_is_trained_from_python(tmp_path):
    """No terminal is needed; the same call again returns what is finished."""
    config = TrainCodecConfig(
        folder=FolderOptions(out=tmp_path / "c", device="cpu"),
        dataset=DataOptions(data="digits"),
        codec=CodecOptions(width=4),
        method=Autoencoding(updates=3),
        training=TrainingConfig(batch_size=5),
    )
    first, again = train_codec(config), train_codec(config)
    assert first.codec.digest() == again.codec.digest() == load_codec(first.folder).digest()
    assert first.psnr == again.psnr and first.images == 1000 and not first.held_out
