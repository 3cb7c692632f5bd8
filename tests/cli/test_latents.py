"""`halfstep latents`, and the way from images to samples of a model of latents, by its commands."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from halfstep.data import load
from halfstep.data.latents.dataset import Latents, open_latents
from halfstep.models.autoencoder.kl import KLCodec, load_codec
from halfstep.pipeline import Pipeline
from tests.support.runs import everything

CODEC = {
    "in_channels": 3, "out_channels": 3, "block_out_channels": [4, 8], "norm_num_groups": 2,
    "latent_channels": 2, "layers_per_block": 1,
}  # fmt: skip
"""A codec of two pixels to a side."""
NET = ["--net-config", "embed_dim", "16", "depth", "2", "num_heads", "2", "patch_size", "2"]


@pytest.fixture
def cli(cli, tmp_path):
    """Types a command in a folder with photos and a codec: (exit status, what it printed, its errors)."""
    rng = np.random.default_rng(0)
    for k in range(7):
        place = tmp_path / "photos" / ("cats" if k < 3 else "dogs") / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 8 + k, 3), dtype=np.uint8)).save(place)
    torch.manual_seed(0)
    KLCodec.fresh(CODEC, scale=0.5).save(tmp_path / "codec")
    return cli


ENCODE = ("latents", "--data", "photos", "--codec", "codec", "--size", "8", "--out", "l")
SMALL = ("--shard", "3", "--batch-size", "2", "--device", "cpu")


def refused(cli, *words, by):
    status, out, err = cli(*words)
    assert status == 2 and "latents  " not in out and len(err.splitlines()) == 1, (status, out, err)
    assert re.search(by, err), err


def test_the_test_images_of_a_data_set_that_has_some(cli, tmp_path):
    rng = np.random.default_rng(0)
    for split, n in (("train", 3), ("test", 2)):
        images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=np.arange(n))
    words = ("latents", "--data", "cifar10:.", "--codec", "codec", "--no-mirror", *SMALL)
    for split, n in (("train", 3), ("test", 2)):
        status, _, err = cli(*words, "--split", split, "--out", split)
        assert status == 0, err
        images = load("cifar10:.", split=split).batch(torch.arange(n)).x0
        latents = open_latents(tmp_path / split)
        assert len(latents) == n
        torch.testing.assert_close(
            latents.moments.rows(torch.arange(n)),
            load_codec("codec").moments(images),
            rtol=0,
            atol=1e-5,
        )
    refused(cli, *ENCODE, "--split", "test", by="photos has no split 'test'")


def test_images_are_encoded_as_the_codec_does(cli, tmp_path):
    status, out, err = cli(*ENCODE, *SMALL)
    assert (status, err) == (0, ""), err
    shown = [line.split(None, 1) for line in out.splitlines()]
    assert shown[0] == ["encoding", "7 images"]
    assert shown[1][1].startswith(
        "l, 7 of shape [2, 4, 4] and of their mirror images, 2 classes, 0.0 MiB"
    )
    assert shown[2][0] == "spread" and "with scale 0.5" in shown[2][1]
    assert shown[3] == [
        "next",
        "halfstep train denoiser --data l --labels --drop-labels 0.1 --out TEACHER",
    ]
    data = load("l")
    assert isinstance(data, Latents) and data.names == ("cats", "dogs") and data.scale == 0.5
    images = load("photos", size=8).batch(torch.arange(7)).x0
    codec = load_codec("codec")
    for view, x in ((0, images), (1, images.flip(-1))):
        torch.testing.assert_close(
            data.moments.rows(2 * torch.arange(7) + view), codec.moments(x), rtol=0, atol=1e-5
        )
    assert load_codec("l").digest() == codec.digest() == data.codec and load_codec("l").scale == 0.5
    spread = float(re.search(r"\d+\.\d+", shown[2][1])[0])
    assert spread == pytest.approx(float(data.batch(torch.arange(7)).x0.std()), abs=0.006)
    before = everything(tmp_path / "l")
    status, out, _ = cli(*ENCODE, *SMALL)
    assert status == 0 and "done      these latents were finished before" in out
    assert everything(tmp_path / "l") == before


def test_options_reach_the_files(cli):
    more = ("--half", "--no-mirror", "--scale", "0.25", "--channels", "3", "--shard", "7")
    status, out, _ = cli(*ENCODE, *more)
    assert status == 0 and "mirror" not in out
    about = json.loads(Path("l/latents.json").read_text())
    assert (about["dtype"], about["views"], about["scale"], about["shard"]) == (
        "float16",
        1,
        0.25,
        7,
    )
    assert about["image"] == [3, 8, 8] and about["latent"] == [2, 4, 4] and about["complete"]
    assert load_codec("l").scale == 0.25


def test_a_bar_counts_images(cli, monkeypatch):
    from rich.console import Console

    import halfstep.cli.commands.latents as module

    shown = Console(force_terminal=True, width=100, file=(file := io.StringIO()))
    monkeypatch.setattr(module, "terminal", lambda: shown)
    assert cli(*ENCODE, *SMALL)[0] == 0
    assert "encoding 7 images" in file.getvalue() and "7/7" in file.getvalue()


def test_what_cannot_be_encoded(cli, tmp_path):
    Image.new("L", (8, 8)).save("gray.png")
    (tmp_path / "gray").mkdir()
    (tmp_path / "gray.png").rename(tmp_path / "gray" / "0.png")
    refused(cli, *ENCODE[:-1], "photos/l", by=r"'photos/l' lies in the folder of the images")
    refused(cli, *ENCODE, "--size", "7", by=r"7x7 .* write --size 6")
    refused(cli, "latents", "--data", "gray", "--codec", "codec", "--out", "l", by="3, H, W")
    refused(cli, *ENCODE[:1], *ENCODE[3:], by="needs --data")
    refused(cli, *ENCODE, "--codec", "nowhere", by="there is no codec 'nowhere'")
    refused(cli, *ENCODE, "--data", "two-moons", by="not images")
    refused(
        cli, *ENCODE, "--data", "digits", "--text", "clip", by="no captions .* leave --text out"
    )
    assert not (tmp_path / "l" / "latents.json").exists()
    assert cli(*ENCODE)[0] == 0
    refused(cli, *ENCODE, "--data", "l", "--out", "m", by="'l' holds latents already")
    refused(cli, *ENCODE, "--half", by="holds latents of another precision")
    refused(cli, *ENCODE, "--size", "10", by="holds latents of another shape of images")


def test_from_images_to_samples(cli, tmp_path):
    """Latents, a teacher of them, samples as pictures of the images' size."""
    assert cli(*ENCODE, *SMALL)[0] == 0
    few = ("--updates", "3", "--batch-size", "4", "--device", "cpu")
    train = ("train", "denoiser", "--data", "l", "--labels", "--drop-labels", "0.5", "--out", "t")
    status, _, err = cli(*train, *NET, *few)
    assert (status, err) == (0, ""), err
    teacher = Pipeline.load(tmp_path / "t" / "stages" / "teacher")
    assert teacher.shape == (2, 4, 4) and teacher.class_names == ("cats", "dogs")
    sample = ("sample", "t", "--out", "s", "--n", "3", "--steps", "2", "--device", "cpu")
    status, _, err = cli(*sample, "--labels", "1,0", "--guidance-scale", "2")
    assert (status, err) == (0, ""), err
    with Image.open(picture()) as image:
        assert image.size == (8, 8) and image.mode == "RGB"


