"""The image codec: what it computes, the files it is read from and written to, what it refuses."""

import os
import pickle
import shutil
from math import exp

import pytest
import torch

from halfstep.errors import CheckpointError, ConfigError
from halfstep.models.autoencoder import kl
from halfstep.models.autoencoder.checkpoints import ldm_name
from halfstep.models.autoencoder.kl import KLCodec, load_codec, OFFICIAL
from halfstep.models.codec import sample_latents
from tests.support.denoisers import seeded
from tests.support.runs import rewritten

# Three levels, no two of one width, so that a level in the wrong place does not fit or computes otherwise.
CONFIG = {
    "block_out_channels": (4, 8, 12),
    "layers_per_block": 2,
    "latent_channels": 5,
    "norm_num_groups": 2,
}
FLAT = {**CONFIG, "block_out_channels": (4, 4, 4)}
"""Levels of one width: shapes do not tell them apart."""


def made(config=CONFIG, seed=0, scale=0.7):
    """A codec of which every weight is random, those of norms and biases too."""
    torch.manual_seed(seed)
    codec = KLCodec.fresh(config, scale)
    with torch.no_grad():
        for weight in codec.parameters():
            weight.add_(torch.randn(weight.shape, generator=seeded(seed)) / 10)
    return codec


def images(n=3, h=8, w=12, seed=1):
    return torch.rand(n, 3, h, w, generator=seeded(seed)) * 2 - 1


def latents(n=3, h=2, w=3, channels=5, seed=2):
    return torch.randn(n, channels, h, w, generator=seeded(seed))


def ldm_state(model):
    """The state dict of the same autoencoder in the latent diffusion code, walked by its modules."""
    pairs = [*ldm_half("encoder", model.encoder), *ldm_half("decoder", model.decoder)]
    for level, down in enumerate(model.encoder.down_blocks):
        pairs += ldm_level(f"encoder.down.{level}", down, "downsample", down.downsamplers)
    for level, up in enumerate(reversed(model.decoder.up_blocks)):
        pairs += ldm_level(f"decoder.up.{level}", up, "upsample", up.upsamplers)
    pairs += [("quant_conv", model.quant_conv), ("post_quant_conv", model.post_quant_conv)]
    state = {}
    for name, module in pairs:
        weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
        state[f"{name}.weight"] = weight[:, :, None, None] if weight.ndim == 2 else weight
        state[f"{name}.bias"] = bias
    return state


def ldm_half(name, net):
    attention = net.mid_block.attentions[0]
    yield f"{name}.conv_in", net.conv_in
    yield from ldm_block(f"{name}.mid.block_1", net.mid_block.resnets[0])
    yield f"{name}.mid.attn_1.norm", attention.group_norm
    yield f"{name}.mid.attn_1.q", attention.to_q
    yield f"{name}.mid.attn_1.k", attention.to_k
    yield f"{name}.mid.attn_1.v", attention.to_v
    yield f"{name}.mid.attn_1.proj_out", attention.to_out[0]
    yield from ldm_block(f"{name}.mid.block_2", net.mid_block.resnets[1])
    yield f"{name}.norm_out", net.conv_norm_out
    yield f"{name}.conv_out", net.conv_out


def ldm_level(name, level, between, sampler):
    for k, resnet in enumerate(level.resnets):
        yield from ldm_block(f"{name}.block.{k}", resnet)
    if sampler is not None:
        yield f"{name}.{between}.conv", sampler[0].conv


def ldm_block(name, resnet):
    for part in ("norm1", "conv1", "norm2", "conv2"):
        yield f"{name}.{part}", getattr(resnet, part)
    if resnet.conv_shortcut is not None:
        yield f"{name}.nin_shortcut", resnet.conv_shortcut


def same(a, b, atol=2e-6):
    """Two codecs that compute the same; where their weights lie in memory rounds the last digit."""
    assert (a.factor, a.channels, a.scale) == (b.factor, b.channels, b.scale)
    assert a.digest() == b.digest()
    torch.testing.assert_close(a.moments(images()), b.moments(images()), rtol=0, atol=atol)
    torch.testing.assert_close(a.decode(latents()), b.decode(latents()), rtol=0, atol=atol)


