"""The presets of published U-ViTs train the published networks by the published recipes."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from halfstep.config.fields import build
from halfstep.config.preset_files import preset
from halfstep.config.toml import from_file
from halfstep.data import Dataset, load
from halfstep.data.latents.encoding import write_latents
from halfstep.data.latents.image_stream import stream
from halfstep.hub.uvit import PUBLISHED
from halfstep.models import infer_config
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.schema import literals
from halfstep.workflows.new_pipeline import fresh_pipeline
from halfstep.workflows.train_denoiser import TrainDenoiserConfig
from tests.support.networks import CODEC
from tests.support.published import LATENT, NAMES, RECIPES, TEXT

PLAIN = [name for name in NAMES if name not in TEXT]


def preset_config(name):
    values = from_file(TrainDenoiserConfig, preset(f"published/{name}"))
    return build(TrainDenoiserConfig, values | {"data": "DATA", "out": Path(f"runs/{name}")})


@pytest.mark.parametrize("name", NAMES)
def test_the_presets_ask_for_the_published_recipes(name):
    options, published = preset_config(name), PUBLISHED[name]
    assert options.resolved(n=1) == (published.method, published.training)
    # Of latents the mirror image is encoded beforehand.
    assert options.dataset.flip == (published.flip and name not in LATENT)
    assert options.dataset.size == (None if name in LATENT else published.size)
    assert options.network.labels == bool(published.num_classes)
    assert options.network.texts == (name in TEXT)
    text = Path(__file__).parents[2].joinpath(f"halfstep/presets/published/{name}.toml").read_text()
    assert f"# score     not run here; published FID {RECIPES[name][9]:.2f} (" in text
    assert "Bao et al. 2023" in text


@pytest.mark.parametrize("name", [name for name in LATENT if name not in TEXT])
def test_the_presets_take_the_latents_that_they_are_for(name, tmp_path):
    torch.manual_seed(0)
    codec, published = KLCodec.fresh(CODEC, scale=0.18215), PUBLISHED[name]
    pixels = np.zeros((2, published.size, published.size, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.array([0, 1]))
    write_latents(stream(str(tmp_path / "images.npz")), codec, tmp_path / "latents")
    source = replace(preset_config(name).dataset, data=str(tmp_path / "latents"))
    data = load(source.data, size=source.size, channels=source.channels, flip=source.flip)
    assert data.shape == published.shape and data.flip == published.flip
    with torch.device("meta"):
        made = fresh_pipeline(preset_config(name).network, data, True, seed=0)
    assert made.codec.scale == published.scale and made.null == 2


@pytest.mark.parametrize("name", NAMES)
def test_the_presets_ask_for_the_published_networks(name):
    options, published = preset_config(name), PUBLISHED[name]
    text_shape = (77, 768) if name in TEXT else None
    rows = published.net.get("num_classes")
    fits = infer_config("uvit", published.shape, num_classes=rows, text_shape=text_shape)
    assert fits.pop("out_chans") == published.net["in_chans"]
    config = literals(options.network.net_config)
    assert not config.keys() & fits.keys()  # what the data decides is left to it
    assert config | fits == published.net


@pytest.mark.parametrize("name", PLAIN)
def test_training_by_a_preset_makes_what_published_weights_fit(name):
    """The pipeline that `halfstep train denoiser` would begin with, on the data that it is for."""
    options, published = preset_config(name), PUBLISHED[name]
    labels = torch.tensor([0, 999]) if published.num_classes else None
    data = Dataset(torch.zeros(2, *published.shape), labels)
    with torch.device("meta"):
        made = fresh_pipeline(options.network, data, options.method.drop_labels > 0, seed=0)
    mine = {key: value.shape for key, value in made.denoiser.net.state_dict().items()}
    assert mine == {key: value.shape for key, value in published.blank().state_dict().items()}
    assert made.denoiser.schedule == published.schedule
    assert asdict(made.denoiser.time) == asdict(published.time)
    assert type(made.denoiser.parameterisation).__name__ == "Eps"
    assert (made.null, made.clip, made.shape) == (published.null, None, published.shape)
    assert made.class_names == tuple(map(str, range(published.num_classes)))
