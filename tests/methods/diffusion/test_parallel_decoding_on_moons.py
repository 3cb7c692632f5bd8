"""Parallel decoding beside progressive distillation on two moons, for as many forwards of one MLP."""

import pytest
import torch

import halfstep
from halfstep.data import load
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.methods import Denoising, ParallelDecoding
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.training import TrainingConfig
from halfstep.training.run_folder import RunFolder
from tests.support.runs import job

BATCH, UPDATES = 128, 600
PROGRESSIVE = halfstep.Progressive(start=32, stop=4, updates=(UPDATES,))
FORWARDS = 3 * 5 * BATCH * UPDATES
PARALLEL = ParallelDecoding(start=32, first=8, stop=4, updates=(FORWARDS // (4 * BATCH),))
TRAINING = TrainingConfig(batch_size=BATCH, learning_rate=2e-3, ema=0.98, seed=0)


def cost(out):
    return sum(RunFolder(out).finished(path.name)["forwards"] for path in RunFolder(out).stages)


@pytest.mark.slow  # two minutes: pytest -m slow tests/methods/diffusion/test_parallel_decoding_on_moons.py
def test_at_4_steps_it_is_at_most_half_as_far_again_from_the_end_of_the_flow(tmp_path):
    torch.manual_seed(0)
    fresh = Pipeline(Denoiser(build("mlp", {"width": 64}), Cosine(), V()), (2,))
    training = TrainingConfig(batch_size=256, learning_rate=1e-3, ema=0.999, seed=0)
    teacher = halfstep.train(
        fresh, load("two-moons"), tmp_path / "t", method=Denoising(updates=3_000), training=training,
        job=job(),
    )  # fmt: skip
    end = teacher.sample(4_000, seed=1, steps=256, sampler="heun")
    far = {}
    for name, method in (("progressive", PROGRESSIVE), ("parallel", PARALLEL)):
        student = halfstep.distill(
            teacher, "two-moons", tmp_path / name, method=method, training=TRAINING, job=job()
        )
        samples = student.sample(4_000, seed=1, steps=4)
        far[name] = float((samples - end).square().mean().sqrt())
    assert 0.99 < cost(tmp_path / "parallel") / cost(tmp_path / "progressive") <= 1
    assert far["parallel"] <= 1.5 * far["progressive"], far
