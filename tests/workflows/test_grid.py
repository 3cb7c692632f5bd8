"""The walks of a folder in each runtime, and where they part."""

import json
from dataclasses import replace
from math import exp

import diffusers
import pytest

from halfstep.errors import CheckpointError, ConfigError
from halfstep.quiet import quietly
from halfstep.workflows.grid import differs, grid, GridConfig
from tests.support.scheduler_folders import scheduler_folder, SD

FLOW = "FlowMatchEulerDiscreteScheduler"
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}


def of(folder, *steps, **options):
    return grid(GridConfig(folder=folder, steps=steps, **options))


def sharing(result, steps=4):
    """The last words of the runtimes of each group."""
    return [[walk.runtime.rsplit(" ", 1)[-1] for walk in g] for g in result.groups(steps)]


BETAS = [0.01 * k for k in range(1, 65)]
CONFIGS = [
    ("PNDMScheduler", {**SD, "skip_prk_steps": True, "steps_offset": 1}),
    ("EulerDiscreteScheduler", {**SD, "timestep_spacing": "leading", "steps_offset": 1}),
    ("DDIMScheduler", {**SD, "clip_sample": False, "set_alpha_to_one": False}),
    ("DDIMScheduler", {**SD, **ZERO_SNR, "timestep_spacing": "trailing"}),
    ("EulerDiscreteScheduler", {**SD, **ZERO_SNR, "timestep_spacing": "trailing"}),
    ("DPMSolverMultistepScheduler", {"trained_betas": BETAS, "num_train_timesteps": 64}),
    ("UniPCMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
    ("HeunDiscreteScheduler", SD),
    ("LCMScheduler", SD),
    ("EDMEulerScheduler", {}),
    (FLOW, {"shift": 3.0}),
    (FLOW, {"shift": 1.0, "shift_terminal": 0.25}),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_a_scheduler_alone_is_set_as_diffusers_sets_it(name, config, tmp_path):
    with quietly():
        scheduler = getattr(diffusers, name)(**config)
        scheduler.set_timesteps(4)
    walk = of(scheduler_folder(tmp_path, name, **config), 4).walks[0]
    assert list(walk.timesteps) == scheduler.timesteps.tolist()
    if hasattr(scheduler, "sigmas"):
        assert list(walk.sigmas) == scheduler.sigmas.tolist()
    assert len(walk.alphas) == len(walk.levels) == len(walk.timesteps) + 1


def test_stable_diffusion_as_shipped(tmp_path):
    config = {**SD, "skip_prk_steps": True, "set_alpha_to_one": False}
    folder = scheduler_folder(tmp_path, "PNDMScheduler", "StableDiffusionPipeline", **config)
    result = of(folder)
    assert (result.pipeline, result.scheduler) == ("StableDiffusionPipeline", "PNDMScheduler")
    assert (result.schedule, result.steps_from) == ("scaled_linear of 1000, leading", "by default")
    own = result.walks[0]
    assert own.timesteps == (751, 501, 501, 251, 1)  # the pipeline adds the offset
    assert "StableDiffusionPipeline sets steps_offset to 1" in own.notes
    for part in ("5 times in 4 steps", "ends at sigma 0.0292", "pure noise for alpha 0.236"):
        assert any(part in note for note in own.notes), part
    exact = ["set_alpha_to_one", "zero", "trailing", "simple"]
    assert sharing(result)[1:] == [exact, ["normal"], ["sgm_uniform"], ["karras"]]
    assert not result.groups(4)[1][0].notes


def test_steps_that_do_not_divide_the_table(tmp_path):
    result = of(
        scheduler_folder(tmp_path, "DDIMScheduler", **SD, timestep_spacing="trailing"), 16, 8
    )
    ddim, dpm = (next(w for w in result.walks if name in w.runtime) for name in ("DDIM", "DPM"))
    assert any("wrong levels: 8 of 16 steps" in note for note in ddim.notes)
    assert differs(ddim, replace(dpm, timesteps=ddim.timesteps)).startswith("step 2 ends at sigma")
    assert not any(
        "wrong" in note for walk in result.walks if walk.steps == 8 for note in walk.notes
    )
    # ComfyUI rounds 812.5 up, where diffusers rounds 811.5 to even
    simple = next(w for w in result.walks if w.runtime.endswith("simple"))
    assert (simple.timesteps[3], dpm.timesteps[3]) == (812, 811)


def test_zero_terminal_snr_is_one_walk_everywhere(tmp_path):
    config = {**SD, **ZERO_SNR, "timestep_spacing": "trailing"}
    result = of(scheduler_folder(tmp_path, "DDIMScheduler", **config))
    assert sharing(result)[0] == ["DDIMScheduler", "set_alpha_to_one", "zero", "trailing", "simple"]
    assert result.prediction_type == "v_prediction" and "zero terminal SNR" in result.schedule
    config["prediction_type"] = "epsilon"
    own = of(scheduler_folder(tmp_path, "DDIMScheduler", **config)).walks[0]
    assert any("epsilon does not determine" in note for note in own.notes)


def test_stable_diffusion_3_wastes_its_last_call(tmp_path):
    result = of(scheduler_folder(tmp_path, FLOW, "StableDiffusion3Pipeline", shift=3.0))
    own = result.walks[0]
    assert own.sigmas == pytest.approx((1, 0.8577, 0.6022, 0.0089, 0), abs=1e-4)
    assert any("changes next to nothing" in note for note in own.notes)
    groups = sharing(result)
    assert groups[0] == [FLOW, "set_timesteps(4)", "normal"]
    assert groups[1] == ["N)", "simple"]
    assert result.groups(4)[1][0].sigmas == pytest.approx((1, 0.9, 0.75, 0.5, 0))
    uniform = result.groups(4)[2][0]
    assert uniform.sigmas == pytest.approx((1, 0.75, 0.5, 0.25, 0))
    assert uniform.levels[1] == pytest.approx((0.25, 0.75))
    words = "call 2 is at timestep 750 (sigma 0.75), not 857.69 (sigma 0.858)"
    assert differs(own, uniform) == words


def test_flux_passes_sigmas_and_mu(tmp_path):
    folder = scheduler_folder(tmp_path, FLOW, "FluxPipeline", use_dynamic_shifting=True)
    result = of(folder, 4, tokens=2176)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=[1, 0.75, 0.5, 0.25], mu=0.825)
    assert list(result.walks[0].sigmas) == scheduler.sigmas.tolist()
    assert sharing(result)[0] == [FLOW, "N)", "simple"]
    assert "mu = 0.825 at 2176 image tokens (--tokens)" in result.walks[0].notes
    assert of(folder, 4).walks[0].sigmas[1] == pytest.approx(exp(1.15) / (exp(1.15) + 1 / 3))
    linear = {"use_dynamic_shifting": True, "time_shift_type": "linear"}
    result = of(scheduler_folder(tmp_path, FLOW, "FluxPipeline", **linear))
    assert sharing(result)[0] == [FLOW, "N)", "simple"]
    one = of(scheduler_folder(tmp_path / "s", FLOW, **linear), 1).walks
    assert len(one) == 8 and {walk.sigmas for walk in one} == {(1, 0)}


def test_other_pipelines(tmp_path):
    folder = scheduler_folder(tmp_path, "PNDMScheduler", "DDIMPipeline", **SD)
    own = of(folder).walks[0]
    assert own.timesteps == (750, 500, 250, 0)
    assert "DDIMPipeline turns the folder's PNDMScheduler into a DDIMScheduler" in own.notes
    folder = scheduler_folder(tmp_path, FLOW, "CogView4Pipeline")
    assert "grid of its own" in of(folder).walks[0].notes[0]
    folder = scheduler_folder(tmp_path, "UniPCMultistepScheduler", "WanPipeline", use_flow_sigmas=True,
                              flow_shift=3.0)  # fmt: skip
    result = of(folder)
    assert result.schedule == "shift 3" and "order 2" in result.walks[0].notes[0]
    assert any("adds fresh noise" in note for note in of(
        scheduler_folder(tmp_path, "EulerAncestralDiscreteScheduler", "StableDiffusionXLPipeline", **SD)
    ).walks[0].notes)  # fmt: skip


def test_the_number_of_steps_is_the_folder_s(tmp_path):
    folder = scheduler_folder(tmp_path, FLOW, "AuraFlowPipeline", shift=1.0, shift_terminal=0.125)
    assert (of(folder).walks[0].steps, of(folder).steps_from[:8]) == (8, "from the")
    (folder / "README.md").write_text("pipe(prompt, num_inference_steps=2)", encoding="utf-8")
    result = of(folder)
    assert ({w.steps for w in result.walks}, result.steps_from) == ({2}, "from README.md")
    assert [w.steps for w in of(folder, 3, 3, 2).walks][::8] == [3, 2]
    with pytest.raises(ConfigError, match="a sigma is no number"):
        of(folder, 1)  # diffusers divides 0 by 0: shift_terminal is for two steps and more
    index = {"sample_sigmas": [1.0, 0.7, 0.3]}
    own = of(scheduler_folder(tmp_path, FLOW, "QwenImage21Pipeline", index)).walks[0]
    assert own.sigmas == pytest.approx((1, 0.7, 0.3, 0))
    assert any("the 3 of model_index.json" in note for note in own.notes)
    plain = scheduler_folder(tmp_path / "plain", FLOW, shift=3.0, shift_terminal=0.125)
    assert of(plain / "scheduler_config.json").steps_from == "by default"


REFUSED = [
    ({"_class_name": "UNet2DModel"}, "no diffusers scheduler"),
    ({"_class_name": "os.system"}, "no diffusers scheduler"),
    ({"_class_name": "UnCLIPScheduler"}, "no diffusers scheduler"),
    ({"_class_name": 3}, "_class_name"),
    ({}, "names no scheduler class"),
    ({"_class_name": "DDIMScheduler", "num_train_timesteps": 10**12}, "num_train_timesteps"),
    ({"_class_name": "DDIMScheduler", "beta_schedule": "odd"}, "cannot build DDIMScheduler"),
    ({"_class_name": "DDIMScheduler", "beta_start": "x"}, "cannot build DDIMScheduler"),
    ({"_class_name": "DDIMScheduler", "timestep_spacing": "odd"}, "has no grid"),
    ({"_class_name": FLOW, "shift": "x"}, "shift"),
    ({"_class_name": FLOW, "_use_default_values": 3}, "_use_default_values"),
    ({"_class_name": "DDIMScheduler", "trained_betas": [0.1, 0.2]}, "2 trained_betas"),
    ({"_class_name": "DPMSolverSinglestepScheduler", "solver_order": 0}, "cannot build|no grid"),
]


@pytest.mark.parametrize(("config", "words"), REFUSED)
def test_what_is_no_scheduler_is_refused(config, words, tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises((ConfigError, CheckpointError), match=words):
        of(tmp_path)


def test_folders_that_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no scheduler"):
        of(tmp_path)
    index = {"scheduler": ["my_code", "DDIMScheduler"]}
    folder = scheduler_folder(tmp_path, "DDIMScheduler", "OwnPipeline", index, **SD)
    with pytest.raises(ConfigError, match="of 'my_code'"):
        of(folder)
    with pytest.raises(ConfigError, match="1001 steps do not fit on 1000"):
        of(folder / "scheduler", 4, 1001)
    folder = scheduler_folder(tmp_path, "EulerAncestralDiscreteScheduler", "FluxPipeline")
    with pytest.raises(ConfigError, match="passes sigmas"):
        of(folder)
    (folder / "model_index.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="damaged"):
        of(folder)
