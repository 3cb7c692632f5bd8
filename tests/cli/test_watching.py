"""Watching a run from the command line: trackers, pictures, and options that change within it."""

import numpy as np
import pytest
from PIL import Image

from halfstep.cli.commands.distill import options_for
from halfstep.config.fields import options_of
from halfstep.methods import METHODS
from halfstep.models.autoencoder.kl import load_codec
from halfstep.pictures import to_uint8
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.distill_classifier import DistillClassifierConfig
from halfstep.workflows.train_classifier import TrainClassifierConfig
from halfstep.workflows.train_codec import encoded, TrainCodecConfig
from halfstep.workflows.train_denoiser import TrainDenoiserConfig
from tests.cli.commands import halving, TINY
from tests.support.runs import refused

TRAINED = ["train", "denoiser", *TINY, "--batch-size", 8, "--device", "cpu", "--out", "t"]


def names(folder):
    return sorted(path.name for path in folder.glob("*"))


def test_every_verb_that_trains_has_the_options():
    kinds = [TrainDenoiserConfig, TrainCodecConfig, *map(options_for, METHODS)]
    for kind in kinds:
        assert {"log", "samples_every"} <= options_of(kind).keys()
    for kind in (TrainClassifierConfig, DistillClassifierConfig):
        assert {"log", "samples_every"} & options_of(kind).keys() == {"log"}


def test_a_teacher_is_watched(cli, tmp_path):
    status, _, err = cli(*TRAINED, "--updates", 6, "--save-every", 4, "--log", "tensorboard")
    assert status == 0 and not err, err
    assert names(tmp_path / "t/samples") == ["teacher-00000004.png", "teacher-00000006.png"]
    assert len(names(tmp_path / "t/tensorboard")) == 1
    with Image.open(tmp_path / "t/samples/teacher-00000006.png") as opened:
        assert opened.size == (512, 512)


def test_students_are_drawn_and_the_run_says_which_options_changed(cli, moons, tmp_path):
    words = halving(
        moons, "r", "--stop", 4, "--tolerance", 0, "--device", "cpu", "--samples-every", 5
    )
    assert cli(*words)[0] == 0
    assert names(tmp_path / "r/samples")[:1] == ["0004-steps-00000005.png"]
    status, out, err = cli(
        *words, "--extend", "--updates", 9, "--learning-rate", 1e-5, "--save-every", 2
    )
    assert status == 0, err
    assert "note      learning_rate was 0.0003, now 1e-05, from update 5 of 0004-steps on" in out
    assert "note      save_every was 1, now 2, from update 5 of 0004-steps on" in out
    assert RunFolder.open(tmp_path / "r").config["teacher"] == str(moons)


@pytest.mark.parametrize(
    "words, says",
    [
        (["--log", "tensorbord"], "no tracker 'tensorbord': perhaps you meant 'tensorboard'"),
        (["--samples-every", "-1"], "samples_every must be at least 0"),
        (["--samples-every", "often"], "--samples-every takes a whole number"),
    ],
)
def test_wrong_values_are_one_sentence(cli, tmp_path, words, says):
    assert refused(cli(*TRAINED, *words), says)
    assert not (tmp_path / "t").exists()


def test_an_encoder_has_no_samples(cli, moons, tmp_path):
    words = [
        "distill",
        "encoder",
        "--teacher",
        moons,
        "--data",
        "two-moons",
        "--start",
        4,
        "--stop",
        2,
    ]
    got = cli(*words, "--updates", 2, "--out", "e", "--samples-every", 2)
    assert refused(
        got, "has no samples to draw: leave samples_every out (command line: --samples-every)"
    )
    assert not (tmp_path / "e").exists()
    assert cli(*words, "--updates", 2, "--out", "e", "--log", "tensorboard")[0] == 0
    assert not (tmp_path / "e/samples").exists() and (tmp_path / "e/tensorboard").exists()


def test_a_classifier_is_logged_and_has_no_samples(cli, tmp_path):
    words = ["train", "classifier", "--data", "digits", "--updates", 2,
             "--batch-size", 8, "--out", "c", "--device", "cpu"]  # fmt: skip
    status, _, err = cli(*words, "--log", "tensorboard")
    assert status == 0, err
    assert len(names(tmp_path / "c/tensorboard")) == 1 and not (tmp_path / "c/samples").exists()
    assert refused(cli(*words, "--samples-every", 2), "no option --samples-every")


def test_a_codec_s_pictures_are_reconstructions(cli, tmp_path):
    """The same eight images above, what the averaged codec makes of them below."""
    words = ["train", "codec", "--data", "digits", "--width", 4, "--batch-size", 5, "--updates", 4,
             "--ema", 0.5, "--out", "k", "--device", "cpu", "--samples-every", 3]  # fmt: skip
    assert cli(*words)[0] == 0
    assert names(tmp_path / "k/samples") == ["codec-00000003.png", "codec-00000004.png"]
    with Image.open(tmp_path / "k/samples/codec-00000004.png") as opened:
        pixels = np.asarray(opened)
    side, scale = 9, pixels.shape[1] // (8 * 9 - 1)
    pixels = pixels[::scale, ::scale]
    from halfstep.data import load

    data, codec = load("digits"), load_codec(tmp_path / "k/codec")
    images, latents = next(encoded(codec, data, 8, 0))
    for k in range(8):
        above = pixels[:8, side * k : side * k + 8]
        assert np.array_equal(above, to_uint8(images)[k, ..., 0])
        below = to_uint8(codec.decode(latents * codec.scale).detach())[k, ..., 0].astype(int)
        assert np.abs(below - pixels[9:17, side * k : side * k + 8]).max() <= 1
