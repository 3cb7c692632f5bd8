"""`--data none`: labels and prompts, a dry run, refusals, kill -9, two processes."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from halfstep import storage
from halfstep.data.prompts import open_prompts
from halfstep.errors import ConfigError
from halfstep.pipeline import Pipeline
from halfstep.training.run_folder import RunFolder
from tests.cli.commands import SHIPPED
from tests.support.families import stable_diffusion
from tests.support.processes import launched
from tests.support.runs import bits, everything

QUICK = ["--start", 4, "--stop", 2, "--updates", 2, "--batch-size", 4, "--device", "cpu"]
TEXTS = ("a cat", "cat a b", "b")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A teacher of texts that predicts eps, and prompts."""
    root = tmp_path_factory.mktemp("made")
    stable_diffusion().save_pretrained(root / "sd")
    (root / "prompts.txt").write_text("\n".join(TEXTS))
    return root


@pytest.fixture
def cli(cli, made, tmp_path):
    """Types a command beside both."""
    for place in made.iterdir():
        (tmp_path / place.name).symlink_to(place)
    return cli


def distil(*words, teacher=SHIPPED, data="none", out="run", verb="progressive"):
    return ["distill", verb, "--teacher", teacher, "--data", data, "--out", out, *QUICK, *words]


def test_a_teacher_of_classes(cli, tmp_path):
    status, out, err = cli(*distil("--dry-run"))
    assert status == 0, err
    assert "states of walks of shape [1, 8, 8]" in out and not (tmp_path / "run").exists()
    status, out, err = cli(*distil())
    assert status == 0, err
    assert "none, the teacher walks from noise, 10 classes" in out
    assert "off without data" in out and "halfstep evaluate run --data DATA" in out
    assert RunFolder("run").config["data"] == "none"
    before = bits(tmp_path / "run")
    assert cli(*distil())[0] == 0 and bits(tmp_path / "run") == before
    status, _, err = cli("evaluate", "run")
    assert status == 2 and "halfstep evaluate run --data DATA" in err
    status, out, err = cli(*distil(data="none:student", out="other"))
    assert status == 0 and "none:student, the student walks from noise" in out, err


def test_prompts_are_encoded_once_and_kept_with_the_run(cli, tmp_path):
    """By the teacher's own encoders; a run that goes on encodes nothing."""
    words = ["--prompts", "prompts.txt", "--reparameterise-updates", 2]
    status, out, err = cli(*distil(*words, "--dry-run", teacher="sd"))
    assert status == 0 and not (tmp_path / "run").exists(), err
    status, out, err = cli(*distil(*words, teacher="sd"))
    assert status == 0 and "3 prompts in turn" in out, err
    contexts = open_prompts(tmp_path / "run" / "prompts")
    teacher = Pipeline.from_diffusers("sd")
    states = contexts.rows(torch.arange(3)).encoder_hidden_states
    expected = teacher.texts.conditions(TEXTS).encoder_hidden_states
    torch.testing.assert_close(states, expected, atol=2e-3, rtol=2e-3)
    null = teacher.texts.null().encoder_hidden_states
    torch.testing.assert_close(contexts.null.encoder_hidden_states, null, atol=2e-3, rtol=2e-3)
    before = everything(tmp_path / "run" / "prompts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("halfstep.training.prompts.encode_prompts", None)
        assert cli(*distil(*words, "--updates", 3, "--extend", teacher="sd"))[0] == 0
    assert everything(tmp_path / "run" / "prompts") == before
    (tmp_path / "others.txt").write_text("b\n")
    status, _, err = cli(*distil(*words, "--prompts", "others.txt", teacher="sd"))
    assert status == 2 and "other prompts" in err
    damaged = tmp_path / "run" / "prompts" / "context-00000.npy"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"abcd")
    status, _, err = cli(*distil(*words, teacher="sd"))
    assert status == 2 and "damaged" in err


