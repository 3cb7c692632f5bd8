"""A LoRA run of a teacher that was read in half precision: bit by bit that of its float32 weights."""

import pytest
import torch

from halfstep import Pipeline
from halfstep.data import Dataset
from halfstep.errors import ConfigError
from halfstep.identity import digest_of
from halfstep.methods import Progressive
from halfstep.models.lora import Lora
from halfstep.training import distill, train, TrainingConfig
from halfstep.training.run_folder import RunFolder
from halfstep.training.stages import RunOptions
from halfstep.workflows.live_bytes import LiveBytes
from tests.support.families import ddpm_pipeline
from tests.support.runs import bits

TRAINING = TrainingConfig(batch_size=2, save_every=1, seed=5, precision="bf16")
RANK_2 = Lora(rank=2)


@pytest.fixture
def folder(tmp_path):
    ddpm_pipeline(prediction_type="v_prediction").save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def read(folder, *, half):
    return Pipeline.from_diffusers(folder, dtype=torch.bfloat16 if half else None)


def halved(teacher, out, *, training=TRAINING, lora=RANK_2, **job):
    data = Dataset(
        torch.rand(8, *teacher.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    )
    return distill(
        teacher, data, out, training=training, lora=lora,
        method=Progressive(start=4, stop=1, updates=(2,)), job=RunOptions(device="cpu", **job),
    )  # fmt: skip


def test_the_run_is_that_of_the_float32_teacher(folder, tmp_path):
    whole, half = read(folder, half=False), read(folder, half=True)
    before = half.sample(2, steps=2)
    first, second = halved(whole, tmp_path / "a"), halved(half, tmp_path / "b")
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    assert RunFolder(tmp_path / "a").options == RunFolder(tmp_path / "b").options
    assert not (tmp_path / "b" / "base").exists()
    assert torch.equal(first.sample(2, seed=1), second.sample(2, seed=1))
    loaded = RunFolder.open(tmp_path / "b").student()
    assert (loaded.sample(2, seed=1) - second.sample(2, seed=1)).abs().max() < 0.1
    assert torch.equal(half.sample(2, steps=2), before)
    weights = {p.data_ptr() for p in second.denoiser.net.base.weights}
    assert weights == {p.data_ptr() for p in half.denoiser.parameters()}  # no copy


class Interruption(Exception):
    """What stops a run at its gate."""


@pytest.mark.parametrize("first_half", [True, False])
def test_either_goes_on_with_the_other(first_half, folder, tmp_path):
    def stop(student):
        raise Interruption

    with pytest.raises(Interruption):
        halved(read(folder, half=first_half), tmp_path / "run", gate=stop)
    halved(read(folder, half=not first_half), tmp_path / "run")
    halved(read(folder, half=False), tmp_path / "whole")
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


@pytest.mark.parametrize(
    "change",
    [
        {"lora": None},
        {"training": TrainingConfig(batch_size=2)},
        {"training": TrainingConfig(batch_size=2, precision="fp16")},
    ],
)
def test_all_but_a_lora_in_the_same_precision_is_refused(change, folder, tmp_path):
    with pytest.raises(ConfigError, match="and precision='bf16'"):
        halved(read(folder, half=True), tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


def test_it_is_not_trained(folder, tmp_path):
    teacher = read(folder, half=True)
    with pytest.raises(ConfigError, match="cannot be trained: load it again without dtype"):
        train(teacher, Dataset(torch.rand(8, *teacher.shape)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_changed_teacher_is_refused_before_there_is_a_folder(folder, tmp_path):
    teacher = read(folder, half=True)
    with torch.no_grad():
        next(teacher.denoiser.parameters()).mul_(2)
    with pytest.raises(ConfigError, match="not those in"):
        halved(teacher, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_base_is_in_memory_once_from_the_beginning_on(tmp_path):
    import diffusers

    net = diffusers.UNet2DModel(
        sample_size=4, in_channels=1, out_channels=1, block_out_channels=(256,),
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    diffusers.DDIMPipeline(net, scheduler).save_pretrained(tmp_path / "wide")
    del net
    with LiveBytes() as live:
        teachers = [read(tmp_path / "wide", half=True)]
        count = sum(p.numel() for p in teachers[0].denoiser.parameters())
        halved(teachers.pop(), tmp_path / "run", lora=Lora(rank=1))
    assert live.peak <= 2.8 * count
    assert (
        digest_of(read(tmp_path / "wide", half=False).denoiser)[:16]
        == (RunFolder(tmp_path / "run").options["teacher"])
    )
