"""ComfyUI's steps, written out here, take a student's own way."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import Eps, V, Velocity, X0, X0AndEps
from halfstep.diffusion.samplers import ddim, sample
from halfstep.diffusion.samplers.comfyui import discrete_table, FlowTable, simple
from halfstep.diffusion.schedules import BetaTable, Cosine, RectifiedFlow
from halfstep.diffusion.time_grids import trailing, uniform
from halfstep.errors import ConfigError
from halfstep.pipeline import Pipeline
from halfstep.pipeline.to_comfyui.models import MODELS
from halfstep.pipeline.to_comfyui.sampling import comfy_sampling, STABLE_DIFFUSION

SD, SD3, FLUX = MODELS[0], MODELS[3], MODELS[5]
NOISE = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(torch.nn.Module):
    """A network of no structure that sees its time."""

    def forward(self, x, t, cond=None):
        return torch.sin(2 * x + t[:, None] / 300) * 0.5 + 0.1 * x


def pipeline(parameterisation, schedule, model, times):
    denoiser = Denoiser(Net(), schedule, parameterisation, time=model.time)
    return Pipeline(denoiser, (4,), times=(times,), sampler="ddim")


def comfyui(sampling, model, table):
    """euler on simple: x is x0 + sigma eps on a table, and the network reads it divided by its deviation."""
    net, sigmas = Net(), simple(table, sampling.steps)
    x = NOISE * (sigmas[0] ** 2 + 1).sqrt() if sampling.sampling else NOISE.clone()
    for sigma, after in pairwise(sigmas):
        scale = (sigma**2 + 1).sqrt() if sampling.sampling else 1.0
        place = table.place_of(sigma[None]) * (1 if sampling.sampling else model.time.scale / 1000)
        out = net(x / scale, place.expand(len(x)))
        x0 = {
            "v_prediction": x / scale**2 - out * sigma / scale,
            "eps": x - out * sigma,
            "x0": out,
            "": x - out * sigma,
        }[sampling.sampling]
        x = x + (x - x0) / sigma * (after - sigma)
    return x


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("parameterisation", "zero_snr"),
    [(V(), False), (X0(), False), (Eps(), False), (V(), True), (X0(), True)],
)
def test_a_table(parameterisation, zero_snr, steps):
    schedule = replace(STABLE_DIFFUSION, zero_snr=zero_snr)
    student = pipeline(parameterisation, schedule, SD, times := trailing(steps))
    sampling = comfy_sampling(student, SD, times)
    assert (sampling.steps, sampling.zero_snr) == (steps, zero_snr)
    levels = schedule.at((torch.arange(1000, dtype=torch.float64) + 1) / 1000)
    theirs = comfyui(sampling, SD, discrete_table(levels.alpha**2))
    ours = sample(student.denoiser, NOISE, times, ddim)
    # ComfyUI's alpha is 2e-4 where zero SNR has none.
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-3 if zero_snr else 1e-6)
    drawn = replace(student, times=(), sampler="scheduler", scheduler=sampling.scheduler()).sample(
        3, noise=NOISE.float(), steps=steps
    )
    torch.testing.assert_close(drawn, ours.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [SD3, FLUX])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow(model, shift):
    student = pipeline(Velocity(), RectifiedFlow(shift), model, times := uniform(4))
    sampling = comfy_sampling(student, model, times)
    assert (sampling.sampling, sampling.shift) == ("", shift)
    theirs = comfyui(sampling, model, FlowTable(shift, model.levels))
    torch.testing.assert_close(theirs, sample(student.denoiser, NOISE, times, ddim))
    drawn = replace(student, times=(), sampler="scheduler", scheduler=sampling.scheduler()).sample(
        3, noise=NOISE.float(), steps=4
    )
    torch.testing.assert_close(drawn, theirs.float(), rtol=1e-4, atol=1e-5)


def test_flux_has_a_finer_table():
    student = pipeline(Velocity(), RectifiedFlow(3.0), FLUX, times := uniform(16))
    assert comfy_sampling(student, FLUX, times).steps == 16


@pytest.mark.parametrize(
    ("parameterisation", "schedule", "model", "times", "words"),
    [
        (V(), STABLE_DIFFUSION, SD, trailing(16), r"999, 937, 874, 812, .* 999, 937, 874, 811"),
        (V(), STABLE_DIFFUSION, SD, (1.0, 0.5, 0.001), "simple"),
        (V(), Cosine(), SD, uniform(4), "table of betas"),
        (V(), BetaTable("linear"), SD, trailing(4), "table of betas"),
        (X0AndEps(), STABLE_DIFFUSION, SD, trailing(4), "X0AndEps"),
        (V(), RectifiedFlow(3.0), SD3, uniform(4), "a velocity, and this student predicts V: "),
        (X0(), RectifiedFlow(), FLUX, uniform(4), "a velocity, and this student predicts X0: "),
        (Velocity(), RectifiedFlow(), SD3, uniform(16), "0.938"),
        (Velocity(), RectifiedFlow(), SD3, (1.0, 0.6, 0.0), "sigmas"),
        (Velocity(), RectifiedFlow(), FLUX, uniform(32), "sigmas"),
    ],
)
def test_other_steps_are_refused(parameterisation, schedule, model, times, words):
    with pytest.raises(ConfigError, match=words):
        comfy_sampling(pipeline(parameterisation, schedule, model, times), model, times)


def test_another_time_sampler_or_clip_is_refused():
    student = pipeline(V(), STABLE_DIFFUSION, SD, times := trailing(4))
    other = Denoiser(Net(), STABLE_DIFFUSION, V(), time=NetTime("t", 1000.0))
    for changed, words in [
        (replace(student, denoiser=other), "the time 1000 t"),
        (replace(student, sampler="stochastic"), "stochastic"),
        (replace(student, clip=1.0), "clips nothing"),
    ]:
        with pytest.raises(ConfigError, match=words):
            comfy_sampling(changed, SD, times)
    assert comfy_sampling(student, SD, times).steps == 4
