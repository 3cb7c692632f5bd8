"""Images for teachers of latents: encoded once into the run, with captions, prompts or classes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from halfstep.data.latents.dataset import open_latents
from halfstep.errors import ConfigError
from halfstep.pipeline import Pipeline
from halfstep.workflows.options import DataOptions, EncodingOptions
from halfstep.workflows.teacher_latents import teacher_latents
from tests.support.families import dit_pipeline, sd3, stable_diffusion
from tests.support.pictures import pixels, save
from tests.support.processes import launched
from tests.support.runs import bits

QUICK = ["--start", 4, "--stop", 2, "--updates", 2, "--batch-size", 4, "--tolerance", 0]
QUICK += ["--device", "cpu"]
TEXTS = ("a cat", "cat a b", "b")
BRIEF = ["--features", "tests.cli.test_teachers:corners", "--samples", 8, "--split-samples", 0]
BRIEF += ["--metrics", "frechet", "--full", 4, "--cost-rounds", 0, "--baselines", "ddim"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Teachers, and pictures with captions, without, and of classes."""
    root = tmp_path_factory.mktemp("made")
    stable_diffusion().save_pretrained(root / "sd")
    for k in range(10):
        array = pixels(16, 16, 3)
        save(root / "captioned" / f"{k}.png", array)
        save(root / "bare" / f"{k}.png", array)
        (root / "captioned" / f"{k}.txt").write_text(TEXTS[k % 3])
    for name in ("class 7", "class 3"):
        save(root / "classes" / name / "a.png", pixels(16, 16, 3))
        save(root / "others" / name.replace("class", "kind") / "a.png", pixels(16, 16, 3))
    save(root / "mixed" / "class 7" / "a.png", pixels(16, 16, 3))
    save(root / "mixed" / "kind" / "a.png", pixels(16, 16, 3))
    (root / "prompts.txt").write_text("a cat\nb\n")
    return root


@pytest.fixture
def cli(cli, made, tmp_path):
    """Types a command beside all of it."""
    for place in made.iterdir():
        (tmp_path / place.name).symlink_to(place)
    return cli


def distil(*words, teacher="sd", data="captioned", out="run", verb="progressive"):
    return ["distill", verb, "--teacher", teacher, "--data", data, "--out", out, *QUICK, *words]


def test_a_folder_of_captioned_images_is_encoded_once_and_kept_with_the_run(cli, tmp_path):
    status, out, err = cli(*distil("--dry-run"))
    assert status == 0, err
    assert "10 images, encoded once into run/latents, with their captions" in out
    assert "10 samples of shape [4, 8, 8]" in out and not (tmp_path / "run").exists()
    assert cli(*distil())[0] == 0
    before = bits(tmp_path / "run")
    (tmp_path / "sd").rename(tmp_path / "moved")
    status, out, err = cli(*distil(teacher="moved"))
    assert status == 0 and "finished before" in out, err
    assert "encoding" not in out and bits(tmp_path / "run") == before
    assert cli(*distil("--dry-run", teacher="moved"))[0] == 0
    words = ["--prompt", "a cat", "--n", 1, "--device", "cpu", "--out", "s.png"]
    assert cli("sample", "run", *words, "--text", "moved")[0] == 0
    latents = open_latents("run/latents")
    teacher = Pipeline.from_diffusers("moved")
    expected = teacher.texts.conditions([TEXTS[k % 3] for k in range(10)]).encoder_hidden_states
    states = latents.batch(torch.arange(10)).cond.encoder_hidden_states
    torch.testing.assert_close(states, expected, atol=2e-3, rtol=2e-3)
    assert latents.views == 1 and latents.codec == teacher.codec.digest()


def test_a_few_latents_stand_for_all_in_a_dry_run(cli, tmp_path):
    images = teacher_latents(Pipeline.from_diffusers("sd"), DataOptions(data="captioned"), "run")
    with images.rehearsed("cpu") as few:
        assert len(few) == 10 and len(few.moments) == 8
        batch = few.batch(torch.arange(10))
    assert torch.equal(batch.x0[8:], batch.x0[:2]) and not (tmp_path / "run").exists()


