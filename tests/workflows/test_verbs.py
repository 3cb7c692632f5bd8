"""Verbs from Python: a config in, a typed result out, and nothing in the terminal."""

from pathlib import Path

import pytest
import torch

import halfstep
from halfstep.errors import ConfigError
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.pipeline import Pipeline
from halfstep.workflows.encode import encode, EncodeConfig
from halfstep.workflows.images import StartOptions
from halfstep.workflows.latents import encode_latents, LatentsConfig
from halfstep.workflows.locate import locate_pipeline
from halfstep.workflows.sample import sample, SampleConfig

TEACHER = Path(halfstep.__file__).parent / "assets" / "digits-teacher"


class Steps:
    """Counts steps."""

    expected = done = 0

    def expect(self, steps):
        self.expected += steps

    def advance(self, steps=1):
        self.done += steps

    def note(self, text):
        raise AssertionError(text)


def test_images_to_noise_and_back(tmp_path, capsys):
    progress, file = Steps(), tmp_path / "noise.safetensors"
    config = EncodeConfig(pipeline=TEACHER, images="digits", out=file, n=3, steps=16)
    encoded = encode(config, progress=progress)
    assert encoded.path == file and encoded.noise.shape == (3, 1, 8, 8)
    assert encoded.picture == tmp_path / "noise.png" and encoded.picture.exists()
    assert progress.done == progress.expected == 16
    start = StartOptions(noise=file)
    sampled = sample(SampleConfig(pipeline=TEACHER, out=tmp_path / "s", start=start, steps=16))
    images = halfstep.load_data("digits").batch(torch.arange(3)).x0
    assert (sampled.samples - images).square().mean().sqrt() < 0.2
    assert [path.name for path in sampled.images] == [f"{k:06d}.png" for k in range(3)]
    assert sampled.grid == tmp_path / "s" / "grid.png" and sampled.npz is None
    assert capsys.readouterr() == ("", "")


def test_samples_are_those_of_the_pipeline(tmp_path):
    config = SampleConfig(pipeline=TEACHER, out=tmp_path / "all.png", n=2, steps=2, seed=5)
    sampled = sample(config)
    assert torch.equal(sampled.samples, Pipeline.load(TEACHER).sample(2, steps=2, seed=5))
    assert sampled.images == () and sampled.grid == tmp_path / "all.png"


@pytest.mark.parametrize("options", [{"n": 0}, {"first": -1}, {"variance": 2.0}, {"steps": 1.5}])
def test_a_config_is_validated(options, tmp_path):
    with pytest.raises(ConfigError, match=next(iter(options))):
        SampleConfig(pipeline=TEACHER, out=tmp_path / "x", **options)


def test_latents_are_encoded_once(tmp_path, capsys):
    KLCodec.fresh(
        {"block_out_channels": (8, 8), "norm_num_groups": 2, "latent_channels": 2, "in_channels": 1,
         "out_channels": 1}
    ).save(tmp_path / "codec")  # fmt: skip
    config = LatentsConfig(data="digits", codec=tmp_path / "codec", out=tmp_path / "l")
    result = encode_latents(config)
    assert result.encoded and len(result.latents) == 1797 and result.spread > 0
    assert not encode_latents(config).encoded
    assert capsys.readouterr() == ("", "")


def test_a_pipeline_is_located(tmp_path):
    assert locate_pipeline(str(TEACHER)).shape == (1, 8, 8)
    with pytest.raises(ConfigError, match="neither a pipeline nor a run"):
        locate_pipeline(tmp_path)
