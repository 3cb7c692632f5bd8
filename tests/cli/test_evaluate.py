"""`halfstep evaluate` and `halfstep report`: their files, their lines, their refusals."""

import json
import re
import shutil
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import halfstep
from halfstep.evaluation import Interval
from halfstep.evaluation.metrics.memorisation import nearest
from halfstep.pipeline import Pipeline
from halfstep.training.gate_record import read_gate
from halfstep.workflows.report import provenance
from tests.cli.commands import contents, halving, SHIPPED, TINY, type_command
from tests.support.evidence import read_back
from tests.support.runs import refused, rewritten

pytestmark = pytest.mark.usefixtures("feature_cache")
QUICK = ["--samples", 64, "--split-samples", 40, "--cost-rounds", 1, "--baselines", "ddim", "heun"]
QUICK += ["--metrics", "frechet"]
BRIEF = ["--samples", 64, "--split-samples", 0, "--cost-rounds", 0, "--baselines", "ddim"]
BRIEF += ["--metrics", "frechet"]
DIGITS = ["--teacher", SHIPPED, "--data", "digits"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The shipped teacher of digits, 4 steps to 1, hardly trained, evaluated."""
    out = tmp_path_factory.mktemp("digits") / "run"
    words = ["--start", 4, "--updates", 1, "--batch-size", 8, "--samples", 64, "--full", 8]
    words += ["--tolerance", 99]
    assert type_command(["distill", "progressive", *DIGITS, "--out", out, *words]) == 0
    assert type_command(["evaluate", out, *QUICK, "--shown", 5]) == 0
    return out


# evaluate.


def test_a_run_is_evaluated_into_three_files(digits):
    report, pictures = read_back(digits)
    assert [row["steps"] for row in report["rows"] if row["role"] == "student"] == [2, 1]
    assert report["rows"][0]["name"] == "teacher, 8 steps"
    assert all(row["split"] for row in report["rows"] if row["role"] == "student")
    assert pictures["grid"].shape == (3, 5, 8, 8, 1)
    assert report["run"]["folder"] == "run"
    assert report["run"]["config"] == tomllib.loads((digits / "config.toml").read_text())
    gate = read_gate(digits / "gate.json")
    assert report["run"]["gate"] == gate and [
        decision["steps"] for decision in gate["decisions"]
    ] == [2, 1]
    assert report["run"]["cost"]["halvings"]["updates"] == 4  # the last two are doubled
    assert report["measure"]["features"] == "digits" and report["measure"]["samples"] == 64
    assert {line["stage"] for line in report["training"]} == {"0002-steps", "0001-steps"}
    assert set(report["training"][0]) == {"stage", "update", "loss", "rate"}
    assert report["provenance"]["command"] and report["provenance"]["torch"]
    page = (digits / "report.html").read_text()
    assert "0001-steps" in page and "student, 1 step" in page


@pytest.mark.parametrize(
    "argv, message",
    [
        (["/usr/bin/halfstep", "demo", "--out", "a b"], "halfstep demo --out 'a b'"),
        (["/x/halfstep/__main__.py", "demo"], "halfstep demo"),
        (["examples/mine.py", "7"], "python mine.py 7"),
        ([], "halfstep"),
    ],
)
def test_the_command_is_the_one_that_was_typed(argv, message):
    assert provenance({}, argv).command == message


def test_what_was_evaluated_is_what_the_students_draw(digits):
    report, pictures = read_back(digits)
    student = Pipeline.load(digits / "stages" / "0002-steps")
    drawn = student.sample(5)[:, 0]
    levels = ((drawn + 1) * 127.5).clamp(0, 255).numpy()
    assert np.abs(pictures["grid"][1, ..., 0] - levels).max() <= 0.51
    gate = report["run"]["gate"]
    first = next(decision for decision in gate["decisions"] if decision["steps"] == 2)
    row = next(row for row in report["rows"] if row["name"] == "student, 2 steps")
    assert first["samples"] == 64 and row["ratio"] == pytest.approx(first["ratio"])


def test_the_table_says_every_row_and_what_a_perfect_one_would_score(digits, cli, monkeypatch):
    """At any width of the terminal; the full steps are those of the gate by default."""
    shutil.copytree(digits, "run")
    monkeypatch.setenv("COLUMNS", "60")
    status, out, err = cli("evaluate", "run", *BRIEF, "--full", 4, "--counts", 1)
    assert status == 0 and not err and "…" not in out
    report, _ = read_back(Path("run"))
    assert [row["name"] for row in report["rows"]] == [
        "teacher, 4 steps", "teacher, ddim, 1 step", "student, 1 step",
    ]  # fmt: skip
    lines = out.splitlines()
    assert (
        max(map(len, lines[: lines.index(next(x for x in lines if x.startswith("floor")))])) <= 80
    )
    for row in report["rows"]:
        found = [pair for pair in pairwise(lines) if pair[0].startswith(f"{row['name']} ")]
        (value, ends), *verdicts = found
        assert len(verdicts) == (row["role"] == "student")
        shown = [row["distances"]["frechet_distance"]]
        shown += [] if row["role"] == "teacher" else [row["ratio"]]
        for number, _, interval in (str(Interval(**one)).partition(" ") for one in shown):
            assert number in value and interval in ends
    assert f"verdict   {report['headline']}" in out and report["verdict"] in " ".join(out.split())
    assert "report    run/report.html" in out
    assert f"{report['measure']['floor']:.3f} is what 64 perfect samples would score" in out


def test_points_whose_teacher_was_moved(moons, cli):
    """A run says which teacher it needs; features of points are their coordinates."""
    shutil.copytree(moons, "t")
    assert cli(*halving("t", "d", "--tolerance", 0, "--stop", 4))[0] == 0
    Path("t").rename("moved")
    files = contents(Path("d"))
    actual = cli("evaluate", "d", *BRIEF)
    assert refused(
        actual, "the teacher of 'd' is not at t: write halfstep evaluate d --teacher FOLDER"
    )
    actual = cli("evaluate", "d", *BRIEF, "--teacher", "d")
    assert refused(actual, "'d' is not the teacher that 'd' was made from, its weights differ")
    assert contents(Path("d")) == files
    status, out, err = cli("evaluate", "d", *BRIEF, "--teacher", "moved")
    assert status == 0, err
    assert "features coordinates (as they are)" in out
    report, pictures = read_back(Path("d"))
    assert pictures == {} and report["run"]["gate"] is None
    assert report["rows"][0]["steps"] == 64  # there was no gate
    assert report["measure"]["real"] == 10_000
    assert report["run"]["cost"]["teacher"]["updates"] == 60
    Path("d/config.toml").unlink()
    assert refused(cli("evaluate", "d", *BRIEF), "does not say what it was trained on")
    assert refused(cli("evaluate", "d", "--data", "two-moons", *BRIEF), "is not named in it")


def test_memorisation_is_evaluated_by_data_that_was_held_out(moons, cli, monkeypatch):
    points = halfstep.load_data("two-moons").values[:40]
    np.save("seen.npy", points.numpy())
    shutil.copytree(moons, "t")
    words = ["evaluate", "t", *BRIEF, "--full", 2, "--held-out"]
    monkeypatch.setattr(Pipeline, "sample", None)  # it is refused before anything is sampled
    for more in ([], ["--against", "held-out"]):
        assert refused(cli(*words, "seen.npy", *more), "held_out are training")
    assert not Path("t/report.json").exists()


def test_distances_can_be_measured_to_data_that_was_held_out(moons, cli):
    """Both reports have the same memorisation; the distances, the real data and the page differ."""
    unseen = np.random.default_rng(3).uniform(-1, 1, (50, 2)).astype(np.float32)
    np.save("unseen.npy", unseen)
    reports, printed = [], []
    for name, words in (("a", []), ("b", ["--against", "held-out"])):
        shutil.copytree(moons, name)
        done = cli("evaluate", name, *BRIEF, "--full", 2, "--held-out", "unseen.npy", *words)
        assert done[0] == 0, done
        printed.append(done[1])
        reports.append(read_back(Path(name))[0])
    (of_data,), (of_held_out,) = [report["rows"] for report in reports]
    assert of_data["memorisation"] == of_held_out["memorisation"]
    learnt = halfstep.load_data("two-moons").values
    new = nearest(torch.from_numpy(unseen), learnt)[:, 0].mean()
    assert of_data["memorisation"]["held_out"]["value"] == pytest.approx(float(new))
    assert [report["measure"]["real"] for report in reports] == [10_000, 50]
    assert [report["measure"]["held_out"] for report in reports] == [False, True]
    assert reports[0]["measure"]["data"] != reports[1]["measure"]["data"]
    distances = [row["distances"]["frechet_distance"]["value"] for row in (of_data, of_held_out)]
    assert distances[0] != distances[1]
    pages = [" ".join(Path(name, "report.html").read_text().split()) for name in "ab"]
    said = "50 real images that no network was trained on"
    assert [page.count(said) for page in pages] == [0, 2]
    assert [said in out for out in printed] == [False, True]
    assert refused(cli("evaluate", "a", *BRIEF, "--against", "held-out"), "write --held-out DATA")


def test_a_teacher_is_evaluated_alone_at_64_steps(moons, cli):
    shutil.copytree(moons, "t")
    status, _, err = cli("evaluate", "t", *BRIEF)
    assert status == 0 and not err, err
    assert [row["name"] for row in read_back(Path("t"))[0]["rows"]] == ["teacher, 64 steps"]


def test_without_a_gate_full_steps_are_those_that_the_halving_began_with(moons, cli):
    words = ["--start", 128, "--stop", 64, "--tolerance", 0]
    assert cli(*halving(moons, "d", *words))[0] == 0
    assert cli("evaluate", "d", *BRIEF, "--counts", 64)[0] == 0
    assert read_back(Path("d"))[0]["rows"][0]["name"] == "teacher, 128 steps"


def test_held_out_data_of_another_shape_is_refused_before_anything_is_sampled(
    moons, cli, monkeypatch
):
    shutil.copytree(moons, "t")
    np.save("three.npy", np.zeros((40, 3), np.float32))
    monkeypatch.setattr(Pipeline, "sample", None)
    actual = cli("evaluate", "t", *BRIEF, "--held-out", "three.npy")
    assert refused(
        actual, "the held-out data has samples of shape [3] and the run's data [2]: give"
    )


def test_a_sampler_that_the_schedule_refuses_is_left_out_and_said(cli):
    options = ["--noise-schedule", "rectified-flow", "--updates", 3, "--out", "t"]
    assert cli("train", "denoiser", *TINY, *options)[0] == 0
    assert cli(*halving("t", "d", "--tolerance", 0, "--stop", 4))[0] == 0
    words = ["--baselines", "ddim", "dpm-fast", "--metrics", "frechet", "--full", 8]
    status, out, err = cli("evaluate", "d", *BRIEF[:6], *words)
    assert status == 0, err
    assert "no baseline dpm-fast: the log-SNR at t = 1 or 0.0001 is infinite" in out
    assert [row["sampler"] for row in read_back(Path("d"))[0]["rows"]] == ["ddim"] * 3
    actual = cli("evaluate", "d", *BRIEF, "--full-sampler", "dpmpp-3s")
    assert refused(actual, "dpmpp_3s cannot start at t = 1")


def test_features_and_networks_of_ones_own_from_the_current_folder(cli, tmp_path):
    (tmp_path / "own_features.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "class Mine(nn.Module):\n"
        "    def __init__(self, width=2):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(2, 2)\n\n"
        "    def forward(self, x, t, cond=None):\n"
        "        return self.layer(x)\n\n\n"
        "def seen():\n"
        "    return lambda x: torch.cat([x, x.prod(1, keepdim=True)], 1)\n"
    )
    net, features = ["--net", "own_features:Mine"], ["--features", "own_features:seen"]
    sys.path[:] = [folder for folder in sys.path if folder not in ("", str(tmp_path))]
    before = sys.path[:]
    try:
        words = ["--net-config", "width", 3, "--data", "two-moons", "--updates", 3, "--out", "t"]
        assert cli("train", "denoiser", *net, *words)[0] == 0
        status, out, err = cli(*halving("t", "d", *net, *features, "--stop", 4))
        assert status == 0, err
        command = re.search(r"^next +halfstep (evaluate .*)$", out, re.MULTILINE)[1]
        sys.path[:] = before
        sys.modules.pop("own_features")
        status, out, err = cli(*command.split(), *features, *BRIEF)
        assert status == 0, err
        assert "features own_features:seen" in out
    finally:
        sys.modules.pop("own_features", None)


# Refusals are one sentence.


def test_what_is_no_run_is_refused(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    for verb in ("evaluate", "report"):
        for place in ("nowhere", "empty"):
            assert refused(cli(verb, place), f"'{place}' holds no run: give the --out of a")
    assert refused(cli("evaluate"), "evaluate takes one run, got 0: write halfstep evaluate RUN")
    assert refused(cli("evaluate", "a", "b"), "evaluate takes one run, got 2")
    assert refused(cli("report"), "halfstep report needs RUN")
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    "words, message",
    [
        (["--counts", 3], "no student takes 3 steps: there are students of 2, 1"),
        (["--metrics", "kernl"], "perhaps you meant 'kernel'"),
        (["--baselines", "huen"], "perhaps you meant 'heun'"),
        (["--full-sampler", "dpm-fats"], "perhaps you meant 'dpm-fast'"),
        (["--samples", 3], "samples must be at least 8"),
        (["--features", "digitz"], "perhaps you meant 'digits'"),
        (["--data", "two-moons"], "needs"),
        (["--teacher", "nowhere"], "is not at nowhere"),
        (["--held-out", "nowhere"], "nowhere"),
        (["--sample", 3], "perhaps you meant --samples"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, message, digits, cli):
    before = contents(digits)
    status, _, err = cli("evaluate", digits, *QUICK, *words)
    assert status == 2 and err.count("\n") == 1 and err.startswith("halfstep: "), err
    assert message in err or words[0] == "--data", err
    assert contents(digits) == before


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("config.toml", "start = ", "config.toml' is not TOML"),
        ("gate.json", "{", "(char 1); delete it, and the gate measures again"),
        ("run.json", "[", "(char 1); copy it back, or make it again"),
    ],
)
def test_a_damaged_run_is_refused(name, text, message, digits, cli):
    shutil.copytree(digits, "run")
    Path("run", name).write_text(text)
    assert refused(cli("evaluate", "run", *QUICK), message)


def test_a_gate_that_saw_other_weights_is_refused(digits, cli):
    shutil.copytree(digits, "run")

    def another(gate):
        for decision in gate["decisions"]:
            decision["weights"] = "0" * 64

    rewritten(Path("run/gate.json"), another)
    assert refused(cli("sample", "run", "--n", 1, "--out", "x"), "saw other weights of")
    assert cli("sample", "run", "--n", 1, "--steps", 1, "--out", "x")[0] == 0


# report.


def test_a_report_is_written_again_to_the_same_bytes(digits, cli):
    shutil.copytree(digits, "run")
    before = contents(Path("run"))
    Path("run/report.html").unlink()
    status, out, err = cli("report", "run")
    assert status == 0, err
    assert contents(Path("run")) == before
    assert f"verdict   {json.loads(before['report.json'])['headline']}" in out
    assert "report    run/report.html" in out


def test_a_teacher_that_was_not_evaluated_is_evaluated_first(moons, cli, monkeypatch):
    from halfstep.cli.commands import evaluate

    shutil.copytree(moons, "t")
    calls, whole = [], evaluate.main
    brief = [str(word) for word in (*BRIEF, "--full", 2)]
    monkeypatch.setattr(evaluate, "main", lambda argv: calls.append(argv) or whole([*argv, *brief]))
    status, out, err = cli("report", "t")
    assert status == 0 and calls == [["t"]], err
    assert "No student was measured" in out and Path("t/report.html").exists()
    assert [row["role"] for row in read_back(Path("t"))[0]["rows"]] == ["teacher"]


@pytest.mark.parametrize(
    "name, damage, message",
    [
        ("report.json", b"{", "report.json' is damaged"),
        ("report.json", b"{}", "report.json' is damaged"),
        ("report.npz", b"", "report.npz' is damaged"),
        ("report.npz", b"nothing", "report.npz' is damaged"),
        ("report.npz", None, "report.npz' is damaged"),
    ],
)
def test_damaged_evidence_is_refused_with_what_to_type(name, damage, message, digits, cli):
    shutil.copytree(digits, "run")
    path = Path("run", name)
    path.write_bytes(path.read_bytes()[:-300] if damage is None else damage)
    actual = cli("report", "run")
    assert refused(actual, message)
    if name == "report.npz":
        assert "halfstep evaluate run again" in actual[2]
