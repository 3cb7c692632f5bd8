"""Runs of the guided distillation: a mixture's labelled points, a small teacher, and its training."""

import torch

from halfstep.batch import Batch, Cond
from halfstep.data import Dataset
from halfstep.diffusion.analytic import Mixture
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.methods import GuidedDistillation, Progressive
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.rng import Draw
from halfstep.training import distill, TrainingConfig
from tests.support.denoisers import seeded
from tests.support.runs import job

DATA, NULL = Mixture(), 3
MLP = {"dim": 2, "width": 16, "depth": 1, "num_classes": 4}
TRAINING = TrainingConfig(batch_size=6, learning_rate=3e-3, save_every=3, log_every=4, seed=5)


def fit(student, objective, *, updates, rate, rng):
    """Adam on 256 samples of the mixture at a time."""
    x, label = DATA.labelled(20_000, seeded(11), torch.float32)
    optimiser = torch.optim.Adam(student.parameters(), betas=(0.9, 0.99))
    for k in range(updates):
        optimiser.param_groups[0]["lr"] = rate * min(1, (k + 1) / 20) * (1 - k / updates)
        rows = torch.randint(len(x), (256,), generator=rng)
        loss = objective(student, Batch(x[rows], Cond(label[rows])), Draw.all(rng, 256)).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()


def rms(a, b):
    return (a - b).square().mean().sqrt().item()


def labelled_points(n):
    x, label = DATA.labelled(n, seeded(9), torch.float32)
    return x, Cond(label)


def points(n=60):
    x, label = DATA.labelled(n, seeded(1), torch.float32)
    return Dataset(x.clamp(-1, 1), label, names=("a", "b", "c"))


def teacher_of(name="mlp", config=None, shape=(2,), seed=0):
    torch.manual_seed(seed)
    net = build(name, config or MLP)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    denoiser = Denoiser(net, Cosine(), V())
    return Pipeline(denoiser, shape, class_names=("a", "b", "c"), null=3)


SMALL = GuidedDistillation(
    guidance_range=(1.0, 4.0),
    updates=5,
    guidance_embed_dim=8,
    halving=Progressive(start=8, stop=2, updates=(4,)),
)


def run(out, method=SMALL, teacher=None, data=None, training=TRAINING, **options):
    return distill(
        teacher or teacher_of(),
        data or points(),
        out,
        method=method,
        training=training,
        job=job(**options),
    )