# A latent from its moments.


def test_a_latent_is_drawn_from_its_moments():
    mean, log_variance = torch.randn(2, 5, 3, 2, 4, generator=seeded(), dtype=torch.float64)
    noise = torch.randn(5, 3, 2, 4, generator=seeded(1), dtype=torch.float64)
    by_hand = (mean + log_variance.exp().sqrt() * noise) * 0.3
    got = sample_latents(torch.cat([mean, log_variance], 1), noise, 0.3)
    torch.testing.assert_close(got, by_hand, rtol=1e-12, atol=0)


def test_the_log_variance_is_clamped_at_both_ends():
    """Like the official code: from -30 to 20, each side at and just inside its end."""
    inputs = torch.tensor([-99.0, -30, -29, 19, 20, 99], dtype=torch.float64).reshape(6, 1, 1, 1)
    got = sample_latents(torch.cat([inputs * 0, inputs], 1), torch.ones_like(inputs), 1.0).flatten()
    expected = [exp(-15), exp(-15), exp(-14.5), exp(9.5), exp(10), exp(10)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


# What it computes.


def test_moments_are_the_networks_own():
    codec, x = made(), images()
    by_hand = codec.model.quant_conv(codec.model.encoder(x)).detach()
    got = codec.moments(x)
    assert got.shape == (3, 10, 2, 3) and not got.requires_grad
    torch.testing.assert_close(got, by_hand)
    assert (codec.factor, codec.channels, codec.scale) == (4, 5, 0.7)


def test_decoding_takes_the_scale_off_and_clamps():
    codec, z = made(), 3 * latents()
    raw = codec.model.decoder(codec.model.post_quant_conv(z * 0.7 / 0.7)).detach()
    assert raw.abs().max() > 1 > raw.abs().min()
    got = codec.decode(z * 0.7)
    assert got.shape == (3, 3, 8, 12) and not got.requires_grad
    torch.testing.assert_close(got, raw.clamp(-1, 1), rtol=0, atol=1e-6)


def test_training_sees_both_halves_and_no_clamp():
    codec, x, noise = made(scale=0.01), images(), 9 * latents()
    moments, decoded = codec(x, noise)
    torch.testing.assert_close(moments, codec.moments(x))
    mean, log_variance = moments.chunk(2, 1)
    z = mean + (log_variance / 2).exp() * noise
    torch.testing.assert_close(decoded, codec.model.decode(z).sample)
    assert decoded.abs().max() > 1
    decoded.sum().backward()
    assert all(weight.grad is not None for weight in codec.parameters())


@pytest.mark.parametrize("batch, calls", [(None, 1), (1, 5), (2, 3), (5, 1), (9, 1)])
def test_batches_change_nothing(batch, calls):
    codec, x, z = made(), images(5), latents(5)
    sizes = []
    for half in (codec.model.encoder, codec.model.decoder):
        half.register_forward_hook(lambda module, inputs, out: sizes.append(len(inputs[0])))
    whole = codec.moments(x), codec.decode(z)
    sizes.clear()
    parts = codec.moments(x, batch=batch), codec.decode(z, batch=batch)
    assert len(sizes) == 2 * calls and sum(sizes) == 10
    torch.testing.assert_close(parts, whole)


def test_a_batch_is_of_a_million_pixels(monkeypatch):
    """Counted in pixels of the image, on both ways: here 2 images of 96."""
    monkeypatch.setattr(kl, "PIXELS", 200)
    codec, sizes = made(), []
    for half in (codec.model.encoder, codec.model.decoder):
        half.register_forward_hook(lambda module, inputs, out: sizes.append(len(inputs[0])))
    codec.moments(images(5)), codec.decode(latents(5))
    assert sizes == [2, 2, 1] * 2
    monkeypatch.setattr(kl, "PIXELS", 1)
    assert len(codec.decode(latents(2))) == 2


@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-5), (torch.bfloat16, 0.2)])
def test_other_precisions(dtype, atol):
    """Results come in the argument's dtype, close to those of float32."""
    codec, other = made(), made().to(dtype)
    for x in (images(), images().double()):
        got = other.moments(x)
        assert got.dtype == x.dtype
        torch.testing.assert_close(got, codec.moments(x), rtol=0, atol=atol)
    got = other.decode(latents())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, codec.decode(latents()), rtol=0, atol=atol)


