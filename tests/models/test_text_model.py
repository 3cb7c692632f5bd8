"""A text-conditional latent model, whole: captions beside images, an encoder, latents, training, prompts.

The encoder and the codec are made here; the network learns from the captions what it is asked for.
"""

import pytest
import torch
from PIL import Image

from halfstep.data.latents.captions import Captions, captions_of
from halfstep.data.latents.contexts import unpacked
from halfstep.data.latents.dataset import open_latents
from halfstep.data.latents.encoding import Layout, write_latents
from halfstep.data.latents.image_stream import stream
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.errors import ConfigError
from halfstep.methods import Denoising
from halfstep.models import build
from halfstep.models.autoencoder.kl import KLCodec, load_codec
from halfstep.models.text_encoders import load_texts
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import defaults_of
from halfstep.training import RunOptions, train, TrainingConfig
from tests.support.denoisers import seeded
from tests.support.texts import clip, t5

TOKENS = 6
SAID = {"day": (225, ["a cat", "cat cat"]), "night": (30, ["a zebra", "zebra"])}
"""The gray of an image, and what is said of it."""
CODEC = dict(
    in_channels=1, out_channels=1, latent_channels=3, block_out_channels=[4, 8], norm_num_groups=2,
    layers_per_block=1, down_block_types=["DownEncoderBlock2D"] * 2,
    up_block_types=["UpDecoderBlock2D"] * 2,
)  # fmt: skip
NET = dict(
    img_size=4, patch_size=2, in_chans=3, embed_dim=32, depth=2, num_heads=2, clip_dim=32,
    num_clip_token=TOKENS,
)  # fmt: skip


def photograph(folder):
    """Bright and dark images, a .txt beside each, with one caption or two."""
    noise = torch.randint(-20, 21, (12, 8, 8), generator=seeded(1))
    for k, pixels in enumerate(noise):
        gray, captions = SAID["day" if k % 2 else "night"]
        folder.mkdir(exist_ok=True)
        Image.fromarray((pixels + gray).to(torch.uint8).numpy()).save(folder / f"{k:02d}.png")
        (folder / f"{k:02d}.txt").write_text("\n".join(captions[: 1 + k // 6]))
    return folder


def a_codec(images):
    """Untrained, with little noise, and latents of mean 0 and variance 1."""
    torch.manual_seed(0)
    codec, out = KLCodec.fresh(CODEC), CODEC["latent_channels"]
    with torch.no_grad():
        last = codec.model.quant_conv
        last.weight[out:], last.bias[out:] = 0, -8
        last.bias[:out] -= codec.moments(images)[:, :out].mean((0, 2, 3))
        codec.scale = 1 / float(codec.moments(images)[:, :out].std())
    return codec.requires_grad_(False).eval()


@pytest.fixture(scope="module", params=[clip, t5], ids=["clip", "t5"])
def made(request, tmp_path_factory):
    """The encoder, its latents, and a model trained on them."""
    root = tmp_path_factory.mktemp("text-model")
    texts = load_texts(request.param(root / "encoder"), tokens=TOKENS)
    images = stream(str(photograph(root / "images")))
    captions = Captions(texts, captions_of(images), texts.digest())
    [pixels] = images.batches(range(12), 12)
    layout = Layout(shard=5)
    write_latents(images, a_codec(pixels), root / "latents", layout=layout, captions=captions)

    data = open_latents(root / "latents")
    torch.manual_seed(1)
    denoiser = Denoiser(build("uvit", NET), Cosine(), V())
    codec = load_codec(root / "latents")
    pipeline = Pipeline(
        denoiser, data.shape, codec=codec, steps=12, **defaults_of(data.null_context)
    )
    settings = TrainingConfig(batch_size=24, learning_rate=3e-3, warmup=10, ema=0.95)
    method = Denoising(updates=200, drop_labels=0.2)
    train(
        pipeline, data, root / "run", method=method, training=settings, job=RunOptions(device="cpu")
    )
    return texts, data, Pipeline.load(root / "run" / "stages" / "teacher")


def nearest(latents, data):
    """Which of night (0) and day (1) each latent is nearest to."""
    x0 = data.batch(torch.arange(12)).x0
    means = torch.stack([x0[k::2].mean(0) for k in range(2)])
    return (latents[:, None] - means).flatten(2).norm(dim=2).argmin(1)


def test_the_latents_hold_the_states_of_every_caption(made):
    texts, data, _ = made
    captions = [
        text for k in range(12) for text in SAID["day" if k % 2 else "night"][1][: 1 + k // 6]
    ]
    states = unpacked(data.contexts.captions.rows(torch.arange(18)), data.contexts.formats)[
        "encoder_hidden_states"
    ]
    torch.testing.assert_close(
        states, texts.conditions(captions).encoder_hidden_states, rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(
        data.null_context.encoder_hidden_states,
        texts.conditions([""]).encoder_hidden_states,
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("wording", [0, 1])
def test_it_makes_what_it_is_asked_for(made, guidance_scale, wording):
    texts, data, pipeline = made
    pipeline = pipeline.with_texts(texts)
    prompts = [SAID["day" if k % 2 else "night"][1][wording] for k in range(40)]
    options = {"seed": 3, "guidance_scale": guidance_scale, "prompts": prompts}
    latents = pipeline.sample(40, latents=True, **options)
    right = nearest(latents, data) == torch.arange(40) % 2
    assert right.float().mean() >= 0.95
    images = pipeline.sample(40, **options, batch=16)
    assert images.shape == (40, 1, 8, 8)
    torch.testing.assert_close(images, pipeline.codec.decode(latents), rtol=0, atol=1e-5)


def test_asked_for_nothing_it_makes_both(made):
    _, data, pipeline = made
    share = nearest(pipeline.sample(60, latents=True), data).float().mean()
    assert 0.2 < share < 0.8


def test_another_encoder_is_refused(made, tmp_path):
    texts, _, pipeline = made
    other = load_texts(clip(tmp_path / "other", seed=5), tokens=TOKENS)
    with pytest.raises(ConfigError, match="of the empty text"):
        pipeline.with_texts(other)
    with pytest.raises(ConfigError, match="of the empty text"):
        pipeline.with_texts(type(texts)(texts.model, texts.tokenizer, 5, texts.masked, texts.files))
