"""Every family of diffusers, whole: in, a short distillation, out, and loaded by diffusers again."""

import numpy as np
import pytest

import halfstep
from halfstep import GuidedDistillation, Pipeline, Progressive, TrainingConfig
from halfstep.models.lora import Lora
from tests.support.families import FAMILIES, SIZED, UNGUIDED

FAST = ("ddim",)
NO_LORA = ("ddpm", "ddim", "dit", "pixart", "pixart-alpha")
"""Families whose pipelines have no load_lora_weights."""
SLIDERS = ("stable-diffusion", "stable-diffusion-2", "sdxl")
TRAINING = TrainingConfig(batch_size=4, log_every=1)


def teacher_of(name, tmp_path):
    """A pipeline from a folder of diffusers, and data of its shape."""
    folder = tmp_path / "teacher"
    FAMILIES[name]().save_pretrained(folder)
    teacher = Pipeline.from_diffusers(folder, size=SIZED.get(name))
    data = tmp_path / "data.npz"
    images = np.random.default_rng(0).normal(size=(8, *teacher.shape)).astype("float32").clip(-1, 1)
    labels = {"labels": np.arange(8) % 4} if teacher.class_names else {}
    np.savez(data, images=images, **labels)
    return teacher, str(data)


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]
)
def test_a_family_goes_in_and_comes_out(name, tmp_path):
    teacher, data = teacher_of(name, tmp_path)
    method = Progressive(start=8, stop=4, updates=(1,))
    student = halfstep.distill(teacher, data, tmp_path / "run", method=method, training=TRAINING)
    assert student.step_counts == (4,)
    exported = halfstep.export(tmp_path / "run", tmp_path / "student", format="diffusers")
    assert exported.difference < 1e-4
    assert (tmp_path / "student" / "model_index.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in UNGUIDED])
def test_a_guided_student_of_a_family_comes_out(name, tmp_path):
    """With its slider where the family has a place for it, else at one scale."""
    teacher, data = teacher_of(name, tmp_path)
    method = GuidedDistillation(
        guidance_range=(1.0, 4.0), updates=1, guidance_embed_dim=8,
        halving=Progressive(start=8, stop=4, updates=(1,)),
    )  # fmt: skip
    halfstep.distill(teacher, data, tmp_path / "run", method=method, training=TRAINING)
    options = {} if name in SLIDERS else {"guidance_scale": 3.0}
    exported = halfstep.export(
        tmp_path / "run", tmp_path / "student", format="diffusers", **options
    )
    assert exported.difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_lora_of_a_family_comes_out(name, tmp_path):
    """As a LoRA where diffusers loads one, else merged; from the run, whose last student is exported."""
    teacher, data = teacher_of(name, tmp_path)
    method = Progressive(start=8, stop=4, updates=(1,))
    halfstep.distill(
        teacher, data, tmp_path / "run", method=method, training=TRAINING, lora=Lora(rank=2)
    )
    exported = halfstep.export(tmp_path / "run", tmp_path / "student", merge=name in NO_LORA)
    assert exported.difference < 1e-4
    file = "model_index.json" if name in NO_LORA else "pytorch_lora_weights.safetensors"
    assert (tmp_path / "student" / file).is_file()
