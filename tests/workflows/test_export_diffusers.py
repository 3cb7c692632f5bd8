"""`export(format="diffusers")`: diffusers draws what the student draws, or the folder is removed."""

import json
import os

import pytest
import torch

from halfstep import build, Denoiser, export, NetTime, Pipeline
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import CheckpointError
from halfstep.workflows import diffusers_proof
from tests.support.diffusers_students import draw_in_this_process, student
from tests.support.families import FAMILIES
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
    import subprocess

    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nOSError: no such weights\n")
    monkeypatch.setattr(subprocess, "run", lambda *values, **options: failed)
    with refused(CheckpointError, "cannot sample the written folder", "no such weights"):
        exported(pixels(), tmp_path)
    assert not (tmp_path / "out").exists()