def test_interrupted_encoding_goes_on(tmp_path, monkeypatch):
    """File by file; what is there is not encoded again, and the files are the same."""
    from halfstep.data import prompts as module

    monkeypatch.setattr(module, "SHARD", 2)
    monkeypatch.setattr(module, "AT_ONCE", 1)
    texts, seen = Pipeline.from_diffusers(stable_diffusion()).texts, []

    class Watched:
        def null(self):
            return texts.null()

        def conditions(self, some):
            seen.extend(some)
            if "stop" in some and len(seen) < 5:
                raise KeyboardInterrupt
            return texts.conditions(some)

    prompts = ["a", "b", "a cat", "stop", "cat"]
    with pytest.raises(KeyboardInterrupt):
        module.encode_prompts(Watched(), prompts, tmp_path / "p")
    assert not module.are_encoded(prompts, tmp_path / "p")
    with pytest.raises(ConfigError, match="other prompts"):
        module.are_encoded(prompts[1:], tmp_path / "p")
    seen.clear()
    seen.extend(["nothing"] * 5)
    module.encode_prompts(Watched(), prompts, tmp_path / "p")
    assert seen[5:] == ["a cat", "stop", "cat"]
    module.encode_prompts(texts, prompts, tmp_path / "whole")
    assert everything(tmp_path / "p") == everything(tmp_path / "whole")
    assert module.open_prompts(tmp_path / "p").rows(torch.arange(5)).encoder_hidden_states.ndim == 3


@pytest.mark.parametrize(
    "words, message",
    [
        (["--size", 8], "leave --size"),
        (["--flip"], "leave --size"),
        (["--skip-bad"], "--skip-bad out"),
        (["--data", "none:teacher"], "write none or none:student"),
        (["--encode-batch", 8], "--encode-batch out"),
        (["--start", "auto"], "give --start a number"),
        (["--tolerance", 1.1], "compares with data"),
        (["--prompts", "prompts.txt"], "reads texts"),
    ],
)
def test_options_that_need_data_are_refused(cli, words, message, tmp_path):
    status, _, err = cli(*distil(*words))
    assert status == 2 and message in err and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["distill", "encoder", "--teacher", SHIPPED],
        ["distill", "shrink", "--teacher", SHIPPED, "--depth", 2],
        ["distill", "plan", "--teacher", SHIPPED, "--depth", 2],
        ["distill", "knowledge"],
        ["train", "denoiser"],
        ["train", "classifier"],
    ],
    ids=lambda words: words[1],
)
def test_verbs_that_need_data_refuse_none(cli, words, tmp_path):
    status, _, err = cli(*words, "--data", "none", "--out", "run")
    assert status == 2 and err.count("\n") == 1 and not (tmp_path / "run").exists(), err


@pytest.mark.slow
def test_a_guided_student_of_texts_and_its_gate(cli):
    """Both gated by the teacher's own samples, with the prompts, and an eps teacher first."""
    words = ["--guidance-range", 1, 3, "--halving-updates", 2, "--prompts", "prompts.txt"]
    words += ["--tolerance", 50, "--samples", 8, "--features", "tests.cli.test_teachers:corners"]
    status, out, err = cli(*distil(*words, verb="guided", teacher="sd"))
    assert (
        status == 0 and "0002-steps" in out and (RunFolder("run").folder / "gate.json").exists()
    ), err


@pytest.mark.slow
@pytest.mark.parametrize("data", ["none", "none:student"])
def test_killed_at_any_time_it_resumes_to_the_same_bits(cli, tmp_path, data):
    words = [str(w) for w in distil("--save-every", 3, "--updates", 30, data=data)]
    assert cli(*words, "--out", "whole")[0] == 0
    command = [sys.executable, "-m", "halfstep", *words, "--out", "killed"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for count in (1, 3):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) as process:  # fmt: skip
            folder = tmp_path / "killed" / "checkpoints"
            while process.poll() is None and not any(
                int(path.stem[3:]) >= 3 * count for path in folder.glob("*.json")
            ):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert bits(tmp_path / "killed") == bits(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    "data, teacher", [("none", SHIPPED), ("none:student", SHIPPED), ("none", "sd")]
)
def test_two_processes_do_what_one_does(cli, tmp_path, data, teacher):
    more = ["--prompts", "prompts.txt"] if teacher == "sd" else []
    words = [str(word) for word in distil(*more, data=data, teacher=teacher)]
    assert cli(*words, "--out", "one")[0] == 0
    status, out, err = launched("-m", "--", "halfstep", *words, "--out", "two")
    # diffusers may import libraries that write warnings.
    assert status == 0 and (teacher == "sd" or err == ""), out + err
    ours, _ = storage.load(tmp_path / "one" / "stages" / "0002-steps" / "pipeline")
    theirs, _ = storage.load(tmp_path / "two" / "stages" / "0002-steps" / "pipeline")
    assert max(float((theirs[n] - ours[n]).abs().max()) for n in ours) < 1e-5