def test_autocast_runs_the_network_alone():
    codec, lower = made(), made()
    lower.autocast = torch.bfloat16
    for a, b in zip(lower(images(), latents()), codec(images(), latents()), strict=True):
        assert a.dtype == torch.float32
        assert 0 < (a - b).abs().max() < 0.3


@pytest.mark.parametrize(
    "shape, message",
    [
        ((2, 1, 8, 8), r"encodes images \[B, 3, H, W\] and got \[2, 1, 8, 8\]"),
        ((3, 8, 8), r"and got \[3, 8, 8\]"),
        ((2, 3, 8, 10), "images of 8 x 10 do not divide so: resize them"),
        ((2, 3, 6, 8), "images of 6 x 8"),
    ],
)
def test_images_that_it_cannot_encode_are_refused(shape, message):
    with pytest.raises(ConfigError, match=message):
        made().moments(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 4, 2, 3), (5, 2, 3)])
def test_latents_that_it_did_not_encode_are_refused(shape):
    with pytest.raises(ConfigError, match=r"decodes latents \[B, 5, h, w\] and got"):
        made().decode(torch.zeros(shape))


def test_a_batch_of_none_is_refused():
    for call in (
        lambda: made().moments(images(), batch=0),
        lambda: made().decode(latents(), batch=-1),
    ):
        with pytest.raises(ConfigError, match="batch must be at least 1"):
            call()


@pytest.mark.parametrize(
    "config, message",
    [
        ({"block_out_chanels": (4,)}, "perhaps you meant 'block_out_channels'"),
        ({"scaling_factor": 0.2}, "no option of a codec called 'scaling_factor'"),
        (
            {"block_out_channels": (5, 8), "norm_num_groups": 2},
            "cannot be built|cannot build a codec",
        ),
    ],
)
def test_a_codec_that_cannot_be_built_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        KLCodec.fresh(config)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(scale, tmp_path):
    made().save(tmp_path)
    for call in (lambda: made(scale=scale), lambda: load_codec(tmp_path, scale=scale)):
        with pytest.raises(ConfigError, match="scale is above 0"):
            call()


# Official files.


