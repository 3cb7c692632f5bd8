"""A method of one file and one line of registration: from Python with a gate, and from the command line."""

import json
import re
import sys
from pathlib import Path

import pytest

from halfstep import build, Cosine, Denoiser, QualityGate, RunFolder, TrainingConfig, V
from halfstep.cli import main
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.methods import METHODS, StagePlan
from halfstep.pipeline import Pipeline
from halfstep.training import distill
from tests.support.runs import job, points, teacher

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-method.md"
FEW = TrainingConfig(batch_size=6)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The module that the how-to writes, as a file of a user's own."""
    folder = tmp_path_factory.mktemp("mine")
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
    (folder / "one_shot.py").write_text(code)
    sys.path.insert(0, str(folder))
    yield __import__("one_shot")
    sys.path.remove(str(folder))


@pytest.fixture
def registered(mine, monkeypatch):
    monkeypatch.setitem(METHODS, "one-shot", mine.OneShot)


def test_it_runs_from_python_with_a_gate(mine, tmp_path):
    method = mine.OneShot(steps=4, updates=3)
    gate = QualityGate(tolerance=1000, samples=16, full_steps=4)
    student = distill(
        teacher(), points(), tmp_path / "r", method=method, training=FEW, job=job(), gate=gate
    )
    assert student.times == ((1.0, 0.0),)
    run = RunFolder.open(tmp_path / "r")
    assert run.about["command"] == "distill own" and run.teacher_times == uniform(4)
    [planned] = run.about["plan"]["stages"]
    assert planned == {
        "name": "0001-steps",
        "steps": 1,
        "updates": 3,
        "forwards": 3,
        "once": 0,
        "teacher_steps": 4,
    }
    [tried] = run.gate["decisions"]
    assert (tried["stage"], tried["steps"], tried["verdict"]) == ("0001-steps", 1, "passed")
    assert run.gate["best"] == "0001-steps" and run.student().times == student.times


def test_what_every_method_refuses_it_refuses_too(mine, tmp_path):
    student = Pipeline(teacher().denoiser, (3,), times=(uniform(4),), sampler="stochastic")
    with pytest.raises(ConfigError, match="for sampler 'stochastic'"):
        distill(student, points(), tmp_path / "r", method=mine.OneShot(), training=FEW)
    with pytest.raises(ConfigError, match="a Method"):
        distill(teacher(), points(), tmp_path / "r", method=object(), training=FEW)
    assert not (tmp_path / "r").exists()


def test_it_runs_from_the_command_line(registered, tmp_path, capsys):
    net = build("mlp", {"dim": 2, "width": 8})
    Pipeline(Denoiser(net, Cosine(), V()), (2,)).save(tmp_path / "teacher")
    words = ["--teacher", str(tmp_path / "teacher"), "--data", "two-moons", "--device", "cpu"]
    words += ["--steps", "4", "--updates", "3", "--batch-size", "6"]
    words += ["--tolerance", "1000", "--samples", "16", "--full", "4"]
    out = tmp_path / "r"
    assert main(["distill", "one-shot", *words, "--out", str(out), "--dry-run"]) == 0
    assert re.search(r"^0001-steps +3", capsys.readouterr().out, re.MULTILINE)
    assert main(["distill", "one-shot", *words, "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert "Train a one-step student" in output and "--steps 1" in output
    begun = json.loads((out / "run.json").read_text())
    assert begun["command"] == "distill one-shot" and begun["options"]["steps"] == 4
    assert begun["plan"]["stages"][0]["name"] == "0001-steps" and "\ngate " in output
    assert main(["distill", "one-shot", *words, "--out", str(out), "--stepz", "4"]) == 2
    assert "--steps" in capsys.readouterr().err


def test_a_student_of_steps_is_found_by_them():
    assert (
        StagePlan("0002-steps", 1, (1.0, 0.5, 0.0)).steps == 2 and StagePlan("any", 1).steps is None
    )
    with pytest.raises(ConfigError, match="write '0002-steps'"):
        StagePlan("two", 1, (1.0, 0.5, 0.0))


def test_a_name_that_is_not_registered_is_refused(capsys):
    assert main(["distill", "one-shot", "--out", "r"]) == 2
    assert "one-shot" in capsys.readouterr().err
