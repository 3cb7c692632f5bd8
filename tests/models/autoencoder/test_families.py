"""Autoencoders of diffusers as codecs: each computes, and is read and saved, as diffusers does it."""

import json
from types import SimpleNamespace

import diffusers
import pytest
import torch

from halfstep.data.latents.dataset import open_latents
from halfstep.errors import CheckpointError, ConfigError
from halfstep.models.autoencoder.families import FAMILIES
from halfstep.models.autoencoder.kl import codec_of_model, KLCodec, load_codec
from halfstep.models.autoencoder.normalisation import Normalisation
from halfstep.models.codec import sample_latents
from halfstep.rng import Draw
from halfstep.workflows.latents import encode_latents, LatentsConfig
from tests.support.autoencoders import autoencoder, AUTOENCODERS, SD3, SDXL
from tests.support.denoisers import seeded
from tests.support.latents import photos

NAMES = [*AUTOENCODERS]
FACTORS = {"sd": 2, "sdxl": 2, "sd3": 2, "dc": 4, "qwen": 2, "tiny": 2}
CHANNELS = {"sd": 4, "sdxl": 4, "sd3": 16, "dc": 4, "qwen": 3, "tiny": 3}


def images(n=3, h=8, w=12):
    return torch.rand(n, 3, h, w, generator=seeded(1)) * 2 - 1


def latents(codec, n=3, h=2, w=3):
    return torch.randn(n, codec.channels, h, w, generator=seeded(2))


def close(a, b, atol=2e-6):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def same(a, b):
    """Two codecs equal in everything that is saved, and to the bit in what they compute."""
    assert (a.class_name, a.scale, a.digest()) == (b.class_name, b.scale, b.digest())
    assert json.dumps(a.config) == json.dumps(b.config)
    assert torch.equal(a.moments(images()), b.moments(images()))
    assert torch.equal(a.decode(latents(a)), b.decode(latents(b)))


def drawn(codec, seed=3):
    """Latents of the images, with the noise that a pipeline draws from this seed."""
    moments = codec.moments(images())
    shape = len(moments), codec.channels, *moments.shape[2:]
    return sample_latents(moments, torch.randn(shape, generator=seeded(seed)), codec.scale)


@pytest.mark.parametrize("name", NAMES)
def test_decoding_is_the_pipelines(name):
    model, by_pipeline = autoencoder(name), AUTOENCODERS[name][2]
    codec = codec_of_model(model)
    assert (codec.factor, codec.channels) == (FACTORS[name], CHANNELS[name])
    z = latents(codec)
    with torch.no_grad():
        expected = by_pipeline(model, z)
    got = codec.decode(z)
    assert got.shape == (3, 3, 2 * codec.factor, 3 * codec.factor)
    close(got, expected.clamp(-1, 1), atol=1e-5)
    assert (got - codec.decode(1.1 * z)).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name, pipeline",
    [("sd3", "FluxImg2ImgPipeline"), ("qwen", "QwenImageImg2ImgPipeline")],
)
def test_encoding_is_the_pipelines(name, pipeline):
    """Its own method, with the same noise."""
    model = autoencoder(name)
    x = images()[:, :, None] if name == "qwen" else images()
    with torch.no_grad():
        encode = getattr(diffusers, pipeline)._encode_vae_image
        expected = encode(SimpleNamespace(vae=model), x, seeded(3))
    close(drawn(codec_of_model(model)), expected.squeeze(2) if name == "qwen" else expected)


def test_encoding_by_channels_is_the_pipelines():
    """As StableDiffusionXLImg2ImgPipeline.prepare_latents computes it."""
    model = autoencoder("sdxl")
    mean, std = (torch.tensor(SDXL[k]).view(1, 4, 1, 1) for k in ("latents_mean", "latents_std"))
    with torch.no_grad():
        z = model.encode(images()).latent_dist.sample(seeded(3))
    close(drawn(codec_of_model(model)), (z - mean) * SDXL["scaling_factor"] / std)


@pytest.mark.parametrize("name, output", [("dc", "latent"), ("tiny", "latents")])
def test_latents_without_noise(name, output):
    model = autoencoder(name)
    codec = codec_of_model(model)
    with torch.no_grad():
        z = getattr(model.encode(images()), output)
    mean, log_variance = codec.moments(images()).chunk(2, dim=1)
    assert torch.equal(mean, z) and (log_variance == -30).all()
    close(drawn(codec), z * codec.scale)


