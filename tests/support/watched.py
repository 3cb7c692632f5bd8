"""A tiny run of images that is watched."""

import torch

from halfstep.data import Dataset
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.methods import Progressive
from halfstep.models import build
from halfstep.pipeline import Pipeline
from tests.support.runs import halve, job

NET = {"img_size": 4, "patch_size": 2, "in_chans": 1, "embed_dim": 8, "depth": 2, "num_heads": 2}
METHOD = Progressive(start=8, stop=2, updates=(7,))


def images():
    """40 images of 4 x 4 pixels."""
    return Dataset(torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1)


def pipeline():
    """A teacher of such images."""
    torch.manual_seed(0)
    return Pipeline(Denoiser(build("uvit", NET), Cosine(), V()), (1, 4, 4))


def pictured(out, *, samples_every=3, callback=None, gate=None, log=(), shard=False, **options):
    """A run from 8 steps to 4 and 2, of 7 and 14 updates, saved every 3 and drawn as often."""
    at = {"callback": callback} if callback else {}
    watched = job(samples_every=samples_every, gate=gate, log=log, shard=shard, **at)
    return halve(out, pipeline=pipeline(), data=images(), job=watched, method=METHOD, **options)