def picture():
    """The first of the samples."""
    return min(path for path in Path("s").glob("*.png") if path.name != "grid.png")


def test_texts_from_captions_to_samples(cli, tmp_path):
    pytest.importorskip("transformers")
    from tests.support.texts import clip

    clip(tmp_path / "clip")
    for k, path in enumerate(sorted((tmp_path / "photos").rglob("*.png"))):
        path.with_suffix(".txt").write_text("\n".join(["a cat", "a zebra", "cat a"][: 1 + k % 3]))
    status, out, err = cli(*ENCODE, *SMALL, "--text", "clip", "--tokens", "5")
    assert (status, err) == (0, ""), err
    assert re.search(r"note +\d captions have more than 5 tokens and lose their end", out)
    assert "--texts --drop-labels 0.1" in out
    data = open_latents("l")
    null = data.null_context.encoder_hidden_states
    assert null.shape == (1, 5, 32) and len(data.contexts.captions) == 13
    few = ("--updates", "2", "--batch-size", "4", "--device", "cpu")
    train = ("train", "denoiser", "--data", "l", "--texts", "--drop-labels", "0.5", "--out", "t")
    status, _, err = cli(*train, *NET, *few)
    assert (status, err) == (0, ""), err
    sample = ("sample", "t", "--text", "clip", "--out", "s", "--steps", "2", "--device", "cpu")
    guided = (*sample, "--prompt", "a cat", "--n", "2", "--guidance-scale", "2")
    (tmp_path / "no.txt").write_text("a zebra\n")
    for name, more in (("p", ()), ("q", ("--negative-prompts", "no.txt")), ("s", ())):
        status, _, err = cli(*guided, *more, "--npz", "--out", name)
        assert (status, err) == (0, ""), err
    plain, led, again = (np.load(tmp_path / n / "samples.npz")["images"] for n in "pqs")
    assert np.array_equal(plain, again) and not np.array_equal(plain, led)
    status, _, err = cli(*sample, "--prompt", "a cat", "--negative-prompt", "a zebra")
    assert status == 2 and "guidance is off" in err
    with Image.open(picture()) as image:
        assert image.size == (8, 8)
