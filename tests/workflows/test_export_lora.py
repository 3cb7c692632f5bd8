"""`export(format="lora")`: diffusers draws with the LoRA what the student draws, or the folder is removed."""

import json
import re
import warnings
from dataclasses import replace

import diffusers
import pytest
import torch
from peft import inject_adapter_in_model, LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file

from halfstep import export, Pipeline
from halfstep.errors import CheckpointError, ConfigError
from halfstep.models.lora import adaptable
from halfstep.pipeline.base import Origin
from halfstep.pipeline.lora_file import is_lora, METADATA
from halfstep.pipeline.to_comfyui import models
from halfstep.pipeline.to_diffusers.target import target_of
from halfstep.workflows import export_lora
from halfstep.workflows.export_lora import BASE, KOHYA, WEIGHTS, WORKFLOW
from halfstep.workflows.exported import ExportConfig
from halfstep.workflows.lora_card import lora_loading, lora_metadata
from tests.support import families
from tests.support.comfyui import nodes_of, scaled, TINY
from tests.support.diffusers_students import (
    draw_in_this_process,
    lora_stage,
    lora_stage_of,
    student,
)
from tests.support.hub_client import Hub
from tests.support.pipelines import pipeline
from tests.support.refusals import refused


@pytest.fixture
def here(monkeypatch):
    draw_in_this_process(monkeypatch)


def metadata(file):
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()


def card(folder):
    return (folder / "out" / "README.md").read_text()


def test_stable_diffusion_in_both_names(here, tmp_path):
    """A LoRA run's default format; the layers, their shapes and their ranks are peft's."""
    stage = lora_stage("stable-diffusion", tmp_path, rank=12)
    result = export(stage, tmp_path / "out")
    assert 0 < result.difference < 1e-5 and result.compared == 4
    files = {str(path.relative_to(tmp_path / "out")) for path in result.files}
    assert files == {"README.md", WEIGHTS, KOHYA, "scheduler/scheduler_config.json"}
    theirs, kohya = load_file(tmp_path / "out" / WEIGHTS), load_file(tmp_path / "out" / KOHYA)
    unet = families.stable_diffusion().unet
    paths = adaptable(unet, frozenset())
    options = json.loads(metadata(tmp_path / "out" / WEIGHTS)[METADATA])
    options = {name.removeprefix("unet."): value for name, value in options.items()}
    inject_adapter_in_model(LoraConfig(**options), unet)
    for path in paths:
        layer, name = unet.get_submodule(path), f"lora_unet_{path.replace('.', '_')}"
        a, b = layer.lora_A.default.weight, layer.lora_B.default.weight
        assert theirs[f"unet.{path}.lora_A.weight"].shape == a.shape
        assert theirs[f"unet.{path}.lora_B.weight"].shape == b.shape
        assert torch.equal(kohya[f"{name}.lora_down.weight"], theirs[f"unet.{path}.lora_A.weight"])
        assert torch.equal(kohya[f"{name}.lora_up.weight"], theirs[f"unet.{path}.lora_B.weight"])
        assert kohya[f"{name}.alpha"] == len(a) and layer.scaling["default"] == 1
    assert (len(theirs), len(kohya)) == (2 * len(paths), 3 * len(paths))
    assert options["r"] == options["lora_alpha"] == 12
    assert 8 in options["rank_pattern"].values()  # a layer 8 wide has its full rank
    about = metadata(tmp_path / "out" / KOHYA)
    assert (about["ss_network_dim"], about["ss_network_alpha"]) == ("12", "12.0")


@pytest.mark.slow
def test_a_fresh_process_draws_with_it(tmp_path):
    stage = lora_stage("stable-diffusion", tmp_path)
    assert export(stage, tmp_path / "out", format="lora").difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["stable-diffusion-2", "sdxl", "sd3", "flux", "sana", "qwen-image"]
)
def test_each_family_that_loads_loras(here, name, tmp_path):
    """SDXL's added conditions have original names in kohya's file; transformers have one file."""
    stage = lora_stage(name, tmp_path)
    result = export(stage, tmp_path / "out")
    assert 0 < result.difference < 1e-4
    unet = name in ("stable-diffusion-2", "sdxl")
    assert (tmp_path / "out" / KOHYA).exists() == unet
    prefix = "unet." if unet else "transformer."
    assert all(key.startswith(prefix) for key in load_file(tmp_path / "out" / WEIGHTS))
    if name == "sdxl":
        assert "lora_unet_label_emb_0_0.alpha" in load_file(tmp_path / "out" / KOHYA)
    if name == "flux":
        assert "FlowMatchEulerDiscreteScheduler.from_pretrained" in card(tmp_path)