def test_the_folder_that_halfstep_latents_makes_is_the_same(cli):
    words = ["--codec", "sd", "--text", "sd", "--no-mirror", "--device", "cpu"]
    assert cli("latents", "--data", "captioned", "--out", "l", *words)[0] == 0
    teacher = Pipeline.from_diffusers("sd")
    ours = teacher_latents(teacher, DataOptions(data="captioned"), "run").encode("cpu")
    assert open_latents("l").fingerprint() == ours.fingerprint()
    assert teacher.texts._pipeline is None, "the encoders leave memory"
    assert teacher_latents(teacher, DataOptions(data="l"), "run") is None
    status, _, err = cli("latents", "--data", "captioned", "--out", "m", *words, "--tokens", 8)
    assert status == 2 and "leave --tokens out" in err


@pytest.mark.parametrize("prompts", [None, Path("prompts.txt")])
def test_images_without_captions_have_the_empty_text_or_prompts_in_turn(cli, prompts):
    teacher = Pipeline.from_diffusers("sd")
    images = teacher_latents(
        teacher, DataOptions(data="bare", flip=True), "run", EncodingOptions(prompts=prompts)
    )
    latents = images.encode("cpu")
    assert latents.views == 2 and (latents.contexts is None) is (prompts is None)
    if prompts:
        expected = teacher.texts.conditions(["a cat", "b"] * 2).encoder_hidden_states
        states = latents.batch(torch.arange(4)).cond.encoder_hidden_states
        torch.testing.assert_close(states, expected, atol=2e-3, rtol=2e-3)


def test_classes_are_the_teachers_by_name_else_by_number(cli):
    teacher = Pipeline.from_diffusers(dit_pipeline())
    for data, labels in (("classes", [3, 7]), ("others", [0, 1])):
        images = teacher_latents(teacher, DataOptions(data=data), data + "-run")
        latents = images.encode("cpu")
        assert latents.labels.tolist() == labels and latents.names == ()
    for data, message in (("mixed", "no class of this model"), ("bare", "sub-folder for each")):
        with pytest.raises(ConfigError, match=message):
            teacher_latents(teacher, DataOptions(data=data), "run")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--prompts", "prompts.txt"], "the images have captions"),
        (["--size", 15], "multiple of 2"),
        (["--data", "bare", "--prompts", "none.txt"], "cannot read the prompts"),
        (["--out", "classes"], "holds no run"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_encoded(cli, words, message, tmp_path):
    status, _, err = cli(*distil(*words))
    assert status == 2 and message in err and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists() and not (tmp_path / "classes" / "latents").exists()


@pytest.mark.slow
def test_a_guided_student_and_one_of_flow_matching(cli):
    words = ["--guidance-range", 1, 5, "--halving-updates", 2, "--prompts", "prompts.txt"]
    status, _, err = cli(*distil(*words, verb="guided", data="bare"))
    assert status == 0, err
    status, _, err = cli("evaluate", "run", *BRIEF)
    assert status == 0, err
    sd3().save_pretrained("sd3")
    status, _, err = cli(*distil(teacher="sd3", out="flow"))
    assert status == 0, err


@pytest.mark.slow
def test_killed_at_any_time_it_resumes_to_the_same_bits(cli, tmp_path):
    """While images are encoded, and in training."""
    words = [str(word) for word in distil("--save-every", 3, "--updates", 40)]
    assert cli(*words, "--out", "whole")[0] == 0
    command = [sys.executable, "-m", "halfstep", *words, "--out", "killed"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    waits = ("latents/latents.json", "checkpoints", "stages/v-teacher/pipeline.json")
    for name in waits:
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) as process:  # fmt: skip
            while not (tmp_path / "killed" / name).exists() and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert bits(tmp_path / "killed") == bits(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_do_what_one_does(cli, tmp_path):
    from halfstep import storage

    words = [str(word) for word in distil()]
    assert cli(*words, "--out", "one")[0] == 0
    status, out, err = launched("-m", "--", "halfstep", *words, "--out", "two")
    assert (status, err) == (0, ""), out + err
    for name in ("v-teacher", "0002-steps"):
        ours, _ = storage.load(tmp_path / "one" / "stages" / name / "pipeline")
        theirs, _ = storage.load(tmp_path / "two" / "stages" / name / "pipeline")
        assert max(float((theirs[n] - ours[n]).abs().max()) for n in ours) < 1e-5
    about = json.loads((tmp_path / "two" / "run.json").read_text())
    assert about["environment"]["processes"] == 2
