"""How pipelines set their grids: the lists are those of the installed diffusers."""

import re
from pathlib import Path

import diffusers
import pytest

from halfstep.diffusion.samplers.published_scheduler import uniform_sigmas
from halfstep.errors import ConfigError
from halfstep.quiet import quietly
from halfstep.workflows.pipeline_sigmas import (
    config_changes,
    dynamic_mu,
    OFFSET_OF_1,
    passed_sigmas,
    UNIFORM,
    UNKNOWN,
)

LINSPACE = re.compile(
    r"linspace\(1(\.0)?, 1(\.0)? / num_inference_steps, num_inference_steps"
    r"|linspace\(1(\.0)?, 0(\.0)?, num_inference_steps \+ 1\)\[:(-1|num_inference_steps)\]"
)


def pipelines():
    """(name without Pipeline, source without comments) of diffusers' pipelines."""
    root = Path(diffusers.__file__).parent / "pipelines"
    for file in sorted(root.rglob("*pipeline_*.py")):
        text = file.read_text(encoding="utf-8")
        for name in re.findall(r"^class (\w+)Pipeline\b", text, re.MULTILINE):
            yield name, re.sub(r"#.*", "", text)


def test_the_lists_are_those_of_diffusers():
    passing = {name for name, text in pipelines() if LINSPACE.search(text)}
    others = {name for name, text in pipelines() if "linspace(" in text} - passing
    assert passing - UNKNOWN == UNIFORM
    assert others <= UNKNOWN
    odd = {"HiDreamImage", "HunyuanVideoFramepack", "QwenImageLayered"}
    assert UNKNOWN - others == odd and not UNIFORM & UNKNOWN
    reset = {n for n, text in pipelines() if 'new_config["steps_offset"] = 1' in text}
    assert reset == OFFSET_OF_1


class Scheduler:
    def __init__(self, **config):
        self.config = config


DYNAMIC = Scheduler(
    use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
    max_image_seq_len=4096,
)  # fmt: skip


def test_mu_is_linear_in_the_tokens():
    assert dynamic_mu("FluxPipeline", 4, 4096, DYNAMIC, {}) == pytest.approx(1.15)
    assert dynamic_mu("FluxPipeline", 4, 256, DYNAMIC, {}) == pytest.approx(0.5)
    assert dynamic_mu("FluxPipeline", 4, 2176, DYNAMIC, {}) == pytest.approx(0.825)
    assert dynamic_mu("FluxPipeline", 4, 2176, Scheduler(), {}) is None
    assert dynamic_mu("Krea2Pipeline", 4, 256, DYNAMIC, {"is_distilled": True}) == 1.15
    with pytest.raises(ConfigError, match="both 256"):
        dynamic_mu("", 4, 1, Scheduler(use_dynamic_shifting=True, max_image_seq_len=256), {})


def test_sigmas_that_are_passed():
    assert uniform_sigmas(4) == [1, 0.75, 0.5, 0.25] and uniform_sigmas(1) == [1]
    assert passed_sigmas("FluxPipeline", 2, DYNAMIC, {}) == [1, 0.5]
    assert passed_sigmas("FluxPipeline", 2, Scheduler(use_flow_sigmas=True), {}) is None
    assert passed_sigmas("StableDiffusion3Pipeline", 2, DYNAMIC, {}) is None
    assert passed_sigmas("", 2, DYNAMIC, {}) is None
    index = {"sample_sigmas": [1.0, 0.6]}
    assert passed_sigmas("QwenImage21Pipeline", 4, DYNAMIC, index) == [1.0, 0.6]
    assert passed_sigmas("QwenImagePipeline", 2, DYNAMIC, index) == [1, 0.5]


@pytest.mark.slow
def test_mu_and_config_are_those_of_real_pipelines():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    for tokens in (64, 1000, 4096, 9000):
        mu = dynamic_mu("FluxPipeline", 4, tokens, DYNAMIC, {})
        assert mu == pytest.approx(calculate_shift(tokens))
        empirical = dynamic_mu("Flux2Pipeline", 4, tokens, DYNAMIC, {})
        assert empirical == compute_empirical_mu(tokens, 4)
    parts = dict.fromkeys(
        ("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor")
    )
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=True)
    with quietly():
        pipeline = diffusers.StableDiffusionPipeline(
            **parts, scheduler=scheduler, requires_safety_checker=False
        )
    changes = config_changes("StableDiffusionPipeline", {"steps_offset": 0})
    assert config_changes("StableDiffusionXLPipeline", {"steps_offset": 0}) == {}
    assert changes == {"steps_offset": pipeline.scheduler.config.steps_offset}
