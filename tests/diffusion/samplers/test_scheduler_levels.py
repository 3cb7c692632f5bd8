"""The levels that diffusers' schedulers visit, against the schedulers' own objects."""

from math import inf

import diffusers
import pytest
import torch

from halfstep.diffusion.samplers.scheduler_levels import kind_of, level, READABLE, scheduler_levels
from halfstep.errors import ConfigError
from halfstep.quiet import quietly
from tests.support.scheduler_folders import SD

TRAILING = {"timestep_spacing": "trailing"}


def built(name, steps=4, **config):
    with quietly():
        scheduler = getattr(diffusers, name)(**config)
        scheduler.set_timesteps(steps)
    return scheduler


def table_sigma(scheduler, n):
    alpha2 = scheduler.alphas_cumprod[n].double()
    return ((1 - alpha2) / alpha2).sqrt().tolist()


WITH_SIGMAS = [
    ("EulerDiscreteScheduler", {**SD, "timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerDiscreteScheduler", {**SD, **TRAILING, "use_karras_sigmas": True}),
    ("EulerAncestralDiscreteScheduler", {**SD, **TRAILING}),
    ("DPMSolverMultistepScheduler", {**SD, "algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    ("UniPCMultistepScheduler", {**SD, **TRAILING}),
    ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    ("LMSDiscreteScheduler", SD),
    ("HeunDiscreteScheduler", SD),
    ("EDMEulerScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchHeunDiscreteScheduler", {}),
    ("FlowMapEulerDiscreteScheduler", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config"), WITH_SIGMAS)
def test_sigmas_are_the_scheduler_s_own(name, config):
    scheduler = built(name, **config)
    levels = scheduler_levels(scheduler)
    assert list(levels.timesteps) == scheduler.timesteps.tolist()
    assert list(levels.sigmas) == scheduler.sigmas.tolist()
    assert levels.reached == levels.sigmas[1:]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("steps", [1, 4, 16])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddim_steps_by_whole_parts_of_the_table(spacing, steps, exact):
    """To the level of timestep - T // N, wherever the next call is."""
    scheduler = built(
        "DDIMScheduler", steps, **SD, timestep_spacing=spacing, set_alpha_to_one=exact
    )
    levels = scheduler_levels(scheduler)
    n = scheduler.timesteps
    assert list(levels.timesteps) == n.tolist()
    assert levels.sigmas[:-1] == pytest.approx(table_sigma(scheduler, n), abs=1e-6)
    ends = n - 1000 // steps
    expected = table_sigma(scheduler, ends.clamp(min=0))
    final = 0.0 if exact else table_sigma(scheduler, 0)
    expected = [final if end < 0 else sigma for end, sigma in zip(ends, expected, strict=True)]
    assert levels.reached == pytest.approx(expected, rel=1e-4, abs=1e-3)
    assert levels.sigmas[-1] == levels.reached[-1]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDPMScheduler", {"variance_type": "learned_range", **TRAILING}),
        ("DDPMScheduler", {"clip_sample_range": 0.1, "prediction_type": "v_prediction"}),
        ("DDIMScheduler", {"thresholding": True, "prediction_type": "epsilon"}),
        ("LCMScheduler", SD),
        ("CogVideoXDDIMScheduler", {}),
    ],
)
def test_steps_lead_to_the_next_call_and_then_to_data(name, config):
    levels = scheduler_levels(built(name, **config))
    assert levels.reached == pytest.approx((*levels.sigmas[1:-1], 0.0), rel=1e-4, abs=1e-3)


def test_pndm_takes_its_second_step_twice():
    scheduler = built("PNDMScheduler", **SD, skip_prk_steps=True, steps_offset=1)
    levels = scheduler_levels(scheduler)
    assert levels.timesteps == (751, 501, 501, 251, 1)
    expected = [*table_sigma(scheduler, [501, 501, 251, 1]), table_sigma(scheduler, 0)]
    assert levels.reached == pytest.approx(expected, rel=1e-4)


def test_kdpm2_calls_between_its_levels():
    scheduler = built("KDPM2DiscreteScheduler", **SD)
    levels = scheduler_levels(scheduler)
    assert len(levels.timesteps) == 7 and levels.sigmas[-1] == 0
    assert levels.sigmas[0:7:2] == tuple(scheduler.sigmas[[0, 2, 4, 6]].tolist())
    table = torch.tensor(table_sigma(scheduler, torch.arange(1000))).log()
    for n, sigma in zip(levels.timesteps, levels.sigmas, strict=False):
        near = torch.lerp(table[int(n)], table[min(int(n) + 1, 999)], n - int(n))
        assert sigma == pytest.approx(float(near.exp()), rel=0.01)


def test_zero_terminal_snr_is_exact_in_ddim():
    zero = {**SD, **TRAILING, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    levels = scheduler_levels(built("DDIMScheduler", **zero))
    assert levels.sigmas[0] == inf and level("vp", inf) == (0.0, 1.0)
    assert levels.reached[0] == pytest.approx(levels.sigmas[1], rel=1e-4)


def test_measuring_leaves_the_scheduler_as_it_was():
    scheduler = built("DDIMScheduler", **SD)
    scheduler_levels(scheduler)
    assert scheduler.config.prediction_type == "epsilon" and scheduler.config.clip_sample


def test_levels_of_each_kind():
    assert level("flow", 0.25) == (0.75, 0.25)
    assert level("ve", 80.0) == (1.0, 80.0)
    assert level("vp", 0.75) == pytest.approx((0.8, 0.6))
    kinds = [kind_of(built(name, **config)) for name, config in WITH_SIGMAS]
    assert kinds == ["vp"] * 5 + ["flow", "vp", "vp", "ve", "flow", "flow", "flow"]


def test_lists_of_other_lengths_are_refused():
    scheduler = built("EulerDiscreteScheduler", **SD)
    scheduler.sigmas = scheduler.sigmas[:-2]
    with pytest.raises(ConfigError, match="no grid"):
        scheduler_levels(scheduler)


def test_names_are_of_diffusers():
    assert all(hasattr(diffusers, name) for name in READABLE) and len(set(READABLE)) == len(
        READABLE
    )
