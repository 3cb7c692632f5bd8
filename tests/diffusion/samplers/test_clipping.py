"""Clipping of predicted images: that of diffusers' DDIM with either eps, and what it is in other samplers."""

from dataclasses import replace

import pytest
import torch

from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import Clip, Eps, V, X0
from halfstep.diffusion.samplers import ancestral, sample, sample_with_scheduler
from halfstep.diffusion.schedules import BetaTable, Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.pipeline import from_description, Pipeline
from tests.support.denoisers import named, seeded, Wobbly
from tests.support.students import random_pipeline

LEVELS, KIND = 48, "scaled_linear"
PREDICTS = {Eps(): "epsilon", V(): "v_prediction", X0(): "sample"}
OTHERS = ("heun", "dpmpp-2m", "ancestral", "dpmpp-3s", "diffusers:UniPCMultistepScheduler")


SCHEDULE = BetaTable(KIND, beta_start=0.00085, beta_end=0.3, levels=LEVELS)


def teacher(reads, schedule=SCHEDULE):
    return Denoiser(Wobbly(), schedule, reads, time=NetTime(scale=1.0))


def noise(dtype=torch.float32):
    return 2 * torch.randn(3, 1, 5, generator=seeded(), dtype=dtype)


def of_diffusers(denoiser, x, steps, bound, recompute):
    """The loop of a diffusers pipeline."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        num_train_timesteps=LEVELS, beta_schedule=KIND, beta_start=0.00085, beta_end=0.3,
        timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=True, clip_sample_range=bound,
        prediction_type=PREDICTS[denoiser.parameterisation],
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for n in scheduler.timesteps:
            out = denoiser.net(x, ((n + 1) / LEVELS).expand(len(x)).to(x.dtype))
            x = scheduler.step(out, n, x, use_clipped_model_output=recompute).prev_sample
    return x


@pytest.mark.parametrize("reads", PREDICTS, ids=named)
@pytest.mark.parametrize("bound", [1.0, 0.7])
@pytest.mark.parametrize("kind", ["x0", "x0-and-eps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ddim_clips_as_diffusers_does(reads, bound, kind, dtype):
    denoiser, x = teacher(reads), noise(dtype)
    for steps in (1, 4, 16):
        expected = of_diffusers(denoiser, x, steps, bound, recompute=kind == "x0-and-eps")
        actual = sample(denoiser, x, uniform(steps), clip=Clip(bound, kind))
        assert actual.dtype == dtype
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        if steps > 1:
            other = of_diffusers(denoiser, x, steps, bound, recompute=kind == "x0")
            assert (other - expected).abs().max() > 1e-3


def pipeline(**more):
    return Pipeline(teacher(V(), Cosine()).freeze(), (1, 5), clip=0.4, **more)


def test_a_pipeline_clips_by_its_kind():
    made, x = pipeline(clipping="x0"), noise()
    for steps in (1, 3):
        expected = sample(made.denoiser, x, uniform(steps), clip=Clip(0.4, "x0"))
        assert torch.equal(made.sample(3, steps=steps, noise=x), expected)
    assert not torch.equal(pipeline().sample(3, steps=3, noise=x), expected)
    both = sample(made.denoiser, x, uniform(3), clip=0.4)
    assert torch.equal(pipeline().sample(3, steps=3, noise=x), both)


def test_the_stochastic_sampler_leaves_eps_too():
    grids = {"times": (uniform(4),), "sampler": "stochastic"}
    alone, both = (pipeline(clipping=kind, **grids).sample(3) for kind in ("x0", "x0-and-eps"))
    assert (alone - both).abs().max() > 1e-3


@pytest.mark.parametrize("sampler", OTHERS)
def test_steps_through_x_t_and_the_clipped_image_clip_both(sampler):
    """They need a pair that mixes to x_t."""
    alone, both = (
        pipeline(clipping=kind).sample(3, steps=6, sampler=sampler) for kind in ("x0", "x0-and-eps")
    )
    assert torch.equal(alone, both)


def test_ancestral_steps_do_not_read_eps():
    """So that both kinds are diffusers' DDPM with `clip_sample`."""
    step = ancestral(lambda like, k: torch.ones_like(like))
    alone, both = (
        sample(teacher(V(), Cosine()), noise(), uniform(5), step, clip=Clip(0.4, kind))
        for kind in ("x0", "x0-and-eps")
    )
    assert torch.equal(alone, both)


def test_a_scheduler_of_diffusers_cannot_leave_eps():
    with pytest.raises(ConfigError, match="sampler='ddim'"):
        pipeline(clipping="x0").sample(2, steps=2, sampler="diffusers:DDIMScheduler")
    with pytest.raises(ConfigError, match="'x0'"):
        sample_with_scheduler(
            teacher(V(), Cosine()), noise(), uniform(2), "UniPCMultistepScheduler",
            generators=[seeded()] * 3, clip=Clip(0.4, "x0"),
        )  # fmt: skip


def test_a_kind_of_no_clip_is_refused():
    with pytest.raises(ConfigError, match="clip=1"):
        replace(pipeline(), clip=None, clipping="x0")
    with pytest.raises(ConfigError, match="clipping"):
        pipeline(clipping="eps")
    for bound, kind in ((0.0, "x0"), (1.0, "eps")):
        with pytest.raises(ConfigError):
            Clip(bound, kind)


def test_a_description_has_the_kind_where_it_is_not_the_default():
    assert "clipping" not in random_pipeline(clip=0.4).describe()
    about = random_pipeline(clip=0.4, clipping="x0").describe()
    assert about["clipping"] == "x0"
    assert from_description(about).clip_of("ddim") == Clip(0.4, "x0")
