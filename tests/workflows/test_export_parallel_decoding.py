"""Export of students of parallel decoding: fused last layers in every format that can hold them."""

import json

import numpy as np
import pytest
import torch

from halfstep import export, Pipeline
from halfstep.errors import ConfigError
from halfstep.models import build
from halfstep.pipeline.fused import fused
from halfstep.storage import read_state_dict
from tests.support.diffusers_students import draw_in_this_process
from tests.support.parallel import parallel
from tests.support.texts import lively
from tests.workflows.test_export_diffusers import UNET


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    student = parallel(lively(build("unet", UNET)), shape=(1, 8, 8), clip=1.0)
    student.save(tmp_path / "student")
    return student


def test_one_step_for_diffusers_is_the_teachers_class_alone(saved, tmp_path, monkeypatch):
    draw_in_this_process(monkeypatch)
    result = export(tmp_path / "student", tmp_path / "out", format="diffusers", steps=1)
    assert result.difference < 1e-4 and not (tmp_path / "out" / "heads.safetensors").exists()
    assert "heads" not in (tmp_path / "out" / "README.md").read_text()
    weights = read_state_dict(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert weights["conv_out.weight"].shape == (1, 8, 3, 3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_four_steps_for_diffusers_have_four_last_layers(saved, tmp_path, monkeypatch, dtype):
    draw_in_this_process(monkeypatch)
    export(tmp_path / "student", tmp_path / "out", format="diffusers", steps=4, dtype=dtype)
    heads = read_state_dict(tmp_path / "out" / "heads.safetensors")
    assert {name: tuple(v.shape) for name, v in heads.items()} == {
        f"{k}.{name}": shape
        for k in range(4)
        for name, shape in (("weight", (1, 8, 3, 3)), ("bias", (1,)))
    }
    config = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    assert "output_heads" not in config
    weights = read_state_dict(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(weights["conv_out.bias"], heads["0.bias"])


def test_the_snippet_of_the_card_draws_the_student(saved, tmp_path, monkeypatch):
    """What the README says is run: two images in a row, so that the heads come round again."""
    draw_in_this_process(monkeypatch)
    export(tmp_path / "student", tmp_path / "out", format="diffusers", steps=4)
    text = (tmp_path / "out" / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "out")
    loading, call = code.split("image = pipeline(")
    names = {"torch": torch}
    exec(loading, names)  # the folder's own README
    call = f"image = pipeline(generator=torch.manual_seed(3), {call}"
    images = []
    for _ in range(2):
        exec(call, names)
        images.append(names["image"])
    first, second = (np.asarray(image).squeeze().astype(int) for image in images)
    assert (first == second).all()
    noise = torch.randn(1, 1, 8, 8, generator=torch.manual_seed(3))
    [expected] = saved.sample(1, noise=noise, steps=4, output="pil")
    assert abs(np.asarray(expected).squeeze().astype(int) - first).max() <= 1


@pytest.mark.parametrize("steps", [1, 3])
def test_a_pipeline_and_a_program_of_fixed_steps(saved, tmp_path, steps):
    result = export(tmp_path / "student", tmp_path / "p", steps=steps)
    assert result.difference == 0
    again = Pipeline.load(tmp_path / "p")
    assert again.step_counts == (steps,) and again.fine_times == (
        again.times[0] if steps > 1 else ()
    )
    torch.testing.assert_close(again.sample(2), saved.sample(2, steps=steps), rtol=1e-4, atol=1e-5)
    result = export(tmp_path / "student", tmp_path / "t", format="torch-export", steps=steps)
    assert result.difference < 1e-5


def test_a_pipeline_without_steps_keeps_all_of_them(saved, tmp_path):
    export(tmp_path / "student", tmp_path / "p")
    again = Pipeline.load(tmp_path / "p")
    assert again.step_counts == (4, 2, 1)
    torch.testing.assert_close(again.sample(2, steps=4), saved.sample(2, steps=4))


def test_comfyui_has_room_for_one_last_layer(saved, tmp_path):
    from halfstep.pipeline.to_comfyui.models import ComfyModel
    from halfstep.pipeline.to_comfyui.sampling import comfy_sampling

    made = fused(saved, 2)
    with pytest.raises(ConfigError, match="one last layer"):
        comfy_sampling(made, ComfyModel, made.times[0])
    with pytest.raises(ConfigError, match="UNet2DConditionModel"):
        export(tmp_path / "student", tmp_path / "c", format="comfyui", steps=1)