def test_the_official_shape():
    """248 tensors, 83.65 M parameters (uvit.md, 1.6), named as diffusers' own conversion reads them."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    with torch.device("meta"):
        model = KLCodec.fresh(OFFICIAL).model
    mine = model.state_dict()
    assert len(mine) == 248 and sum(v.numel() for v in mine.values()) == 83_653_863
    named = {ldm_name(name, 4): name for name in mine}
    assert len(named) == 248
    empty = {name: torch.full((1, 1, 1, 1), k) for k, name in enumerate(named)}
    theirs = convert_ldm_vae_checkpoint(empty, model.config)
    assert {named[name]: int(value) for name, value in empty.items()} == {
        name: int(value) for name, value in theirs.items()
    }
    with torch.device("meta"):
        walked = ldm_state(model)
    assert walked.keys() == named.keys()


@pytest.mark.parametrize("config", [CONFIG, FLAT])
def test_an_official_file_computes_the_same(tmp_path, config):
    codec = made(config, scale=0.18215)
    torch.save(ldm_state(codec.model), tmp_path / "autoencoder_kl.pth")
    loaded = load_codec(tmp_path / "autoencoder_kl.pth", config=config)
    same(loaded, codec)
    assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())
    assert load_codec(tmp_path / "autoencoder_kl.pth", config=config, scale=0.2301).scale == 0.2301


def test_half_precision_files_load(tmp_path):
    state = {name: value.half() for name, value in ldm_state(made().model).items()}
    torch.save(state, tmp_path / "a.pth")
    loaded = load_codec(tmp_path / "a.pth", config=CONFIG)
    assert all(weight.dtype == torch.float32 for weight in loaded.parameters())
    torch.testing.assert_close(
        loaded.moments(images()), made().moments(images()), rtol=0, atol=1e-2
    )


def changed(state, change):
    """A state dict with a tensor gone, one more, or one of another shape."""
    name = "decoder.up.2.block.1.conv2.weight"
    if change == "lacks":
        del state[name]
    elif change == "has besides":
        state["loss.logvar"] = torch.zeros(())
    elif change == "has other shapes of":
        state[name] = torch.zeros(2, 2)
    return state


@pytest.mark.parametrize(
    "change, named",
    [
        ("lacks", "decoder.up.2.block.1.conv2.weight"),
        ("has besides", "loss.logvar"),
        ("has other shapes of", "decoder.up_blocks.0.resnets.1.conv2.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_names(tmp_path, change, named):
    torch.save(changed(ldm_state(made().model), change), tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as refused:
        load_codec(tmp_path / "a.pth", config=CONFIG)
    message = str(refused.value)
    assert f"{change} 1 tensors ({named})" in message and "a.pth" in message and "\n" not in message


def test_another_architecture_is_refused(tmp_path):
    """A small file where Stable Diffusion's is asked for."""
    torch.save(ldm_state(made().model), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth' is not this autoencoder: it lacks"):
        load_codec(tmp_path / "a.pth")


class Dangerous:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def files(tmp_path):
    """Files that are no state dict, by what is wrong with them."""
    state, place = ldm_state(made().model), tmp_path / "a.pth"
    torch.save({**state, "epoch": Dangerous(tmp_path / "ran")}, place)
    yield "cannot be read as tensors alone, and nothing else is read", place.read_bytes()
    torch.save(made().model, place)
    yield "cannot be read as tensors alone, and nothing else is read", place.read_bytes()
    yield (
        "cannot be read as tensors alone, and nothing else is read",
        pickle.dumps(Dangerous(tmp_path / "ran")),
    )
    torch.save(state, place)
    yield "cannot be read as tensors alone", place.read_bytes()[:-5000]
    yield "cannot be read as tensors alone", b""
    yield "cannot be read as tensors alone", b"\x89PNG\r\n\x1a\n" * 7
    torch.save([1, 2], place)
    yield r"no state dict of tensors by name \('it' is a list\)", place.read_bytes()
    torch.save({}, place)
    yield r"no state dict of tensors by name \('it' is a dict\)", place.read_bytes()
    torch.save({"state_dict": state}, place)
    yield r"\('state_dict' is a dict\)", place.read_bytes()
    torch.save({**state, "global_step": 3}, place)
    yield r"\('global_step' is a int\)", place.read_bytes()


def test_strange_files_are_refused_in_one_sentence_and_never_run(tmp_path):
    for message, content in list(files(tmp_path)):
        (tmp_path / "a.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as refused:
            load_codec(tmp_path / "a.pth")
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


# Folders of diffusers.


def test_a_diffusers_folder_is_read(tmp_path):
    codec = made()
    codec.model.register_to_config(scaling_factor=0.31)
    codec.model.save_pretrained(tmp_path)
    loaded = load_codec(tmp_path)
    assert loaded.scale == 0.31 and load_codec(tmp_path, scale=0.5).scale == 0.5
    codec.scale = 0.31
    same(loaded, codec)


def test_a_diffusers_folder_of_old_names_is_read(tmp_path):
    """As sd-vae-ft-mse is published: query, key, value, proj_attn."""
    from safetensors.torch import load_file, save_file

    codec = made()
    codec.model.save_pretrained(tmp_path)
    file, old = tmp_path / "diffusion_pytorch_model.safetensors", {}
    today = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name, value in load_file(file).items():
        for new, before in today.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        old[name] = value
    assert sum("proj_attn" in name for name in old) == 4
    save_file(old, file)
    codec.scale = 0.18215
    same(load_codec(tmp_path), codec)


def test_strange_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no codec"):
        load_codec(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"neither codec\.json"):
        load_codec(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="in the folder vae"):
        load_codec(tmp_path)
    (tmp_path / "model_index.json").unlink()
    made().model.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors"):
        load_codec(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"lacks diffusion_pytorch_model"):
        load_codec(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(CheckpointError, match="UNet2DModel"):
        load_codec(tmp_path)


# Folders of ours.


def test_a_saved_codec_comes_back(tmp_path):
    made().save(tmp_path)
    before = torch.random.get_rng_state()
    loaded = load_codec(str(tmp_path))
    same(loaded, made())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert loaded.digest() == made().digest() != made(seed=1).digest()
    assert loaded.config == made().config
    assert load_codec(tmp_path, scale=2).scale == 2
    shutil.copytree(tmp_path, tmp_path / "stages" / "codec")
    for name in ("codec.json", "codec.safetensors"):
        (tmp_path / name).unlink()
    same(load_codec(tmp_path), made())


def test_the_digest_is_of_every_weight():
    """One weight, its dtype, its place."""
    codec, digests = made(), {made().digest()}
    with torch.no_grad():
        codec.model.post_quant_conv.bias[3] += 1e-6
    digests |= {codec.digest(), made().double().digest()}
    swapped = made(FLAT)
    first, second = (level.resnets[1].conv1 for level in swapped.model.encoder.down_blocks[:2])
    digests.add(swapped.digest())
    first.weight, second.weight = second.weight, first.weight
    digests.add(swapped.digest())
    assert len(digests) == 5


def inode(folder):
    return (folder / "codec.safetensors").stat().st_ino


def test_many_stages_share_one_file(tmp_path):
    codec = made()
    for name in ("a", "b", "a", "b"):
        codec.save(tmp_path / name)
    loaded = load_codec(tmp_path / "b", scale=3)
    loaded.save(tmp_path / "c")
    assert inode(tmp_path / "a") == inode(tmp_path / "b") == inode(tmp_path / "c")
    assert load_codec(tmp_path / "c").scale == 3 and load_codec(tmp_path / "a").scale == 0.7
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"codec.json", "codec.safetensors"}
    with torch.no_grad():
        loaded.model.quant_conv.bias += 1
    loaded.save(tmp_path / "d")
    assert inode(tmp_path / "d") != inode(tmp_path / "a")
    same(load_codec(tmp_path / "a"), codec)
    same(load_codec(tmp_path / "d"), loaded)


def test_a_file_that_was_replaced_is_not_linked(tmp_path):
    """Between loading and saving somebody else wrote there; or took it away."""
    made().save(tmp_path / "a")
    codec = load_codec(tmp_path / "a")
    made(seed=1).save(tmp_path / "a")
    codec.save(tmp_path / "b")
    same(load_codec(tmp_path / "b"), made())
    codec = load_codec(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    codec.save(tmp_path / "c")
    same(load_codec(tmp_path / "c"), made(seed=1))


def test_where_there_are_no_links_there_are_copies(tmp_path, monkeypatch):
    codec = made()
    codec.save(tmp_path / "a")

    def refuse(*inputs):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    codec.save(tmp_path / "b")
    assert inode(tmp_path / "a") != inode(tmp_path / "b")
    for name in ("codec.json", "codec.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_damaged_codec_is_refused(tmp_path):
    made().save(tmp_path)
    file, about = tmp_path / "codec.safetensors", tmp_path / "codec.json"
    for part in (file, about):
        with pytest.raises(CheckpointError, match="give the folder that it lies in"):
            load_codec(part)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="damaged: its checksum"):
        load_codec(tmp_path)
    file.write_bytes(whole)
    original = about.read_bytes()
    for key in ("class_name", "config", "scale"):
        about.write_bytes(original)
        rewritten(about, lambda content, key=key: content.update({key: None}))
        with pytest.raises(CheckpointError, match=f"{key} must be"):
            load_codec(tmp_path)
    for value in (None, True, "x", [None], [4, "x"]):
        about.write_bytes(original)
        wrong = {"block_out_channels": value}
        rewritten(about, lambda content, wrong=wrong: content["config"].update(wrong))
        with pytest.raises(ConfigError, match="block_out_channels"):
            load_codec(tmp_path)
    about.write_bytes(original)
    rewritten(about, lambda content: content["config"].update(latent_channels=6))
    with pytest.raises(CheckpointError, match="other shapes"):
        load_codec(tmp_path)
