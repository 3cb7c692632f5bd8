"""`export(format="diffusers")`: diffusers draws what the student draws, or the folder is removed."""

import copy
import json
import os
import re
import subprocess
import warnings
from dataclasses import replace

import pytest
import torch
import transformers

from halfstep import build, Denoiser, export, NetTime, Pipeline, with_guidance
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import CheckpointError, ConfigError
from halfstep.evaluation.report_files import save_report
from halfstep.pipeline.base import Origin
from halfstep.pipeline.to_diffusers.folder import find_source, write_folder
from halfstep.pipeline.to_diffusers.target import target_of
from halfstep.workflows import diffusers_proof
from halfstep.workflows.diffusers_card import _command
from halfstep.workflows.exported import ExportConfig
from halfstep.workflows.scheduler_folder import read_scheduler_folder
from tests.support.diffusers_students import draw_in_this_process, student, student_of
from tests.support.evidence import evidence, pictures, typed
from tests.support.families import FAMILIES
from tests.support.hub_client import Hub
from tests.support.refusals import refused
from tests.support.texts import lively

UNET = {
    "in_channels": 1,
    "block_out_channels": [8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 4,
}


@pytest.fixture
def here(monkeypatch):
    draw_in_this_process(monkeypatch)


def pixels(classes=0, steps=4, **options):
    """A student of halfstep's own U-Net, with its default schedule, time and clip."""
    torch.manual_seed(0)
    net = lively(build("unet", UNET | ({"num_classes": classes} if classes else {})))
    denoiser = Denoiser(net, Cosine(), V(), time=NetTime())
    fields = {"times": (uniform(steps),), "clip": 1.0, **options}
    return Pipeline(
        denoiser.freeze(), (1, 8, 8), class_names=tuple(map(str, range(classes))), **fields
    )


def exported(made, folder, **options):
    made.save(folder / "student")
    return export(folder / "student", folder / "out", format="diffusers", **options)


def index(folder):
    return json.loads((folder / "out" / "model_index.json").read_text())


def card(folder):
    return (folder / "out" / "README.md").read_text()


def test_a_unet_of_pixels_is_drawn_by_a_fresh_process(tmp_path):
    """It was trained with halfstep's cosine, times of 1000 t and clip: all of it in configs and the call."""
    result = exported(pixels(), tmp_path)
    assert 0 < result.difference < 1e-4 and result.compared == 4
    assert index(tmp_path)["_class_name"] == "DDIMPipeline"
    assert {str(path.relative_to(tmp_path / "out")) for path in result.files} == {
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    assert "use_clipped_model_output=True" in card(tmp_path)


def test_a_guided_student_of_stable_diffusion_keeps_its_slider(here, tmp_path):
    made = student("stable-diffusion", tmp_path / "teacher", guided=(1.0, 8.0))
    result = exported(made, tmp_path)
    assert result.difference < 1e-4
    config = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    assert config["time_cond_proj_dim"] == 8
    assert "guidance_scale=4.5" in card(tmp_path)
    file = tmp_path / "out" / "text_encoder" / "model.safetensors"
    assert os.stat(file).st_nlink == 2  # a hard link to the teacher's


@pytest.mark.parametrize("classes, name", [(0, "DDIMPipeline"), (3, "ConsistencyModelPipeline")])
def test_classes_of_pixels_have_a_pipeline_that_takes_labels(here, classes, name, tmp_path):
    assert exported(pixels(classes), tmp_path).difference < 1e-4
    assert index(tmp_path)["_class_name"] == name
    assert ("class_labels=[0]" in card(tmp_path)) == bool(classes)


def test_steps_that_do_not_divide_the_table_have_a_pipeline_that_keeps_its_scheduler(
    here, tmp_path
):
    made = student("ddim", tmp_path / "teacher", steps=16, clip=None, clipping="x0-and-eps")
    assert exported(made, tmp_path).difference < 1e-4
    assert index(tmp_path)["_class_name"] == "DDPMPipeline"
    assert index(tmp_path)["scheduler"] == ["diffusers", "DPMSolverMultistepScheduler"]


def test_other_types_are_written_after_the_proof(here, tmp_path):
    result = exported(pixels(), tmp_path, dtype="float16")
    assert 1e-5 < result.difference < 0.01
    size = (tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert size < 3 * sum(p.numel() for p in pixels().denoiser.parameters())
    assert "float16, rounded after the check" in card(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_is_drawn_by_a_fresh_process(name, tmp_path):
    result = exported(student(name, tmp_path / "teacher"), tmp_path)
    assert result.difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "sdxl", "pixart", "sd3", "sana", "qwen-image", "flux"])
def test_each_guided_family(here, name, tmp_path):
    """With a slider where diffusers' pipeline has an input, else at one scale that is folded in."""
    made = student(name, tmp_path / "teacher", guided=(1.0, 8.0))
    options = {} if name == "sdxl" else {"guidance_scale": 3.0}
    assert exported(made, tmp_path, **options).difference < 1e-4


def test_a_wrong_folder_is_removed_and_the_number_is_said(here, tmp_path, monkeypatch):
    whole = diffusers_proof._own
    monkeypatch.setattr(diffusers_proof, "_own", lambda *values: whole(*values) + 1e-3)
    with refused(CheckpointError, "other samples", "largest difference", "removed"):
        exported(pixels(), tmp_path)
    assert not (tmp_path / "out").exists()


def test_what_diffusers_cannot_run_is_removed(here, tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nOSError: no such weights\n")
    monkeypatch.setattr(subprocess, "run", lambda *values, **options: failed)
    with refused(CheckpointError, "cannot sample the written folder", "no such weights"):
        exported(pixels(), tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_snippet_of_the_card_runs_and_its_steps_are_read(here, tmp_path, monkeypatch):
    exported(pixels(), tmp_path, license="mit")
    text = card(tmp_path)
    assert text.startswith(
        "---\nlibrary_name: diffusers\npipeline_tag: unconditional-image-generation\n"
    )
    assert "license: mit\n" in text and "base_model" not in text and str(tmp_path) not in text
    assert "halfstep export student --format diffusers --out out --license mit" in text
    [code] = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path / "out")
    scope = {}
    with warnings.catch_warnings(action="ignore"):  # diffusers'
        exec(code, scope)
    assert scope["image"].size == (8, 8)
    assert read_scheduler_folder(tmp_path / "out").steps == 4


def test_the_card_names_the_teacher_and_the_run_with_its_report(here, tmp_path):
    """The table, the picture, the command of the run; a teacher's name on the hub."""
    report = typed(evidence(), pictures())
    made = replace(pixels(), origin=Origin("DDPMPipeline", "google/ddpm-cat-256"))
    run = tmp_path / "run"
    made.save(run / "stages" / "0004-steps")
    (run / "run.json").write_text("{}")
    save_report(report, run)
    export(run / "stages" / "0004-steps", tmp_path / "out", format="diffusers")
    text = card(tmp_path)
    assert "base_model: google/ddpm-cat-256\n" in text and "DDPMPipeline" in text
    for row in report.rows:
        assert f"| {row.calls} | {row.distances.frechet_distance} |" in text
    assert report.provenance.command in text
    assert (tmp_path / "out" / "samples.png").exists()
    assert "![teacher, 64 steps, 8 steps, 4 steps, 2 steps, 1 step](samples.png)" in text


def test_a_folder_is_pushed_to_the_hub(here, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert exported(pixels(), tmp_path, push="me/fast").pushed == "https://hub/me/fast"
    (name, created), (names, uploaded) = Hub.sent
    assert name == uploaded["repo_id"] == "me/fast" and created["exist_ok"]
    assert {"README.md", "model_index.json", "config.json"} <= set(names)


def test_offline_the_folder_stays(here, tmp_path, monkeypatch):
    def offline(*values, **options):
        raise ConnectionError("offline mode is enabled")

    monkeypatch.setattr(Hub, "create_repo", offline)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    with refused(CheckpointError, "did not take 'me/fast'", "offline mode", "stays", "hf upload"):
        exported(pixels(), tmp_path, push="me/fast")
    assert index(tmp_path)["_class_name"] == "DDIMPipeline"
    with refused(ConfigError, "OWNER/NAME", "got 'fast'"):
        export(tmp_path / "student", tmp_path / "other", format="diffusers", push="fast")
    assert not (tmp_path / "other").exists()


def test_the_parts_of_a_teacher_come_from_where_it_is(here, tmp_path):
    made = student("stable-diffusion", tmp_path / "teacher")
    made.save(tmp_path / "student")
    os.rename(tmp_path / "teacher", tmp_path / "moved")
    options = {"out": tmp_path / "out", "format": "diffusers"}
    with refused(ConfigError, "are not at", "as source (--source)"):
        export(tmp_path / "student", **options)
    other = FAMILIES["ddim"]()
    other.save_pretrained(tmp_path / "ddim")
    with refused(ConfigError, "holds a DDIMPipeline", "was a StableDiffusionPipeline"):
        export(tmp_path / "student", **options, source=str(tmp_path / "ddim"))
    result = export(tmp_path / "student", **options, source=str(tmp_path / "moved"))
    assert result.difference < 1e-4
    assert "--format diffusers --out out --source moved\n" in card(tmp_path)
    assert str(tmp_path) not in card(tmp_path)


@pytest.mark.parametrize("name", ["openai/shap-e", "../models/moved"])
def test_the_command_of_the_card_has_the_network_and_the_source(name, tmp_path):
    config = ExportConfig(
        run=tmp_path / "run",
        out=tmp_path / "out",
        format="diffusers",
        net="nets:small",
        source=name,
    )
    assert _command(config).endswith(f"--out out --net nets:small --source {name}")


def test_the_parts_of_an_object_have_no_place(tmp_path):
    teacher = Pipeline.from_diffusers(FAMILIES["stable-diffusion"]())
    student_of(teacher).save(tmp_path / "student")
    with refused(ConfigError, "was an object of Python", "--source"):
        export(tmp_path / "student", tmp_path / "out", format="diffusers")


def test_pickles_of_a_teacher_are_not_copied(tmp_path):
    made = student("stable-diffusion", tmp_path / "teacher")
    encoder = tmp_path / "teacher" / "text_encoder"
    whole = (encoder / "model.safetensors").read_bytes()
    (encoder / "pytorch_model.bin").write_bytes(b"pickle")
    (encoder / "model.fp16.safetensors").write_bytes(b"half")
    target = target_of(made, steps=None, scale=None)
    write_folder(made, target, tmp_path / "out", source=find_source(made, target, None))
    kept = {path.name for path in (tmp_path / "out" / "text_encoder").iterdir()}
    assert kept == {"config.json", "model.safetensors"}
    assert (tmp_path / "out" / "text_encoder" / "model.safetensors").read_bytes() == whole


def test_half_of_a_teacher_is_copied_where_it_has_no_other(tmp_path):
    made = student("stable-diffusion", tmp_path / "teacher")
    encoder = tmp_path / "teacher" / "text_encoder"
    (encoder / "model.safetensors").rename(encoder / "model.fp16.safetensors")
    target = target_of(made, steps=None, scale=None)
    write_folder(made, target, tmp_path / "out", source=find_source(made, target, None))
    written = tmp_path / "out" / "text_encoder"
    assert {path.name for path in written.iterdir()} == {"config.json", "model.safetensors"}
    assert (written / "config.json").stat().st_nlink == 1  # a copy, which can be edited
    (encoder / "model.fp16.safetensors").unlink()
    (encoder / "config.json").unlink()
    with refused(CheckpointError, "holds nothing to copy"):
        write_folder(made, target, tmp_path / "again", source=find_source(made, target, None))


@pytest.mark.parametrize("whole", ["none", "one file", "shards", "an index alone"])
def test_shards_of_half_precision(whole, tmp_path):
    """Alone they are copied with their index, under the names of no variant; beside others they are not."""
    made = student("stable-diffusion", tmp_path / "teacher")
    encoder = tmp_path / "teacher" / "text_encoder"
    model = transformers.CLIPTextModel.from_pretrained(encoder, local_files_only=True)
    stale = (encoder / "model.safetensors").read_bytes()
    (encoder / "model.safetensors").unlink()
    if whole == "one file":
        (encoder / "model.safetensors").write_bytes(stale)
    elif whole != "none":
        model.save_pretrained(encoder, max_shard_size="4KB")
    if whole == "an index alone":
        for path in encoder.glob("*.safetensors"):
            path.unlink()
    wanted = {path.name for path in encoder.iterdir()}
    half = copy.deepcopy(model).half()
    half.save_pretrained(tmp_path / "half", variant="fp16", max_shard_size="8KB")
    shards = list((tmp_path / "half").glob("*fp16*"))
    assert any("fp16-00001" in path.name for path in shards)
    for path in shards:
        path.rename(encoder / path.name)
    target = target_of(made, steps=None, scale=None)
    write_folder(made, target, tmp_path / "out", source=find_source(made, target, None))
    written = tmp_path / "out" / "text_encoder"
    names = {path.name for path in written.iterdir()}
    alone = whole in ("none", "an index alone")
    if alone:
        wanted = {"config.json", *(path.name.replace(".fp16", "") for path in shards)}
    assert names == wanted
    read = transformers.CLIPTextModel.from_pretrained(
        written, use_safetensors=True, local_files_only=True, dtype=torch.float32
    ).state_dict()
    expected = half.float() if alone else model
    assert all(torch.equal(read[name], value) for name, value in expected.state_dict().items())


REFUSED = {
    "a teacher": ({"times": ()}, {}, "this is a teacher"),
    "another sampler": ({"sampler": "stochastic"}, {}, "is for 'stochastic'"),
    "another direction": ({"direction": "invert"}, {}, "in the direction 'invert'"),
    "a source of its own": ({}, {"source": "elsewhere"}, "has no parts of a teacher"),
    "a scale": ({}, {"guidance_scale": 2.0}, "takes none"),
    "a scale of a slider": ({"guidance_range": (1.0, 4.0)}, {"guidance_scale": 2.0}, "takes any"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_diffusers_does_not_run_is_one_sentence(case, tmp_path):
    fields, options, words = REFUSED[case]
    made = pixels(**fields)
    with refused(ConfigError, words):
        target = target_of(made, steps=None, scale=options.get("guidance_scale"))
        find_source(made, target, options.get("source"))


def test_one_scale_is_asked_for_where_diffusers_has_no_input():
    made = pixels(3, guidance_range=(1.0, 4.0))
    net = lively(with_guidance(made.denoiser.net, width=8))
    guided = replace(made, denoiser=Denoiser(net, Cosine(), V()).freeze())
    for scale in (None, 5.0):
        with refused(ConfigError, "(--guidance-scale) from 1 to 4"):
            target_of(guided, steps=None, scale=scale)
    target = target_of(guided, steps=None, scale=2.0)
    assert (target.scale, target.folded) == (2.0, True)
    one = replace(guided, guidance_range=(3.0, 3.0))
    assert target_of(one, steps=None, scale=None).scale == 3


def test_networks_without_a_class_in_diffusers_are_one_sentence():
    config = {
        "img_size": 8,
        "patch_size": 2,
        "in_chans": 1,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
    }
    made = replace(pixels(), denoiser=Denoiser(build("uvit", config), Cosine(), V()))
    with refused(ConfigError, "no class for a UViTNet", "torch-export"):
        target_of(made, steps=None, scale=None)
