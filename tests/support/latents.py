"""Folders of latents of small images, encoded by a codec of one convolution."""

import hashlib
import json
import re
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from halfstep import storage
from halfstep.batch import Cond
from halfstep.data import Dataset
from halfstep.data.latents.captions import Captions
from halfstep.data.latents.encoding import Layout, write_latents
from halfstep.data.latents.image_stream import ImagesInMemory
from tests.support.denoisers import seeded


class TinyCodec(nn.Module):
    """A codec that fits on a page: one convolution, 2 pixels to a side, 3 channels from RGB."""

    factor, channels = 2, 3

    def __init__(self, scale=0.7, seed=0, slow=0.0):
        super().__init__()
        self.scale, self.slow, self.calls = scale, slow, 0
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 6, 2, stride=2)
        self.drop = nn.Dropout(0.5)  # shows whether the codec is in eval mode

    def moments(self, images):
        self.calls += 1
        time.sleep(self.slow)
        return self.drop(self.conv(images))

    def save(self, folder):
        storage.save(folder / "codec", self.state_dict(), {"scale": self.scale})

    def digest(self):
        weights = torch.cat([p.detach().flatten() for p in self.parameters()])
        return hashlib.sha256(weights.numpy().tobytes()).hexdigest()


class TinyTexts:
    """Texts to states: 5 of width 4, a function of the text alone."""

    def encode(self, texts):
        return torch.stack([torch.randn(5, 4, generator=seeded(len(text))) for text in texts])

    def on(self, device):
        return nullcontext()

    def release(self):
        pass

    def null(self):
        return self.conditions([""])

    def conditions(self, texts):
        return Cond(encoder_hidden_states=self.encode(texts))


def some_images(n=11, labels=True):
    """n images of 4 x 6 in three classes."""
    values = np.random.default_rng(1).integers(0, 256, (n, 3, 4, 6), dtype=np.uint8)
    classes = torch.arange(n) % 3 if labels else None
    names = ("ape", "bee", "cow") if labels else ()
    return ImagesInMemory(Dataset(torch.from_numpy(values), classes, names))


def caption_texts(n=11):
    """One to three captions an image, of different lengths."""
    return [tuple("x" * (1 + k + 20 * j) for j in range(1 + k % 3)) for k in range(n)]


def encoded(out, images=None, codec=None, *, half=False, mirror=True, shard=4, batch=3, **more):
    layout = Layout(half=half, mirror=mirror, shard=shard)
    images = images or some_images()
    return write_latents(images, codec or TinyCodec(), out, layout=layout, batch=batch, **more)


def captions(of=None, digest="words"):
    return Captions(TinyTexts(), of or caption_texts(), digest)


def refused(kind, *words):
    return pytest.raises(kind, match="(?s)" + ".*".join(re.escape(word) for word in words))


def moments_of(images, codec=None):
    """Of images and mirror images, computed at once: [N, 2, 6, h, w]."""
    x = images.data.batch(torch.arange(len(images))).x0
    codec = (codec or TinyCodec()).eval()
    with torch.no_grad():
        return torch.stack(
            [codec.moments(x), codec.moments(torch.stack(x.unbind(-1)[::-1], -1))], 1
        )


def about(out):
    return json.loads((out / "latents.json").read_text())


def encode_slowly(out):
    """For a process that is to be killed."""
    torch.set_num_threads(1)
    encoded(Path(out), codec=TinyCodec(slow=0.03), captions=captions())


def photos(folder, n=7, side=6):
    """n colour images in two classes."""
    rng = np.random.default_rng(2)
    for k in range(n):
        place = folder / ("cats" if k < 3 else "dogs") / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side + k, 3), dtype=np.uint8)).save(place)
    return folder
