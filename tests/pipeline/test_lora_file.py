"""A stage of a LoRA run: the adapter alone, in diffusers' format, with the base where it is found."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from halfstep.errors import CheckpointError
from halfstep.identity import digest_of
from halfstep.models.lora import plain_denoiser
from halfstep.pipeline import Pipeline
from halfstep.pipeline.lora_base import digest_of_origin
from halfstep.pipeline.lora_file import is_lora, METADATA, read_lora
from halfstep.pipeline.saving import keep_base, save_adapter
from tests.support.families import FAMILIES
from tests.support.lora import lively, without_adapter
from tests.support.pipelines import NETS, pipeline
from tests.support.runs import rewritten


def stage(teacher, run, rank=2):
    """A student in RUN/stages/s, and its pipeline."""
    base = keep_base(teacher, run, rank, digest_of(teacher.denoiser))
    student = lively(without_adapter(teacher.denoiser, rank).trainable_copy())
    made = replace(teacher, denoiser=student.freeze())
    save_adapter(made, run / "stages" / "s", base)
    return run / "stages" / "s", made


@pytest.mark.parametrize("name", NETS)
def test_a_stage_is_read_as_the_merged_network_wherever_its_run_lies(name, tmp_path):
    (tmp_path / "run").mkdir()
    folder, made = stage(pipeline(name), tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    folder = tmp_path / "moved" / "stages" / "s"
    back = Pipeline.load(folder)
    merged = plain_denoiser(made.denoiser)
    assert digest_of(back.denoiser) == digest_of(merged)
    assert (back.sample(2, steps=2) - made.sample(2, steps=2)).abs().max() < 1e-5
    assert is_lora(folder) and not is_lora(tmp_path / "moved" / "base")
    assert back.describe() == made.describe()
    for k, v in read_lora(folder).tensors.items():
        assert torch.equal(made.denoiser.net.tensors()[k], v)


def test_a_student_of_diffusers_is_in_its_format_and_its_base_is_the_origin(tmp_path):
    FAMILIES["stable-diffusion"]().save_pretrained(tmp_path / "theirs")
    teacher = Pipeline.from_diffusers(tmp_path / "theirs")
    folder, made = stage(teacher, tmp_path)
    lora = read_lora(folder)
    assert not (tmp_path / "base").exists()
    assert (lora.base, lora.component, lora.in_run) == (str(tmp_path / "theirs"), "unet", False)
    with safe_open(folder / "pipeline.safetensors", framework="pt") as file:
        names, config = list(file.keys()), json.loads(file.metadata()[METADATA])
    assert all(name.startswith("unet.") and ".lora_" in name for name in names)
    assert config["unet.r"] == config["unet.lora_alpha"] == 2 and config["unet.peft_type"] == "LORA"
    back = Pipeline.load(folder)
    assert digest_of(back.denoiser) == digest_of(plain_denoiser(made.denoiser))
    assert torch.equal(back.empty, teacher.empty) and back.texts is not None


def test_a_teacher_that_is_not_its_origin_any_more_is_kept_in_the_run(tmp_path):
    FAMILIES["ddpm"]().save_pretrained(tmp_path / "theirs")
    teacher = Pipeline.from_diffusers(tmp_path / "theirs")
    assert digest_of_origin(teacher, teacher.origin) == digest_of(teacher.denoiser)
    with torch.no_grad():
        next(teacher.denoiser.parameters()).add_(1)
    folder, _ = stage(teacher, tmp_path)
    assert read_lora(folder).in_run and (tmp_path / "base" / "pipeline.json").exists()
    assert Pipeline.load(folder).origin == teacher.origin


def test_a_missing_or_another_base_and_a_strange_tensor_are_refused(tmp_path):
    folder, _ = stage(pipeline("mlp"), tmp_path)
    shutil.move(tmp_path / "base", tmp_path / "away")
    with pytest.raises(CheckpointError, match="which is not there"):
        Pipeline.load(folder)
    other = pipeline("mlp")
    with torch.no_grad():
        next(other.denoiser.parameters()).add_(1)
    other.save(tmp_path / "base")
    with pytest.raises(CheckpointError, match="an adapter of another network"):
        Pipeline.load(folder)
    rewritten(folder / "pipeline.json", lambda about: about["net"].update(build="unet"))
    with pytest.raises(CheckpointError, match="no tensor of a LoRA"):
        read_lora(folder)
    with pytest.raises(CheckpointError, match="a whole network and no LoRA"):
        read_lora(tmp_path / "base")