def test_other_types_are_written_after_the_proof(here, tmp_path):
    stage = lora_stage("stable-diffusion", tmp_path)
    result = export(stage, tmp_path / "out", dtype="bfloat16")
    assert 1e-4 < result.difference < 0.1
    for name in (WEIGHTS, KOHYA):
        dtypes = {value.dtype for value in load_file(tmp_path / "out" / name).values()}
        assert dtypes == {torch.bfloat16}
    assert "bfloat16, rounded after the check" in card(tmp_path)


def test_the_snippet_of_the_card_runs(here, tmp_path, monkeypatch):
    stage = lora_stage("stable-diffusion", tmp_path)
    export(stage, tmp_path / "out", license="mit")
    text = card(tmp_path)
    assert "license: mit\n" in text and str(tmp_path) not in text
    assert "halfstep export 0004-steps --format lora --out out --license mit" in text
    assert "LoRA of rank 2, alpha the same" in text and "base_model" not in text
    [code] = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path / "out")
    (tmp_path / "out" / "teacher").symlink_to(tmp_path / "teacher")
    scope = {}
    with warnings.catch_warnings(action="ignore"):  # diffusers'
        exec(code, scope)
    assert scope["image"].size == (16, 16)
    assert type(scope["pipeline"].scheduler) is diffusers.DDIMScheduler
    assert scope["pipeline"].scheduler.config.prediction_type == "v_prediction"


def test_comfyui_gets_a_workflow_where_it_takes_the_same_steps(here, tmp_path, monkeypatch):
    """The node says v, which the base's file does not."""
    config = TINY["Stable Diffusion 1"]
    monkeypatch.setattr(models, "MODELS", (replace(models.MODELS[0], config=config),))
    theirs = scaled(families.stable_diffusion(), models.MODELS[0].name)
    theirs.save_pretrained(tmp_path / "teacher")
    teacher = Pipeline.from_diffusers(tmp_path / "teacher")
    export(lora_stage_of(teacher, tmp_path / "run"), tmp_path / "out")
    used = nodes_of(json.loads((tmp_path / "out" / WORKFLOW).read_text()))
    assert used["CheckpointLoaderSimple"]["ckpt_name"] == BASE
    assert used["LoraLoaderModelOnly"]["lora_name"] == KOHYA
    assert used["ModelSamplingDiscrete"]["sampling"] == "v_prediction"
    assert used["KSampler"]["steps"] == 4
    assert f"copy {KOHYA} into models/loras" in card(tmp_path)
    export(lora_stage_of(teacher, tmp_path / "three", steps=3), tmp_path / "other")
    assert not (tmp_path / "other" / WORKFLOW).exists()
    assert "no workflow, since" in (tmp_path / "other" / "README.md").read_text()


@pytest.mark.slow
def test_comfyui_reads_diffusers_names_of_a_flow(here, tmp_path, monkeypatch):
    known = next(model for model in models.MODELS if model.name == "Stable Diffusion 3")
    monkeypatch.setattr(models, "MODELS", (replace(known, config=TINY[known.name]),))
    scaled(families.sd3(), known.name).save_pretrained(tmp_path / "teacher")
    stage = lora_stage_of(Pipeline.from_diffusers(tmp_path / "teacher"), tmp_path / "run")
    export(stage, tmp_path / "out")
    used = nodes_of(json.loads((tmp_path / "out" / WORKFLOW).read_text()))
    assert used["LoraLoaderModelOnly"]["lora_name"] == WEIGHTS
    assert used["ModelSamplingSD3"]["shift"] == 3.0


