"""Models of latents and of texts: data, a pipeline, and a folder for commands."""

import numpy as np
import torch
from PIL import Image

from halfstep.batch import Cond
from halfstep.data.latents.contexts import Contexts
from halfstep.data.latents.dataset import Latents, Shards
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.models import build
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import defaults_of

CODEC = dict(
    in_channels=1, out_channels=1, latent_channels=2, block_out_channels=[4, 8], norm_num_groups=2,
    layers_per_block=1, down_block_types=["DownEncoderBlock2D"] * 2,
    up_block_types=["UpDecoderBlock2D"] * 2,
)  # fmt: skip
NET = dict(img_size=4, patch_size=2, in_chans=2, embed_dim=16, depth=2, num_heads=2)
TOKENS, WIDTH, N = 3, 5, 40


def pixels():
    """Features of images that anyone can follow: the means of four quarters."""
    return lambda x: torch.nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), 2).flatten(1)


def latents(*, texts=False, num_classes=2):
    """N latents in the order of their classes, in three shards."""
    generator = torch.Generator().manual_seed(0)
    moments = torch.randn(2 * N, 4, 4, 4, generator=generator)
    shards = Shards((moments[:20], moments[20:50], moments[50:]))
    contexts = None
    if texts:
        states = torch.randn(N, TOKENS, WIDTH, generator=generator)
        null = torch.linspace(-1, 1, TOKENS * WIDTH).reshape(1, TOKENS, WIDTH)
        captions, empty = (Cond(encoder_hidden_states=each) for each in (states, null))
        contexts = Contexts.of(captions, torch.arange(N + 1), empty)
    labels = torch.arange(N) * num_classes // N
    return Latents(shards, 2, 0.5, labels, tuple("abc"[:num_classes]), contexts)


def pipeline(data, *, texts=False):
    torch.manual_seed(0)
    net = NET | (dict(clip_dim=WIDTH, num_clip_token=TOKENS) if texts else dict(num_classes=3))
    denoiser = Denoiser(build("uvit", net), Cosine(), V()).freeze()
    codec = KLCodec.fresh(CODEC, scale=0.5).eval().requires_grad_(False)
    about = defaults_of(data.null_context) if texts else {"class_names": ("a", "b"), "null": 2}
    return Pipeline(denoiser, (2, 4, 4), codec=codec, steps=2, **about)


# -- from the command line -------------------------------------------------------------------------


def among_photos(cli, tmp_path, monkeypatch):
    """Types a command in a folder with images, captions, a codec: what it printed; it must succeed."""
    monkeypatch.setenv("HALFSTEP_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for k in range(12):
        place = tmp_path / "photos" / "ab"[k // 6] / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(place)
        place.with_suffix(".txt").write_text(["a cat", "a zebra"][k % 2])
    torch.manual_seed(0)
    KLCodec.fresh(CODEC, scale=0.5).save(tmp_path / "codec")

    def run(*words):
        status, out, err = cli(*words)
        assert status == 0, err
        return out

    return run
