"""`halfstep export --format comfyui`: diffusers reads the same student, and the workflow is ComfyUI's."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import halfstep
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import CheckpointError, ConfigError
from halfstep.models.autoencoder.kl import codec_of_model
from halfstep.models.with_guidance import with_guidance
from halfstep.pipeline import Pipeline
from halfstep.pipeline.from_diffusers.source import single_file
from halfstep.pipeline.to_comfyui import models
from halfstep.pipeline.to_comfyui.student import comfy_student
from halfstep.pipeline.to_diffusers.target import target_of
from halfstep.workflows import export_comfyui
from halfstep.workflows.export_comfyui import FILE, WORKFLOW
from tests.support import families
from tests.support.comfyui import nodes_of, scaled, stable_diffusion, student, tiny_comfyui

__all__ = ["tiny_comfyui"]
pytestmark = pytest.mark.usefixtures("tiny_comfyui")


def exported(pipeline, folder, **options):
    pipeline.save(folder / "student")
    return halfstep.export(folder / "student", folder / "out", format="comfyui", **options)


def nodes(folder):
    return nodes_of(json.loads((folder / "out" / WORKFLOW).read_text()))


@pytest.mark.parametrize("zero_snr", [False, True])
def test_a_student_of_stable_diffusion(tmp_path, zero_snr):
    stable_diffusion(tmp_path / "sd", rescale_betas_zero_snr=zero_snr)
    result = exported(student(tmp_path / "sd"), tmp_path)
    assert result.difference < 1e-5 and result.compared == 4
    assert [path.name for path in result.files] == ["README.md", FILE, WORKFLOW]
    theirs = single_file(tmp_path / "out" / FILE, tmp_path / "sd")
    original = families.stable_diffusion()
    for part in ("unet", "vae", "text_encoder"):
        expected, read = (getattr(one, part).state_dict() for one in (original, theirs))
        assert expected.keys() == read.keys()
        assert all(torch.equal(expected[name], read[name]) for name in expected)
    used = nodes(tmp_path)
    assert used["CheckpointLoaderSimple"] == {"ckpt_name": FILE}
    assert used["EmptyLatentImage"] == {"width": 16, "height": 16, "batch_size": 1}
    sampling = used["ModelSamplingDiscrete"]
    assert (sampling["sampling"], sampling["zsnr"]) == ("v_prediction", zero_snr)
    sampler = used["KSampler"]
    assert (sampler["steps"], sampler["cfg"], sampler["denoise"]) == (4, 1.0, 1.0)
    assert (sampler["sampler_name"], sampler["scheduler"]) == ("euler", "simple")
    text = (tmp_path / "out" / "README.md").read_text()
    assert (
        "steps 4, cfg 1, sampler euler, scheduler simple" in text and "models/checkpoints" in text
    )


def test_diffusers_own_pipeline_samples_the_file(tmp_path):
    pipeline = student(stable_diffusion(tmp_path / "sd"))
    exported(pipeline, tmp_path)
    theirs = single_file(tmp_path / "out" / FILE, tmp_path / "sd")
    theirs.set_progress_bar_config(disable=True)
    options = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
    theirs.scheduler = type(theirs.scheduler).from_config(theirs.scheduler.config, **options)
    noise = torch.randn(2, *pipeline.shape, generator=torch.Generator().manual_seed(7))
    drawn = families.own_samples("stable-diffusion", theirs, noise, 4)
    ours = pipeline.sample(2, noise=noise, prompts=families.TEXTS, latents=True)
    torch.testing.assert_close(drawn, ours, rtol=1e-4, atol=1e-5)


def test_half_precision(tmp_path):
    result = exported(student(stable_diffusion(tmp_path / "sd")), tmp_path, dtype="float16")
    assert {value.dtype for value in load_file(tmp_path / "out" / FILE).values()} == {torch.float16}
    assert result.difference < 1e-5


def guided(pipeline, low=1.0, high=3.0):
    """The student with an input for its guidance scale that matters."""
    net = with_guidance(pipeline.denoiser.net, width=8)
    torch.manual_seed(3)
    for parameter in net.model.time_embedding.cond_proj.parameters():
        torch.nn.init.normal_(parameter)
    return replace(
        pipeline,
        denoiser=type(pipeline.denoiser)(
            net, pipeline.denoiser.schedule, pipeline.denoiser.parameterisation,
            time=pipeline.denoiser.time,
        ),
        guidance_range=(low, high),
    )  # fmt: skip


def test_one_scale_of_a_student_that_takes_it(tmp_path):
    pipeline = guided(student(stable_diffusion(tmp_path / "sd")))
    with pytest.raises(ConfigError, match="--guidance-scale"):
        exported(pipeline, tmp_path)
    with pytest.raises(ConfigError, match="1 to 3"):
        exported(pipeline, tmp_path, guidance_scale=4.0)
    assert not (tmp_path / "out").exists()
    exported(pipeline, tmp_path, guidance_scale=2.0)
    file = Pipeline.from_diffusers(tmp_path / "out" / FILE, config=tmp_path / "sd")
    once = replace(file, times=pipeline.times, sampler="ddim")
    drawn = once.sample(2, latents=True)
    ours = {scale: pipeline.sample(2, guidance_scale=scale, latents=True) for scale in (1.0, 2.0)}
    torch.testing.assert_close(drawn, ours[2.0], rtol=1e-4, atol=1e-5)
    assert (ours[1.0] - ours[2.0]).abs().max() > 0.01
    assert "guidance scale 2 is in the weights" in (tmp_path / "out" / "README.md").read_text()


def test_a_slider_stands_in_the_middle_as_in_diffusers(tmp_path):
    theirs = scaled(families.flux(guidance_embeds=True), "Flux")
    theirs.save_pretrained(tmp_path / "flux")
    teacher = Pipeline.from_diffusers(tmp_path / "flux", size=16)
    flux = replace(teacher, times=(uniform(4),), sampler="ddim", guidance_range=(1.0, 6.0))
    assert comfy_student(flux).scale == target_of(flux, steps=None, scale=None).scale == 3.5
    assert comfy_student(flux, guidance_scale=6.0).scale == 6


@pytest.mark.slow
@pytest.mark.parametrize("zero_snr", [False, True])
def test_a_student_of_sdxl(tmp_path, zero_snr):
    theirs = scaled(families.sdxl(), "Stable Diffusion XL")
    config = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": zero_snr}
    theirs.scheduler = families.ddim(**config)
    theirs.save_pretrained(tmp_path / "sdxl")
    assert exported(student(tmp_path / "sdxl"), tmp_path).difference < 1e-5
    tensors = load_file(tmp_path / "out" / FILE)
    markers = {name for name, value in tensors.items() if value.numel() == 0}
    assert markers == ({"v_pred", "ztsnr"} if zero_snr else {"v_pred"})
    assert "ModelSamplingDiscrete" not in nodes(tmp_path)
    read = single_file(tmp_path / "out" / FILE, tmp_path / "sdxl")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        expected, found = (getattr(one, part).state_dict() for one in (theirs, read))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
def test_a_student_of_stable_diffusion_3(tmp_path):
    theirs = scaled(families.sd3(), "Stable Diffusion 3")
    theirs.save_pretrained(tmp_path / "sd3")
    assert exported(student(tmp_path / "sd3"), tmp_path).difference < 1e-5
    names = load_file(tmp_path / "out" / FILE)
    assert all(name.startswith("model.diffusion_model.") for name in names)
    used = nodes(tmp_path)
    assert used["ModelSamplingSD3"]["shift"] == 3.0
    assert used["UNETLoader"] == {"unet_name": FILE, "weight_dtype": "default"}
    assert "models/diffusion_models" in (tmp_path / "out" / "README.md").read_text()


def test_a_file_that_reads_back_otherwise_is_removed(tmp_path, monkeypatch):
    pipeline = student(stable_diffusion(tmp_path / "sd"))
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="removed"):
        patch.setattr(export_comfyui, "NEAR", 1e-12)
        exported(pipeline, tmp_path)
    other = families.stable_diffusion()
    with torch.no_grad():
        other.vae.decoder.conv_in.bias[0] += 1
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match=r"decoder\.conv_in"):
        patch.setattr(export_comfyui, "single_file", lambda path, config: other)
        exported(pipeline, tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_text_encoder_of_open_clip(tmp_path, monkeypatch):
    """As in Stable Diffusion 2."""
    known = replace(models.MODELS[0], encoders={"text_encoder": "cond_stage_model.model."})
    monkeypatch.setattr(models, "MODELS", (known,))
    assert exported(student(stable_diffusion(tmp_path / "sd")), tmp_path).difference < 1e-5
    names = load_file(tmp_path / "out" / FILE)
    assert "cond_stage_model.model.transformer.resblocks.2.attn.in_proj_weight" in names


def test_what_comfyui_would_sample_otherwise_is_refused(tmp_path):
    folder = stable_diffusion(tmp_path / "sd")
    four = student(folder)
    for pipeline, words in [
        (student(folder, 3), "999, 666, 333"),
        (replace(four, times=(), sampler="ddim"), "teacher"),
        (replace(four, clip=1.0), "clip"),
        (replace(four, origin=None), "source"),
        (replace(four, codec=None), "AutoencoderKL"),
        (replace(four, codec=codec_of_model(families.vae(scaling_factor=0.2))), "0.18215"),
    ]:
        with pytest.raises(ConfigError, match=words):
            exported(pipeline, tmp_path)
    with pytest.raises(ConfigError, match="guidance_scale"):
        exported(four, tmp_path, guidance_scale=2.0)
    with pytest.raises(ConfigError, match="source"):
        halfstep.export(tmp_path / "student", tmp_path / "out", source="x")
    assert not (tmp_path / "out").exists()
