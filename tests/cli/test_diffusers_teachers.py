"""Teachers of diffusers on the command line: folders, a single file, names on the hub."""

from pathlib import Path

import numpy as np
import pytest
import torch

from halfstep.data import load
from halfstep.methods.diffusion.reparameterise import Reparameterise
from halfstep.pipeline import Pipeline
from halfstep.training import distill, TrainingConfig
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.live_bytes import LiveBytes
from halfstep.workflows.locate import is_diffusers, locate_pipeline
from tests.support.families import ddpm_pipeline, stable_diffusion
from tests.support.pictures import pixels, save
from tests.support.runs import bits

QUICK = ["--start", 4, "--stop", 2, "--updates", 2, "--batch-size", 4, "--tolerance", 0]
QUICK += ["--device", "cpu"]
BRIEF = ["--features", "tests.cli.test_teachers:corners", "--samples", 8, "--split-samples", 0]
BRIEF += [
    "--metrics",
    "frechet",
    "--full",
    4,
    "--device",
    "cpu",
    "--cost-rounds",
    0,
    "--baselines",
    "ddim",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A teacher of pixels, one of latents that reads texts, and pictures of eight pixels."""
    root = tmp_path_factory.mktemp("made")
    ddpm_pipeline().save_pretrained(root / "ddpm")
    stable_diffusion().save_pretrained(root / "sd")
    for k in range(8):
        save(root / "photos" / f"{k}.png", pixels(8, 8, 3))
    return root


@pytest.fixture
def cli(cli, made, tmp_path):
    """Types a command beside all of it."""
    for place in made.iterdir():
        (tmp_path / place.name).symlink_to(place)
    return cli


def test_a_folder_is_halved_evaluated_and_found_again_after_it_was_moved(cli, tmp_path):
    """An eps teacher has its v teacher first; the place of a teacher is no part of what a run is."""
    words = ["distill", "progressive", "--data", "photos", *QUICK, "--out", "run"]
    status, out, err = cli(*words, "--teacher", "ddpm")
    assert status == 0, err
    assert "eps to v in 2 updates, 4 -> 2 steps" in out
    config = RunFolder("run").config
    assert config["teacher"] == "ddpm" and "family" not in config
    student = locate_pipeline("run")
    assert student.sampler == "ddim" and student.step_counts == (2,)
    assert Path(student.origin.source) == (tmp_path / "ddpm").resolve()
    assert cli("evaluate", "run", *BRIEF)[0] == 0
    before = bits(tmp_path / "run")
    (tmp_path / "ddpm").rename(tmp_path / "moved")
    status, out, err = cli(*words, "--teacher", "moved")
    assert status == 0 and "finished before" in out, err
    assert bits(tmp_path / "run") == before
    status, _, err = cli("evaluate", "run", *BRIEF)
    assert status == 2 and "the teacher of 'run' is not at ddpm" in err
    assert cli("evaluate", "run", *BRIEF, "--teacher", "moved")[0] == 0
    assert cli("export", "run", "--out", "student")[0] == 0


@pytest.mark.parametrize("zero_snr, sampler", [(False, "scheduler"), (True, "ddim")])
def test_a_teacher_of_another_schedule_leaves_its_scheduler(cli, zero_snr, sampler):
    """A scheduler reads eps as v, but has its own levels."""
    method = Reparameterise(updates=1, zero_snr=zero_snr)
    training = TrainingConfig(batch_size=2)
    teacher = Pipeline.from_diffusers("ddpm")
    made = distill(teacher, load("photos"), "v", method=method, training=training)
    assert made.sampler == sampler and (made.scheduler is None) is zero_snr
    assert made.sample(1, steps=2).isfinite().all()


@pytest.mark.parametrize("size", [None, (32, 16)])
def test_samples_are_the_pipelines_own(cli, size):
    words = ["sample", "sd", "--prompt", "a cat", "--steps", 2, "--n", 2, "--npz", "--out", "s"]
    status, _, err = cli(*words, *(["--size", *size] if size else []))
    assert status == 0, err
    expected = Pipeline.from_diffusers("sd", size=size).sample(2, prompts="a cat", steps=2)
    assert tuple(expected.shape) == (2, 3, *(size or (16, 16)))
    drawn = torch.from_numpy(np.load("s/samples.npz")["images"])
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "place, is_so",
    [
        ("sd", True),
        ("file.safetensors", True),
        ("owner/name", True),
        ("photos/name", False),
        ("photos", False),
        ("nothing", False),
        ("./nothing", False),
        ("/nothing/at/all", False),
        ("owner/a/b", False),
    ],
)
def test_what_is_of_diffusers(cli, place, is_so):
    assert is_diffusers(place) is is_so


@pytest.mark.parametrize(
    "words, message",
    [
        (["--teacher", "owner/name"], "there is no folder 'owner/name', and no pipeline"),
        (["--teacher", "photos/nothing"], "'photos/nothing' holds neither a pipeline nor a run"),
        (["--teacher", ""], "is empty"),
        (["--teacher", "ddpm", "--net", "a:b"], "leave --net out"),
        (["--teacher", "photos", "--family", "f.toml"], "--family is for a pipeline of diffusers"),
        (["--teacher", "photos", "--teacher-config", "sd"], "--teacher-config is for a pipeline"),
        (["--teacher", "ddpm", "--teacher-config", "sd"], "single .safetensors file"),
        (["--teacher", "ddpm", "--family", "none.toml"], "none.toml"),
        (["--teacher", "nothing.safetensors"], "there is no file 'nothing.safetensors'"),
    ],
)
def test_what_is_no_teacher_is_one_sentence(cli, words, message, monkeypatch):
    import diffusers

    def download(*args, **options):
        raise OSError("no network\nin tests")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    status, _, err = cli("distill", "progressive", "--data", "photos", *QUICK, "--out", "r", *words)
    assert status == 2 and message in err and err.count("\n") == 1, err


WIDE = {
    "sample_size": 8,
    "block_out_channels": (256,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "norm_num_groups": 4,
}


@pytest.mark.parametrize(
    "precision, most", [("bf16", 3.9), pytest.param("fp32", 7.8, marks=pytest.mark.slow)]
)
def test_a_lora_has_its_teachers_weights_in_memory_once_from_the_beginning_on(precision, most, cli):
    """No second copy of 2 or 4 bytes a parameter, in a dry run and at the gate's samples either."""
    import diffusers

    net = diffusers.UNet2DModel(**WIDE)
    count = sum(p.numel() for p in net.parameters())
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    diffusers.DDIMPipeline(net, scheduler).save_pretrained("wide")
    del net
    words = ["distill", "progressive", "--teacher", "wide", "--data", "photos", *QUICK]
    words += ["--lora-rank", 1, "--precision", precision, "--batch-size", 2, "--out", "run"]
    words += ["--tolerance", 9, "--samples", 8, "--features", "tests.cli.test_teachers:corners"]
    with LiveBytes() as live:
        status, out, err = cli(*words, "--dry-run")
    assert status == 0 and "start, in the CPU" not in out, err
    assert live.peak <= most * count
    with LiveBytes() as live:
        status, out, err = cli(*words)
    assert status == 0 and "times the teacher's distance" in out, out + err
    assert live.peak <= most * count
    assert not (Path("run") / "base").exists()
    assert locate_pipeline("run").step_counts == (2,)
