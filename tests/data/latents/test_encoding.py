"""Encoding of latents: moments of images and mirror images, classes, and errors."""

from dataclasses import replace

import pytest
import torch

from halfstep import storage
from halfstep.data.latents.dataset import open_latents
from halfstep.errors import ConfigError
from halfstep.rng import Draw
from tests.support.denoisers import seeded
from tests.support.latents import encoded, moments_of, refused, some_images, TinyCodec


@pytest.mark.parametrize("shard, batch", [(4, 3), (11, 64), (64, 1), (1, 5)])
def test_moments_of_images_and_mirror_images(tmp_path, shard, batch):
    images, codec = some_images(), TinyCodec()
    assert encoded(tmp_path / "l", images, codec, shard=shard, batch=batch)
    latents, exact = open_latents(tmp_path / "l"), moments_of(images)
    assert latents.moments.shape == (6, 2, 3) and latents.shape == (3, 2, 3)
    torch.testing.assert_close(
        latents.moments.rows(torch.arange(22)).unflatten(0, (11, 2)), exact, rtol=0, atol=1e-6
    )
    assert (len(latents), latents.flip, latents.scale, latents.is_images) == (11, True, 0.7, False)
    assert len(list((tmp_path / "l").glob("shard-*.npy"))) == -(-11 // shard)
    assert codec.calls == 1 + 2 * sum(
        -(-min(shard, 11 - low) // batch) for low in range(0, 11, shard)
    )
    assert (
        latents.folder == tmp_path / "l"
        and storage.verify(latents.folder / "codec")["scale"] == 0.7
    )


def test_half_as_large_and_read_in_full(tmp_path):
    encoded(tmp_path / "whole")
    encoded(tmp_path / "half", half=True)
    whole, half = open_latents(tmp_path / "whole"), open_latents(tmp_path / "half")
    assert half.nbytes * 2 == whole.nbytes == 22 * 36 * 4
    rows = torch.tensor([10, 0, 4, 4])
    latents = half.batch(rows).x0
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, whole.batch(rows).x0, rtol=1e-3, atol=1e-3)
    assert half.training_batch(rows, Draw.all(seeded(), 4)).x0.dtype == torch.float32


def test_without_mirror_images(tmp_path):
    encoded(tmp_path / "l", mirror=False)
    latents, exact = open_latents(tmp_path / "l"), moments_of(some_images())
    assert not latents.flip and len(latents) == 11 and len(latents.moments) == 11
    x0 = latents.training_batch(torch.tensor([7, 2]), Draw.all(seeded(3), 2)).x0
    noise = torch.randn(2, 3, 2, 3, generator=seeded(3))  # no draw goes to mirroring
    mean, logvar = exact[[7, 2], 0].chunk(2, 1)
    torch.testing.assert_close(x0, (mean + (logvar / 2).exp() * noise) * 0.7, rtol=0, atol=1e-6)


def test_classes_are_kept(tmp_path):
    encoded(tmp_path / "l")
    encoded(tmp_path / "bare", some_images(labels=False))
    latents, unlabelled = open_latents(tmp_path / "l"), open_latents(tmp_path / "bare")
    assert latents.labels.tolist() == [k % 3 for k in range(11)]
    assert (latents.names, latents.num_classes) == (("ape", "bee", "cow"), 3)
    assert latents.batch(torch.tensor([5, 0])).cond.label.tolist() == [2, 0]
    assert latents.training_batch(torch.tensor([4]), Draw.all(seeded(), 1)).cond.label.tolist() == [
        1
    ]
    assert (unlabelled.labels, unlabelled.names, unlabelled.num_classes) == (None, (), 0)
    assert unlabelled.batch(torch.tensor([5])).cond is None
    assert replace(latents, labels=None, names=()).batch(torch.tensor([5])).cond is None
    assert replace(latents, names=()).num_classes == 3


def test_numbers_that_cannot_be_stored(tmp_path):
    class Large(TinyCodec):
        def moments(self, images):
            return 1e5 * super().moments(images)

    encoded(tmp_path / "full", codec=Large())
    with refused(ConfigError, "some moments are nan or too large for float16: leave --half out"):
        encoded(tmp_path / "half", codec=Large(), half=True)
    torch.nn.init.constant_((broken := TinyCodec()).conv.weight, torch.nan)
    with refused(ConfigError, "nan"):
        encoded(tmp_path / "nan", codec=broken)


def test_codecs_and_options_that_cannot_be(tmp_path):
    class Wrong(TinyCodec):
        channels = 2

    with refused(ConfigError, "[6, 2, 3]", "[4, 2, 3]"):
        encoded(tmp_path / "l", codec=Wrong())
    Wrong.channels, Wrong.factor = 3, 4
    with refused(ConfigError, "4x6", "--size 4"):
        encoded(tmp_path / "l", codec=Wrong())
    for wrong, words in (({"batch": 0}, "--batch-size 64"), ({"shard": 0}, "shard")):
        with refused(ConfigError, words):
            encoded(tmp_path / "l", **wrong)
    assert not (tmp_path / "l" / "latents.json").exists()
