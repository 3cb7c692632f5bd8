"""Tiny students to export, with the inputs of their programs and their own samples."""

import torch

from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.pipeline.torch_export import conditions_of
from halfstep.rng import sample_noise
from tests.support.networks import TINY
from tests.support.pipelines import shaken

MOST = 100
"""Samples of a student's own; the program draws the first of them in other batches."""
SIZES = (1, 3, 64, MOST)
SCALE = 2.0


def exported_student(name, *, reads=None, schedule=None, times=(1.0, 0.5, 0.0), **config):
    """A student of classes and guidance scales, of texts too if its network reads them."""
    torch.manual_seed(0)
    net = shaken(build(name, TINY[name] | {"num_classes": 3, "guidance_embed_dim": 4} | config))
    shape = (2,) if name == "mlp" else (3, 8, 8)
    empty = torch.randn(7, 12) if name == "unet-condition" else None
    denoiser = Denoiser(net, schedule or Cosine(), reads or V()).freeze()
    return Pipeline(
        denoiser, shape, times=(times,), class_names=("a", "b", "c"), clip=1.0,
        guidance_range=(1.0, 3.0), empty=empty,
    )  # fmt: skip


def inputs(pipeline, n):
    """The noise of the first n samples, and their conditions in the program's order."""
    values = {"label": torch.arange(n) % 3, "guidance_scale": torch.full((n,), SCALE)}
    if pipeline.empty is not None:
        values["encoder_hidden_states"] = pipeline.empty.float().expand(n, *pipeline.empty.shape)
    return sample_noise(0, range(n), pipeline.shape), [values[c] for c in conditions_of(pipeline)]


def samples_of(pipeline):
    """The pipeline's own, MOST at once."""
    labels = (torch.arange(MOST) % 3).tolist()
    return pipeline.sample(MOST, labels=labels, guidance_scale=SCALE, latents=True)


def largest_difference(pipeline, draw, sizes=SIZES):
    """Between the pipeline's own samples and those that draw(noise, conditions) gives in these batches."""
    own = samples_of(pipeline)
    return max(float((draw(*inputs(pipeline, n)) - own[:n]).abs().max()) for n in sizes)