def test_a_codec_without_shift_is_not_touched():
    model = autoencoder("sd")
    codec, x = codec_of_model(model), images()
    assert codec.normalisation is None and codec_of_model(autoencoder("tiny")).normalisation is None
    with torch.no_grad():
        assert torch.equal(codec.moments(x), model.encode(x).latent_dist.parameters)
        z = latents(codec)
        assert torch.equal(codec.decode(z), model.decode(z / 0.18215).sample.clamp(-1, 1))


def test_the_normalisation_of_moments_is_that_of_latents():
    """(z - mean) / std of a drawn z, and the latent drawn from normalised moments, in float64."""
    normal = Normalisation((0.3, -1.0), (2.0, 0.1))
    moments = torch.randn(2, 4, 3, 3, generator=seeded(), dtype=torch.float64)
    noise = torch.randn(2, 2, 3, 3, generator=seeded(1), dtype=torch.float64)
    z = sample_latents(moments, noise, 1.0)
    got = sample_latents(normal.moments(moments), noise, 1.0)
    mean, std = (torch.tensor(v, dtype=z.dtype)[:, None, None] for v in (normal.mean, normal.std))
    torch.testing.assert_close(got, (z - mean) / std, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(normal.undone(got), z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_loaded_and_saved_to_the_bit(name, tmp_path):
    """From diffusers' folder into ours, and from that again."""
    model = autoencoder(name)
    model.save_pretrained(tmp_path / "vae")
    loaded = load_codec(tmp_path / "vae")
    same(loaded, codec_of_model(model))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    loaded.save(tmp_path / "ours")
    again = load_codec(tmp_path / "ours")
    same(again, loaded)
    again.save(tmp_path / "linked")
    about = json.loads((tmp_path / "linked" / "codec.json").read_text())
    assert about["class_name"] == type(model).__name__
    double = load_codec(tmp_path / "ours").double()
    close(double.moments(images()), loaded.moments(images()), atol=1e-4)
    loaded.autocast = torch.bfloat16
    assert loaded.decode(latents(loaded)).dtype == torch.float32


def test_half_precision_comes_back(tmp_path):
    """As a pipeline in memory has it: the digest, which latents record, is of the dtype too."""
    codec = codec_of_model(autoencoder("sd3").to(torch.bfloat16))
    codec.save(tmp_path)
    same(load_codec(tmp_path), codec)


@pytest.mark.parametrize(
    "class_name, config, factor, channels",
    [
        ("AutoencoderKL", SDXL | dict(block_out_channels=[128, 256, 512, 512]), 8, 4),
        ("AutoencoderKL", SD3 | dict(block_out_channels=[128, 256, 512, 512]), 8, 16),
        ("AutoencoderDC", {}, 32, 32),
        ("AutoencoderDC", {"encoder_layers_per_block": [0, 2, 2, 3, 3, 3]}, 32, 32),
        ("AutoencoderKLQwenImage", {}, 8, 16),
        ("AutoencoderTiny", {"latent_channels": 16, "shift_factor": 0.0}, 8, 16),
    ],
)
def test_published_sizes(class_name, config, factor, channels):
    """Without memory: the sizes that published models have."""
    config = {name: value for name, value in config.items() if name != "scaling_factor"}
    with torch.device("meta"):
        codec = KLCodec.fresh(config, class_name=class_name)
        moments, decoded = codec(
            torch.zeros(1, 3, 32, 64), torch.zeros(1, channels, 32 // factor, 64 // factor)
        )
    assert (codec.factor, codec.channels) == (factor, channels)
    assert moments.shape == (1, 2 * channels, 32 // factor, 64 // factor)
    assert decoded.shape == (1, 3, 32, 64)


def test_the_digest_is_of_the_normalisation_too():
    digests = {
        codec_of_model(autoencoder("sd", **more)).digest()
        for more in ({}, {"shift_factor": 0.0}, {"shift_factor": 0.1}, {"shift_factor": 0.2})
    }
    assert len(digests) == 3


def test_a_model_in_memory_is_not_copied():
    model = autoencoder("sd3")
    codec = codec_of_model(model)
    assert codec.model is model and codec.scale == SD3["scaling_factor"]
    assert codec_of_model(model, scale=2).scale == 2
    with pytest.raises(ConfigError, match="Linear cannot be a codec"):
        codec_of_model(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("variant, shards", [("fp16", False), (None, True), ("fp16", True)])
def test_variants_and_shards_of_weights(variant, shards, tmp_path):
    model = autoencoder("sd3")
    if variant:
        model.half().float()
    model.save_pretrained(tmp_path, variant=variant, max_shard_size="20KB" if shards else "10GB")
    assert (len([*tmp_path.glob("*.safetensors")]) > 1) == shards
    same(load_codec(tmp_path), codec_of_model(model))


def test_a_pipelines_folder_has_its_vae(tmp_path):
    model = autoencoder("qwen")
    model.save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text("{}")
    same(load_codec(tmp_path), codec_of_model(model))


def test_an_index_names_no_file_elsewhere(tmp_path):
    autoencoder("sd").save_pretrained(tmp_path / "vae", max_shard_size="20KB")
    index = tmp_path / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    name = next(iter(content["weight_map"]))
    content["weight_map"][name] = "../other.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load_codec(tmp_path / "vae")
    content["weight_map"][name] = "absent.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="cannot read"):
        load_codec(tmp_path / "vae")


@pytest.mark.parametrize(
    "config, word",
    [
        ({"latents_mean": [0.0] * 4}, "give both"),
        ({"latents_std": [1.0] * 4}, "give both"),
        ({**SDXL, "shift_factor": 0.1}, "alone"),
        ({**SDXL, "latents_mean": [0.1] * 3}, "each of its 4 channels"),
        ({**SDXL, "latents_std": [1.0, 1.0, 1.0, 0.0]}, "above 0"),
        ({**SDXL, "latents_mean": "abcd"}, "latents_mean"),
        ({"shift_factor": float("nan")}, "shift_factor"),
        ({"shift_factor": "x"}, "shift_factor"),
    ],
)
def test_a_normalisation_that_is_none_is_refused(config, word):
    config = {k: v for k, v in config.items() if k != "scaling_factor"}
    with pytest.raises(ConfigError, match=word):
        KLCodec.fresh({"block_out_channels": (8,), "norm_num_groups": 4, **config})


def test_a_class_that_is_not_in_the_table_is_refused(tmp_path):
    """A file names no other class, of diffusers or of anything else."""
    autoencoder("sd").save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    for name in ("VQModel", "torch.nn.Linear"):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": name}))
        with pytest.raises(CheckpointError, match=f"holds a {name}"):
            load_codec(tmp_path)
    with pytest.raises(ConfigError, match="VQModel"):
        KLCodec.fresh({}, class_name="VQModel")
    assert all(hasattr(diffusers, name) for name in FAMILIES)


@pytest.mark.parametrize("name", NAMES)
def test_latents_of_images_and_back(name, tmp_path):
    """Encoded by `halfstep latents`, read for training, decoded by the codec that lies beside them."""
    model = autoencoder(name)
    model.save_pretrained(tmp_path / "vae")
    photos(tmp_path / "photos", n=4, side=8)
    paths = {"data": str(tmp_path / "photos"), "codec": tmp_path / "vae", "out": tmp_path / "l"}
    data = encode_latents(LatentsConfig(**paths, size=8, channels=3, device="cpu")).latents
    codec, rows = load_codec(tmp_path / "l"), torch.arange(4)
    same(codec, codec_of_model(model))
    assert data.codec == codec.digest() and data.scale == codec.scale
    assert data.shape == (codec.channels, 8 // codec.factor, 8 // codec.factor)
    means = data.batch(rows).x0
    with torch.no_grad():
        expected = AUTOENCODERS[name][2](model, means)
    close(codec.decode(means), expected.clamp(-1, 1), atol=1e-5)
    trained = data.training_batch(rows, Draw.all(seeded(), 4)).x0
    assert trained.shape == means.shape and trained.isfinite().all()
    assert open_latents(tmp_path / "l").fingerprint() == data.fingerprint()
