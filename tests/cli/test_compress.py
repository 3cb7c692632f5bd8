"""halfstep compress: the table of variants beside a student or a classifier, and what it refuses."""

import inspect
import json
import shutil
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import halfstep
from halfstep.cli import main
from halfstep.errors import DataError
from halfstep.models.classifiers.checkpoint import save_classifier
from halfstep.models.classifiers.registry import build_classifier
from halfstep.models.compression.magnitude_pruning import zero_share
from halfstep.pipeline import Pipeline
from halfstep.progress import SILENT
from halfstep.workflows.compress import CompressConfig
from tests.support.runs import refused, rewritten

ASSETS = Path(halfstep.__file__).parent / "assets"
QUICK = ["--samples", 40, "--full", 4, "--split-samples", 0, "--cost-rounds", 1, "--baselines"]
QUICK += ["ddim", "--metrics", "frechet"]
needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")


pytestmark = pytest.mark.usefixtures("feature_cache")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The shipped teacher of digits, 4 steps to 2 and 1, hardly trained."""
    out = tmp_path_factory.mktemp("digits") / "run"
    words = ["--teacher", ASSETS / "digits-teacher", "--data", "digits", "--start", 4]
    words += ["--updates", 1, "--batch-size", 8, "--tolerance", 0, "--out", out]
    assert main(["distill", "progressive", *map(str, words)]) == 0
    return out


# In the table.


def test_variants_stand_beside_their_student(run, cli):
    status, out, _ = cli(
        "compress", run, "--prune", 0.3, "--prune-rows", 0.125, "--steps", 2, *QUICK
    )
    assert status == 0 and "30 % of weights pruned" in out
    report = json.loads((run / "report.json").read_text())
    rows = [row for row in report["rows"] if row.get("compressed")]
    assert [row["name"] for row in rows] == [
        "student, 2 steps", "student, 2 steps, 12.5 % of rows pruned",
        "student, 2 steps, 30 % of weights pruned",
    ]  # fmt: skip
    original, *made = rows
    assert original["compressed"]["zeros"] == 0 and original["compressed"]["rmse"] is None
    for row in made:
        compressed = row["compressed"]
        assert (
            row["role"] == "compressed"
            and row["calls"] == 2
            and compressed["student"] == original["name"]
        )
        assert (
            compressed["rmse"]["low"] > 0
            and compressed["ratio"]["low"] <= compressed["ratio"]["value"]
        )
        assert compressed["bytes"] == original["compressed"]["bytes"]
        assert row["cost"]["seconds_per_sample"].keys() == {"1", "64"}
        assert row["cost"]["multiply_adds"] == original["cost"]["multiply_adds"]
        assert row["fidelity"] and row["ratio"]
        far, near = (one["distances"]["frechet_distance"]["value"] for one in (row, original))
        assert compressed["ratio"]["value"] == pytest.approx(far / near)
    assert 0.1 < made[0]["compressed"]["zeros"] < 0.125 < made[1]["compressed"]["zeros"] < 0.3
    [one] = [row for row in report["rows"] if row["role"] == "student" and row["steps"] == 1]
    assert one["compressed"] is None
    page = (run / "report.html").read_text()
    assert 'id="compressed"' in page and "12.5 % of rows pruned" in page
    # A variant is a student like any other, and evaluate and report know of it.
    folder = run / "compressed" / "0002-steps-weights-30"
    drawn = [Pipeline.load(p).sample(40) for p in (folder, run / "stages" / "0002-steps")]
    off = (drawn[0] - drawn[1]).double().square().mean().sqrt()
    assert made[1]["compressed"]["rmse"]["value"] == pytest.approx(float(off))
    assert zero_share(Pipeline.load(folder).denoiser.parameters()) == made[1]["compressed"]["zeros"]
    assert cli("report", run)[0] == 0 and 'id="compressed"' in (run / "report.html").read_text()


@needs_torchao
def test_int8_stands_beside_its_student(run, cli, tmp_path):
    shutil.copytree(run / "stages", tmp_path / "run" / "stages")
    for name in ("run.json", "config.toml", "metrics.jsonl"):
        if (run / name).exists():
            shutil.copy(run / name, tmp_path / "run")
    assert cli("compress", tmp_path / "run", "--int8", *QUICK)[0] == 0
    rows = json.loads((tmp_path / "run" / "report.json").read_text())["rows"]
    original, small = [row["compressed"] for row in rows if row.get("compressed")]
    assert small["kind"] == "int8" and small["bytes"] < 0.32 * original["bytes"]
    assert 0 < small["rmse"]["value"] < 0.05


def test_a_report_against_held_out_images_is_not_replaced(run, cli, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    assert cli("evaluate", copied, *QUICK)[0] == 0
    rewritten(copied / "report.json", lambda report: report["measure"].update(held_out=True))
    before = (copied / "report.json").read_bytes()
    words = ["compress", copied, "--prune", 0.5, "--steps", 1]
    assert refused(cli(*words, *QUICK), "--no-evaluate")
    assert (
        not list(copied.glob("compressed/*-50")) and (copied / "report.json").read_bytes() == before
    )
    student = ["compress", run / "stages" / "0001-steps", "--prune", 0.5, "--data", "digits"]
    teacher = ["--teacher", ASSETS / "digits-teacher", "--out", copied]
    assert refused(cli(*student, *teacher, *QUICK), "choose another --out")
    assert cli(*words, "--no-evaluate")[0] == 0
    (copied / "report.json").write_text("{")
    assert cli(*words, *QUICK)[0] == 0


def test_variants_of_other_weights_are_refused(run, cli, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    cli("compress", tmp_path / "run", "--prune", 0.5, "--steps", 1, "--no-evaluate")
    path = tmp_path / "run" / "compressed" / "0001-steps-weights-50" / "compressed.json"
    rewritten(path, lambda about: about.update(sha256="0" * 64))
    assert refused(cli("evaluate", tmp_path / "run", *QUICK), "other weights")


def test_the_same_from_python(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    made = halfstep.compress(tmp_path / "run", prune=[0.5], steps=[2, 1], evaluate=False)
    assert [one.folder.name for one in made.students] == [
        "0002-steps-weights-50", "0001-steps-weights-50",
    ]  # fmt: skip
    for one in made.students:
        assert one.kind == "50 % of weights pruned" and 0.4 < one.zeros < 0.5
        assert one.bytes == one.original_bytes and Pipeline.load(one.folder).times
    assert made.report is None and made.classifiers == ()
    made = halfstep.compress(
        ASSETS / "digits-classifier", prune=(0.2,), data="digits", out=tmp_path / "small"
    )
    original, pruned = made.classifiers
    assert original.kind == "as trained" and original.zeros < pruned.zeros
    assert pruned.scores.accuracy.value > 0.9 and made.students == ()
    assert capsys.readouterr() == ("", "")


def test_the_command_has_the_options_of_the_function():
    parameters = dict(inspect.signature(halfstep.compress).parameters)
    assert parameters.pop("progress").default is SILENT
    assert parameters.keys() == {option.name for option in fields(CompressConfig)}
    default = CompressConfig(run=Path("run"))
    for name, one in list(parameters.items())[1:]:
        assert one.default == getattr(default, name), name


def test_a_student_without_a_run_has_a_table_of_its_own(cli, tmp_path):
    place = ASSETS / "digits-guided" / "0001-steps"
    words = ["--prune", 0.5, "--teacher", ASSETS / "digits-teacher", "--data", "digits"]
    status, out, _ = cli("compress", place, *words, "--out", "small", *QUICK)
    assert status == 0 and "50 % of weights pruned" in out
    assert (tmp_path / "small" / "report.html").exists()


def test_latents_are_verified_as_asked(run, cli, tmp_path, monkeypatch):
    """Of a run, of a student without one; of a classifier, which is judged by images, it is refused."""
    verified = []

    def load(*args, verify, **options):
        verified.append(verify)
        raise DataError("enough")

    for name in ("compress", "evaluation_inputs"):
        monkeypatch.setattr(sys.modules[f"halfstep.workflows.{name}"], "load", load)
    shutil.copytree(run, tmp_path / "run")
    guided, digits = ASSETS / "digits-guided" / "0001-steps", ["--data", "digits"]
    alone = [guided, "--teacher", ASSETS / "digits-teacher", *digits, "--out", "small"]
    for words in ([tmp_path / "run"], alone):
        for more in ([], ["--verify"]):
            assert refused(cli("compress", *words, "--prune", 0.5, *QUICK, *more), "enough")
    assert verified == [False, True, False, True]
    classifier = [ASSETS / "digits-classifier", *digits, "--out", "small", "--prune", 0.5]
    assert refused(cli("compress", *classifier, "--verify"), "--verify")


def test_a_classifier_is_judged_by_test_images_where_the_data_has_some(cli, monkeypatch):
    splits = []

    def load(spec, *, split, **options):
        splits.append(split)
        raise DataError("enough")

    monkeypatch.setattr(sys.modules["halfstep.workflows.compress_classifiers"], "load", load)
    for data in ("fashion-mnist:f", "cifar10:f", "digits"):
        words = [ASSETS / "digits-classifier", "--data", data, "--out", "small", "--prune", 0.5]
        assert refused(cli("compress", *words), "enough")
    assert splits == ["test", "test", "train"]


def test_a_classifier_is_judged_by_its_accuracy(cli, tmp_path):
    place, words = ASSETS / "digits-classifier", ["--prune", 0.2, 0.95, "--data", "digits"]
    assert cli("compress", place, *words, "--out", "small")[0] == 0
    scores = json.loads((tmp_path / "small" / "accuracy.json").read_text())
    original, little, much = scores["rows"]
    assert scores["images"] == 1797 and original["agreement"]["value"] == 1
    assert original["accuracy"]["value"] > 0.95 > 0.6 > much["accuracy"]["value"]
    assert little["accuracy"]["low"] < little["accuracy"]["value"] < little["accuracy"]["high"]
    assert much["zeros"] > 0.9 and (tmp_path / "small" / "weights-20" / "classifier.json").exists()


def test_a_classifier_of_ones_own_and_images_some_of_which_have_no_label(cli, tmp_path):
    (tmp_path / "compressible.py").write_text(
        "from torch import nn\n"
        "def build(num_classes, width=32):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_classes))\n"
    )
    sys.path.append(str(tmp_path))
    net = build_classifier("compressible:build", {"num_classes": 10})
    save_classifier(net, tmp_path / "mine" / "stages" / "one")
    digits, half = halfstep.load_data("digits"), torch.arange(1797) % 2 == 0
    labels = digits.labels.masked_fill(half, -1)
    images = (digits.batch(torch.arange(1797)).x0.permute(0, 2, 3, 1) + 1) * 127.5
    np.savez(
        tmp_path / "few.npz", images=images.round().to(torch.uint8).numpy(), labels=labels.numpy()
    )
    words = ["mine", "--prune", 0.3, "--data", tmp_path / "few.npz", "--out", "small"]
    assert refused(cli("compress", *words), "--net compressible:build")
    status, _, err = cli("compress", *words, "--net", "compressible:build")
    assert status == 0, err
    original, pruned = json.loads((tmp_path / "small" / "accuracy.json").read_text())["rows"]
    assert (
        original["rows"] == pruned["rows"] == int((~half).sum())
        and original["agreement"]["value"] == 1
    )
    assert pruned["zeros"] > 0.25


CLASSIFIER = [ASSETS / "digits-classifier", "--prune", 0.3, "--data", "digits", "--out", "x"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["RUN"], "--prune 0.3 0.5"),
        (["RUN", "--prune", 3], "0.03"),
        (["RUN", "--prune", 0.3, "--out", "x"], "leave --out out"),
        (["RUN", "--prune", 0.3, "--steps", 8], "8 steps"),
        ([ASSETS / "digits-guided" / "0001-steps", "--prune", 0.3], "--teacher"),
        ([ASSETS / "digits-classifier", "--prune", 0.3], "--data"),
        ([*CLASSIFIER, "--no-evaluate"], "--no-evaluate is for students that sample"),
        ([*CLASSIFIER, "--split-samples", 7], "--split-samples is for students that sample"),
        ([*CLASSIFIER, "--steps", 4], "--steps is for students that sample"),
        (["nowhere", "--prune", 0.3], "nowhere"),
    ],
)
def test_what_cannot_be_compressed_is_refused(words, message, run, cli, tmp_path):
    words = [run if word == "RUN" else word for word in words]
    assert refused(cli("compress", *words), message)
    assert not list(tmp_path.iterdir())
