"""`sample(output="pil")`: the images of the tensor, and refusals of what is no image."""

import numpy as np
import pytest
import torch
from PIL import Image

from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.errors import ConfigError, DataError
from halfstep.hub.bundled import bundled_teacher
from halfstep.models import build
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.pipeline import Pipeline
from halfstep.pipeline.output import as_pil
from tests.support.runs import teacher


def test_the_images_of_the_tensor():
    pipeline = bundled_teacher()
    tensor, images = (pipeline.sample(3, steps=2, output=o) for o in ("tensor", "pil"))
    assert torch.equal(tensor, pipeline.sample(3, steps=2))
    assert isinstance(images, list) and [type(image) for image in images] == [Image.Image] * 3
    assert {(image.mode, image.size) for image in images} == {("L", (8, 8))}
    for image, x in zip(images, tensor, strict=True):
        expected = ((x[0].double() + 1) * 127.5).clamp(0, 255)
        assert np.abs(np.asarray(image) - expected.numpy()).max() <= 0.5 + 1e-4
    assert pipeline.sample(0, steps=2, output="pil") == []


def test_colours_and_sides_stay_in_place():
    x = torch.full((1, 3, 2, 4), -1.0)
    x[0, 0, 0, 3], x[0, 2, 1, 0] = 1.0, 0.0
    [image] = as_pil(x)
    assert (image.mode, image.size) == ("RGB", (4, 2))
    assert image.getpixel((3, 0)) == (255, 0, 0) and image.getpixel((0, 1)) == (0, 0, 128)
    assert image.getpixel((0, 0)) == (0, 0, 0)


def test_latents_are_decoded():
    """By the codec, whose images are gray, of twice the sides."""
    net = build("uvit", {"img_size": [4, 6], "patch_size": 2, "in_chans": 3, "embed_dim": 16, "depth": 2,
                         "num_heads": 2})  # fmt: skip
    config = {"in_channels": 1, "out_channels": 1, "latent_channels": 3, "block_out_channels": [4, 8],
              "norm_num_groups": 2, "layers_per_block": 1, "down_block_types": ["DownEncoderBlock2D"] * 2,
              "up_block_types": ["UpDecoderBlock2D"] * 2}  # fmt: skip
    pipeline = Pipeline(
        Denoiser(net, Cosine(), V()), (3, 4, 6), codec=KLCodec.fresh(config, scale=1.0)
    )
    [image] = pipeline.sample(1, steps=2, output="pil")
    assert (image.mode, image.size) == ("L", (12, 8))
    assert (
        repr(pipeline).splitlines()[2]
        == "  samples  latents [3, 4, 6], images of 8 x 12, no conditions"
    )
    with pytest.raises(ConfigError, match="latents"):
        pipeline.sample(1, steps=2, output="pil", latents=True)


def test_points_are_refused():
    with pytest.raises(ConfigError, match="points of shape"):
        teacher().sample(2, steps=2, output="pil")


def test_other_channels_are_refused():
    net = build("unet", {"sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": [8],
                         "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"],
                         "layers_per_block": 1, "norm_num_groups": 4})  # fmt: skip
    pipeline = Pipeline(Denoiser(net, Cosine(), V()), (4, 8, 8))
    with pytest.raises(ConfigError, match="this pipeline draws samples"):
        pipeline.sample(1, steps=1, output="pil")
    with pytest.raises(ConfigError, match="1 or 3, H, W"):
        as_pil(torch.zeros(1, 4, 2, 2))


def test_an_unknown_output_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="perhaps you meant 'pil'"):
        bundled_teacher().sample(1, output="pill")


def test_a_sampler_that_diverged():
    with pytest.raises(DataError, match="nan"):
        as_pil(torch.full((1, 1, 2, 2), torch.nan))
