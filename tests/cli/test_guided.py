"""`halfstep distill guided`: from a teacher with a null class to a student with a slider, on the line."""

import json
import re

import pytest

from halfstep.cli import main
from halfstep.methods import DenoiserOnly, GuidedDistillation
from halfstep.methods.stages import cost_after
from halfstep.models import recipe
from halfstep.pipeline import Pipeline
from tests.support.guided import SMALL, teacher_of

NET = ["--net", "mlp", "--net-config", "width", "16", "depth", "1", "--data", "two-moons"]
NET += ["--updates", "20"]
GUIDED = ["--data", "two-moons", "--start", "4", "--stop", "1", "--updates", "4"]
GUIDED += ["--halving-updates", "3", "--guidance-embed-dim", "8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher with a null class, one without, and a guided run of the first."""
    out = tmp_path_factory.mktemp("guided")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        labels = ["--labels", "--drop-labels", "0.2"]
        assert main(["train", "denoiser", *NET, *labels, "--out", str(out / "t")]) == 0
        assert main(["train", "denoiser", *NET, "--labels", "--out", str(out / "plain")]) == 0
        words = [
            "--teacher",
            str(out / "t"),
            *GUIDED,
            "--guidance-range",
            "2",
            "5",
            "--tolerance",
            "0",
        ]
        assert main(["distill", "guided", *words, "--out", str(out / "s")]) == 0
    return out


@pytest.fixture
def cli(cli, folder, monkeypatch):
    """Types a command in the folder of all that."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "160")
    return cli


def test_a_run_is_a_range_of_scales_and_is_finished(folder, cli):
    student = Pipeline.load(folder / "s" / "stages" / "0001-steps")
    assert student.guidance_range == (2.0, 5.0) and len(student.times[0]) == 2
    record = json.loads((folder / "s" / "run.json").read_text())
    assert record["command"] == "distill guided"
    status, out, err = cli("distill", "guided", "--config", "s/config.toml")
    squeezed = " ".join(out.split())
    assert status == 0 and not err and "nothing was left to do" in squeezed
    assert re.search(r"plan +guidance 2 to 5 in one call a step, 4 -> 2 -> 1 steps", out)
    assert "updates   16 of" in out  # 4, and 3 twice doubled
    assert re.search(
        r"halfstep sample \S+ --steps 1 --guidance-scale 3.5 --out \S+/s/samples", squeezed
    )
    assert re.search(r"next +halfstep evaluate \S+/s", squeezed)


def test_a_run_is_judged_against_its_guided_teacher(folder, cli, monkeypatch):
    """At 2 and 3 by default, for those lie in its range; all other rows at the lowest."""
    monkeypatch.setenv("HALFSTEP_CACHE", str(folder / "cache"))
    brief = ["--samples", 64, "--full", 4, "--cost-rounds", 1, "--metrics", "frechet"]
    brief += ["--split-samples", 40, "--baselines", "ddim"]
    status, out, err = cli("evaluate", "s", *brief)
    assert status == 0 and not err, err
    report = json.loads((folder / "s" / "report.json").read_text())
    assert report["guided"]["scales"] == [2.0, 3.0] and report["measure"]["guidance_scale"] == 2.0
    assert [row["calls"] for row in report["guided"]["rows"]] == [8, 2, 1] * 2
    assert [row["calls"] for row in report["rows"]] == [8, 2, 2, 1]  # no baseline in one call
    assert report["rows"][0]["cost"]["calls"] == 8 and all(r["split"] for r in report["rows"][2:])
    assert "poor" not in report["headline"] + report["verdict"]  # guidance leaves the data
    assert report["measure"]["floor_at_2000"] < report["measure"]["floor"]  # of 64
    assert "At 2 calls instead of 8 the student is at most " in report["verdict"]
    assert report["verdict"] in " ".join(out.split()) and out.count("teacher, 4 steps") == 3
    cached = sorted((folder / "cache").glob("samples-*"))
    assert len(cached) == 8  # two files of own samples and reference, at two scales
    assert cli("evaluate", "s", *brief)[0] == 0
    again = json.loads((folder / "s" / "report.json").read_text())
    assert again["guided"] == report["guided"]
    assert sorted((folder / "cache").glob("samples-*")) == cached
    status, _, err = cli("evaluate", "s", *brief, "--guidance-scales", 1)
    assert status == 2 and "from 2 to 5, got 1" in err
    status, _, err = cli("evaluate", "t", *brief, "--guidance-scales", 1, 2)
    assert status == 2 and "one scale, got 2" in err
    status, _, err = cli("evaluate", "plain", *brief, "--guidance-scales", 2)
    assert status == 2 and "no null class and cannot be guided" in err and err.count("\n") == 1
    assert cli("evaluate", "t", *brief, "--guidance-scales", 2)[0] == 0
    alone = json.loads((folder / "t" / "report.json").read_text())
    assert alone["rows"][0]["calls"] == 8 and alone["guided"] is None


def test_the_gate_of_a_guided_run_and_of_a_stochastic_one(folder, cli, monkeypatch):
    monkeypatch.setenv("HALFSTEP_CACHE", str(folder / "cache"))
    words = ["--teacher", "t", *GUIDED, "--samples", 32, "--until", 1, "--out", "gated"]
    status, out, err = cli("distill", "guided", *words)
    assert status == 0 and not err, err
    gate = json.loads((folder / "gated" / "gate.json").read_text())
    assert [one["stage"] for one in gate["decisions"]] == ["guided", "0002-steps", "0001-steps"]
    assert gate["about"]["guidance_scales"] == [1.0, 3.0] and gate["about"]["full"] == 64
    assert gate["tolerance"] == 2 and out.count("gate  ") == 3
    words = ["--teacher", "t", "--data", "two-moons", "--start", 8, "--stop", 4, "--updates", 2]
    words += ["--samples", 32, "--until", 1]
    status, _, err = cli("distill", "stochastic", *words, "--out", "jumps")
    assert status == 0 and not err, err
    assert len(json.loads((folder / "jumps" / "gate.json").read_text())["decisions"]) == 1
    status, _, err = cli("distill", "encoder", *words[:-4], "--tolerance", 2, "--out", "z")
    assert status == 2 and "there is no option --tolerance" in err


def test_samples_are_of_the_scale_that_is_asked_for(folder, cli):
    status, _, err = cli("sample", "s", "--n", 3, "--out", "x")
    assert status == 2 and "write guidance_scale=2" in err
    for scale in (2, 4.5):
        words = ["--guidance-scale", scale, "--n", 3, "--npz", "--out", f"x{scale}"]
        assert cli("sample", "s", *words)[0] == 0
    made = [(folder / f"x{scale}" / "samples.npz").read_bytes() for scale in (2, 4.5)]
    assert made[0] != made[1]


def test_a_guided_student_is_halved_by_the_plain_method_and_keeps_its_range(folder, cli):
    words = ["--data", "two-moons", "--start", 4, "--stop", 2, "--updates", 3, "--tolerance", 0]
    teacher = ["--teacher", "s/stages/guided"]
    status, _, err = cli("distill", "progressive", *teacher, *words, "--out", "h")
    assert status == 0, err
    student = Pipeline.load(folder / "h" / "stages" / "0002-steps")
    assert student.guidance_range == (2.0, 5.0) and len(student.times[0]) == 3
    status, _, err = cli("sample", "h", "--guidance-scale", 6, "--n", 2, "--out", "hx")
    assert status == 2 and "write guidance_scale=5" in err
    status, _, err = cli("distill", "guided", "--config", "s/config.toml", "--guidance-range", 1, 5)
    assert status == 2 and "made with guidance_range = [2.0, 5.0], now it is" in err


@pytest.mark.parametrize(
    "words", [["--student", "width", 8], ["--student-net", "mlp", "--student", "num_classes", 3]]
)
def test_a_smaller_student_end_to_end(words, folder, cli):
    name = str(len(words))
    teacher = ["--teacher", "t", "--guidance-range", 3, 3]
    status, _, err = cli(
        "distill", "guided", *teacher, *GUIDED, *words, "--tolerance", 0, "--out", name
    )
    assert status == 0, err
    student = Pipeline.load(folder / name / "stages" / "0001-steps")
    built, config = recipe(student.denoiser.net)
    assert built == "mlp" and config["width"] == (8 if len(words) == 3 else 64)
    assert config["guidance_embed_dim"] == 8 and student.guidance_range == (3.0, 3.0)
    assert cli("sample", name, "--guidance-scale", 3, "--n", 2, "--out", f"x{name}")[0] == 0


def test_a_rehearsal_prints_all_stages(folder, cli):
    before = set(folder.rglob("*"))
    words = ["--teacher", "t", *GUIDED, "--student", "width", 12, "--out", "y", "--dry-run"]
    status, out, err = cli("distill", "guided", *words)
    assert status == 0 and not err and set(folder.rglob("*")) == before
    names = re.findall(r"^(guided|\d+-steps) +(\d+) +([\d,]+)", out, re.MULTILINE)
    assert names == [
        ("guided", "4", "2,560"), ("0002-steps", "6", "3,840"), ("0001-steps", "6", "3,840"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words, message",
    [
        (["--teacher", "plain"], "this teacher has none: train it with labels and drop_labels"),
        (["--teacher", "s"], "takes its guidance scale as an input already"),
        (["--teacher", "s", "--dry-run"], "takes its guidance scale as an input already"),
        (["--teacher", "t", "--student-net", "mlp"], "takes no labels and got some"),
        (["--teacher", "t", "--guidance-range", 5, 2], "got 5 and 2"),
        (["--teacher", "t", "--guidance-range", 5], "--guidance-range"),
        (["--teacher", "t", "--student", "widt", 3], "perhaps you meant 'width'"),
        (["--teacher", "t", "--tolerance", 0.5], "to be better than its teacher"),
        (
            ["--teacher", "t", "--guidance-scales", 6],
            "guidance scales from 1 to 5, got 6",
        ),
        (["--teacher", "t", "--full", 2], "got --full 2 below --start 4"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_no_folder(words, message, folder, cli):
    status, _, err = cli("distill", "guided", *GUIDED, *words, "--out", "z")
    assert status == 2 and message in err and err.count("\n") == 1
    assert not (folder / "z").exists()


def test_what_is_ahead():
    teacher = DenoiserOnly(teacher_of().denoiser, 3)
    stages, plan = list(SMALL.stages(teacher)), SMALL.plan(teacher)
    assert [cost_after(plan, stage.name, 8) for stage in stages] == [60, 40, 0]
    assert [(one.name, one.steps, one.updates) for one in plan] == [
        ("guided", None, 5), ("0004-steps", 4, 4), ("0002-steps", 2, 8),
    ]  # fmt: skip
    assert SMALL.summary() == "guidance 1 to 4 in one call a step, 8 -> 4 -> 2 steps"
    alone = GuidedDistillation(guidance_range=(1.0, 4.5), updates=7, halving=None)
    assert [one.updates for one in alone.plan(teacher)] == [7]
    assert alone.summary() == "guidance 1 to 4.5 in one call a step"
