"""A flow map beside progressive distillation on two moons, for as many forwards.

    pytest -m slow tests/methods/diffusion/test_flow_map_moons.py

RMS distance from the end of the teacher's own curve (512 steps of Heun) at 8, 4, 2 and 1 steps, 24,000
forwards a sample of the batch of 128, seed 0: progressive distillation .043 .046 .047 .050, the flow map .047
.050 .060 .065 (.051 .057 .067 .072 at learning rate 1e-3, and .036 .041 .057 .067 from 64 fine steps).
"""

from dataclasses import replace

import pytest
import torch

import halfstep
from halfstep import RunFolder
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.methods import Denoising, FlowMap, Progressive
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.training.stages import RunOptions
from tests.support.denoisers import seeded

FORWARDS = 24_000
TRAINING = halfstep.TrainingConfig(
    batch_size=128, learning_rate=1e-3, ema=0.98, warmup=20, save_every=100_000, log_every=100_000
)


@pytest.mark.slow
def test_at_four_steps_it_is_at_most_half_as_far_again_as_progressive_distillation(tmp_path):
    job, noise = RunOptions(device="cpu"), torch.randn(2000, 2, generator=seeded(7))
    torch.manual_seed(0)
    fresh = Pipeline(Denoiser(build("mlp", {"dim": 2, "width": 64}), Cosine(), V()), (2,))
    teacher = halfstep.train(
        fresh, "two-moons", tmp_path / "t", method=Denoising(updates=3000),
        training=replace(TRAINING, learning_rate=2e-3), job=job,
    )  # fmt: skip
    end = teacher.sample(2000, steps=512, sampler="heun", noise=noise)
    halving = Progressive(start=32, updates=(FORWARDS // (5 * 7),))
    halfstep.distill(
        teacher, "two-moons", tmp_path / "pd", method=halving, training=TRAINING, job=job
    )
    bisecting = FlowMap(start=32, updates=(int(FORWARDS / 4.5),))
    flow_map = halfstep.distill(
        teacher, "two-moons", tmp_path / "fm", method=bisecting,
        training=replace(TRAINING, learning_rate=2e-3), job=job,
    )  # fmt: skip

    def distance(samples):
        return float((samples - end).square().sum(1).mean().sqrt())

    halved = distance(RunFolder(tmp_path / "pd").student(4).sample(2000, noise=noise))
    assert distance(flow_map.sample(2000, steps=4, noise=noise)) <= 1.5 * halved
    three, two, four = (distance(flow_map.sample(2000, steps=n, noise=noise)) for n in (3, 2, 4))
    assert four < two and three < 1.1 * two  # mixed steps are no worse
    for n in (1, 2, 4):
        assert distance(flow_map.sample(2000, steps=n, noise=noise)) < 0.5 * distance(
            teacher.sample(2000, steps=n, noise=noise)
        )