@pytest.mark.parametrize("names", ["diffusers", "kohya"])
def test_either_file_that_draws_otherwise_removes_the_folder(here, names, tmp_path, monkeypatch):
    whole = getattr(export_lora, f"{names}_tensors")

    def doubled(lora):
        ends = ("conv_in.lora_B.weight", "conv_in.lora_up.weight")
        return {k: 2 * v if k.endswith(ends) else v for k, v in whole(lora).items()}

    monkeypatch.setattr(export_lora, f"{names}_tensors", doubled)
    stage = lora_stage("stable-diffusion", tmp_path)
    with refused(CheckpointError, "other samples", "removed", "--merge"):
        export(stage, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_merged_it_is_the_whole_network(here, tmp_path):
    """As diffusers by default, or as another format; the samples are those of the adapter."""
    stage = lora_stage("stable-diffusion", tmp_path)
    assert export(stage, tmp_path / "whole", merge=True).difference < 1e-5
    assert (tmp_path / "whole" / "model_index.json").is_file()
    export(stage, tmp_path / "own", merge=True, format="pipeline")
    assert not is_lora(tmp_path / "own")
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    whole = Pipeline.load(tmp_path / "own").sample(2, noise=noise, latents=True)
    adapted = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "teacher")
    assert export(stage, tmp_path / "lora").difference < 1e-5
    adapted.load_lora_weights(tmp_path / "lora", weight_name=KOHYA)
    adapted.scheduler = diffusers.DDIMScheduler.from_pretrained(
        tmp_path / "lora", subfolder="scheduler"
    )
    options = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "latent"}
    drawn = adapted(["", ""], latents=noise, height=16, width=16, **options).images
    assert (whole - drawn).abs().max() < 1e-5 * whole.abs().max()


@pytest.mark.parametrize("name", ["ddim", "dit"])
def test_a_pipeline_that_loads_no_loras_is_written_whole(here, name, tmp_path):
    stage = lora_stage(name, tmp_path)
    with refused(ConfigError, "Pipeline has no load_lora_weights", "--merge"):
        export(stage, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export(stage, tmp_path / "out", merge=True).difference < 1e-4


def test_a_network_that_is_not_of_diffusers_is_written_whole(tmp_path):
    stage = lora_stage_of(pipeline("uvit"), tmp_path / "run")
    with refused(ConfigError, "this network is none", "--merge"):
        export(stage, tmp_path / "out")
    assert export(stage, tmp_path / "out", merge=True).difference == 0
    assert not is_lora(tmp_path / "out")


def test_a_run_without_a_lora_has_none_to_write_or_to_merge(tmp_path):
    student("ddim", tmp_path / "teacher").save(tmp_path / "student")
    for options, words in [
        ({"format": "lora"}, ("without a LoRA", "format='diffusers'")),
        ({"merge": True}, ("no LoRA to merge", "leave merge out")),
        ({"merge": True, "format": "diffusers"}, ("no LoRA to merge",)),
        ({"merge": True, "format": "lora"}, ("leave one of them out",)),
        ({"push": "me/fast"}, ("push belongs to", "'diffusers' or 'lora'", "this is 'pipeline'")),
    ]:
        with refused(ConfigError, *words):
            export(tmp_path / "student", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_base_that_has_moved(here, tmp_path):
    stage = lora_stage("stable-diffusion", tmp_path)
    (tmp_path / "teacher").rename(tmp_path / "moved")
    with refused(ConfigError, "there is no folder"):
        export(stage, tmp_path / "out")
    moved = str(tmp_path / "moved")
    assert export(stage, tmp_path / "out", source=moved).difference < 1e-5
    assert 'from_pretrained("moved")' in card(tmp_path)
    assert "--out out --source moved\n" in card(tmp_path)
    assert export(stage, tmp_path / "whole", merge=True, source=moved).difference < 1e-5


def test_a_base_in_memory_is_told_as_a_source(here, tmp_path):
    teacher = Pipeline.from_diffusers(families.stable_diffusion())
    stage = lora_stage_of(teacher, tmp_path / "run")
    with refused(ConfigError, "was an object of Python", "--source"):
        export(stage, tmp_path / "out")
    families.stable_diffusion().save_pretrained(tmp_path / "saved")
    source = str(tmp_path / "saved")
    assert export(stage, tmp_path / "out", source=source).difference < 1e-5


def test_it_is_pushed_to_the_hub(here, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "sent", [])
    stage = lora_stage("stable-diffusion", tmp_path)
    assert export(stage, tmp_path / "out", push="me/fast").pushed == "https://hub/me/fast"
    _, (names, uploaded) = Hub.sent
    assert uploaded["repo_id"] == "me/fast" and {WEIGHTS, KOHYA, "README.md"} <= set(names)


def test_the_card_names_a_base_on_the_hub(tmp_path):
    made = student("stable-diffusion", tmp_path / "teacher")
    made = replace(made, origin=Origin("StableDiffusionPipeline", "owner/model"))
    config = ExportConfig(run=tmp_path, out=tmp_path / "out", format="lora")
    target = target_of(made, steps=None, scale=None)
    assert 'from_pretrained("owner/model")' in "\n".join(lora_loading(made, target, config))
    assert lora_metadata(made) == ["base_model_relation: adapter"]
