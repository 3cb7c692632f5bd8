"""Students of parallel decoding with heads of their own, made without training."""

import torch

from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.models import build
from halfstep.models.head_bank import HeadBank
from halfstep.models.with_heads import with_heads
from halfstep.pipeline import Pipeline
from tests.support.denoisers import seeded

FINE = uniform(8)


@torch.no_grad()
def with_own_heads(net, heads=8):
    """The network with a bank whose heads differ."""
    wide = with_heads(net, heads)
    for part in wide.modules():
        if isinstance(part, HeadBank):
            for p in part.parameters():
                p.add_(0.2 * torch.randn(p.shape, generator=seeded(1)).to(p))
    return wide


def parallel(net=None, *, reads=None, schedule=None, shape=(2,), fine=FINE, **options):
    """A student of 4, 2 and 1 steps in blocks of 8 heads."""
    reads = reads or V()
    if net is None:
        torch.manual_seed(0)
        net = build("mlp", {"width": 16, "depth": 1, "out_dim": 2 * reads.outputs})
    student = Denoiser(with_own_heads(net), schedule or Cosine(), reads).freeze()
    grids = fine[::2], fine[::4], fine[::8]
    fields = {"times": grids, "fine_times": fine, "sampler": "parallel-decoding", "steps": 1}
    return Pipeline(student, shape, **{**fields, **options})
