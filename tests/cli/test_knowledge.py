"""`halfstep distill knowledge`: from folders of classifiers to a student beside its teacher."""

import tomllib
from functools import partial

import pytest
import torch

from halfstep.cli import main
from halfstep.data import load
from halfstep.errors import CheckpointError
from halfstep.methods import KnowledgeDistillation
from halfstep.methods.classifiers.terms import HardLabels, SoftTargets
from halfstep.models.classifiers.checkpoint import load_classifier, save_classifier
from halfstep.models.classifiers.registry import build_classifier, label_smoothing
from halfstep.training import distill_classifier
from halfstep.training.run_folder import RunFolder
from halfstep.training.stages import RunOptions
from tests.support.runs import everything, rewritten

QUICK = [
    "--updates",
    3,
    "--batch-size",
    16,
    "--log-every",
    1,
    "--device",
    "cpu",
    "--net",
    "toy-student",
]


@pytest.fixture
def cli(cli, tmp_path):
    """Types what follows `halfstep distill knowledge`, beside three teachers."""
    for name, num_classes, seed in (("t0", 10, 0), ("t1", 10, 1), ("few", 3, 0)):
        torch.manual_seed(seed)
        config = {"channels": 1, "num_classes": num_classes, "size": 8}
        save_classifier(build_classifier("features", config), tmp_path / name)
    return partial(cli, "distill", "knowledge")


def typed(*words):
    """The exit status of another verb."""
    return main(list(map(str, words)))


def test_a_run_beside_its_teachers(cli, tmp_path):
    words = ["--teacher", "t0", "t1", "--data", "digits", "--out", "r", *QUICK, "--cache", "kept"]
    words += ["--recipe-config", "temperature", 3, "soft_weight", "1..0"]
    status, out, err = cli(*words)
    assert (status, err) == (0, "")
    for line in (
        "teacher   t0, t1: 103,892 parameters",
        "student   toy-student: 3,610 parameters",
        "at        r/stages/student",
        "on        what it was trained with, all 1,797 images; 95 % intervals",
    ):
        assert line in out
    for label in ("student", "teacher", "agree"):
        assert any(line.startswith(label) and " % (" in line for line in out.splitlines()[-4:])
    config = tomllib.loads((tmp_path / "r" / "config.toml").read_text())
    assert config["recipe_config"] == {"temperature": "3", "soft_weight": "1..0"}
    [first, *_] = RunFolder(tmp_path / "r").metrics
    assert first["weights"] == {"soft": pytest.approx(2 / 3), "hard": 0.1}
    assert load_classifier(tmp_path / "r").config["num_classes"] == 10
    assert (tmp_path / "kept" / "view-0000.safetensors").exists()
    before = everything(tmp_path / "r" / "stages")
    status, out, _ = cli(*words)
    assert status == 0 and "this run was finished before" in out
    assert everything(tmp_path / "r" / "stages") == before
    assert cli("--config", "r/config.toml")[0] == 0


def test_rehearsed(cli, tmp_path):
    status, out, _ = cli("--teacher", "t0", "--data", "digits", "--out", "r", *QUICK, "--dry-run")
    assert status == 0 and "student" in out and not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        ("--data digits --out r", "needs --teacher FOLDER"),
        ("--teacher nowhere --data digits --out r", "'nowhere' holds no classifier"),
        ("--teacher t0 --data digits --out r --recipe hintn", "perhaps you meant 'hinton'"),
        (
            "--teacher t0 --data digits --out r --recipe-config alpha 1",
            "no option of the recipe 'hinton'",
        ),
        ("--teacher t0 --data digits --out r --net shalow", "perhaps you meant 'shallow'"),
        ("--teacher few --data digits --out r", "the teacher knows 3 classes and the data has 10"),
        ("--teacher t0 few --data digits --out r", "3 and 10 classes"),
        ("--teacher t0 --data two-moons --out r", "classifiers are taught on images"),
        ("--teacher t0 --data digits --out r --precision bf16", "leave it out"),
        (
            "--teacher t0 --data digits --out r --validate digits",
            "the held-out data is the training data",
        ),
        ("--teacher t0 --data digits --out r --views 3", "--augment flip crop"),
        ("--teacher t0 --data digits --out r --recipe features", "give it pairs of parts"),
    ],
)
def test_what_cannot_be(cli, tmp_path, words, message):
    status, _, err = cli(*words.split(), "--device", "cpu")
    assert status == 2 and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "r").exists()


def test_features_from_the_line(cli, tmp_path):
    pairs = '[["hidden", "hidden"]]'
    words = ["--recipe", "features", "--recipe-config", "pairs", pairs, "feature_weight", 0.1]
    status, _, err = cli("--teacher", "t0", "--data", "digits", "--out", "r", *QUICK, *words)
    assert (status, err) == (0, "")
    assert "features" in RunFolder(tmp_path / "r").metrics[0]["terms"]


def test_few_labels_views_and_a_share_held_out(cli, tmp_path):
    words = ["--teacher", "t0", "--data", "digits", "--out", "r", *QUICK, "--labels-per-class", 5]
    words += [
        "--unlabelled",
        "--augment",
        "crop",
        "--views",
        3,
        "--cache",
        "kept",
        "--validate",
        0.15,
    ]
    status, out, err = cli(*words)
    assert (status, err) == (0, ""), out
    assert "on        the 15 % held out, which it has not seen, all" in out
    assert len(list((tmp_path / "kept").glob("view-*.json"))) == 3
    words = [
        "--teacher",
        "t0",
        "--data",
        "digits",
        "--out",
        "m",
        *QUICK,
        "--augment",
        "mixup",
        "flip",
    ]
    assert cli(*words, "--recipe", "patient-teacher")[0] == 0
    status, _, err = cli(*words[:5], "n", *words[6:], "--cache", "mixed")
    assert status == 2 and "give the augmentation a number of views" in err


def test_a_smoothed_teacher_is_noted_and_so_is_its_export(cli, tmp_path):
    learnt = ["--data", "digits", "--net", "toy-student", "--updates", 1, "--batch-size", 4]
    for share in (0.1, 0.0):
        words = [*learnt, "--label-smoothing", share, "--device", "cpu", "--out", f"smooth-{share}"]
        assert typed("train", "classifier", *words) == 0
    assert typed("export", "smooth-0.1", "--out", "alone") == 0
    teachers = ("smooth-0.1", "smooth-0.1/stages/classifier", "alone", "smooth-0.0")
    for k, teacher in enumerate(teachers):
        words = ["--teacher", teacher, "--data", "digits", *QUICK, "--out", f"of-{k}"]
        status, out, err = cli(*words)
        noted = "the teacher was trained with label smoothing 0.1, which takes away" in out + err
        assert (status, noted) == (0, teacher != "smooth-0.0"), out + err
    taught = load_classifier(tmp_path / "smooth-0.1")  # a start with a share of its own
    data, job = load("digits"), RunOptions(device="cpu")
    method = partial(KnowledgeDistillation, updates=0)
    for share, terms in ((0.2, (HardLabels(smoothing=0.2),)), (0.0, (SoftTargets(),))):
        out = tmp_path / f"on-{share}"
        teacher = load_classifier(tmp_path / "t0")
        distill_classifier(teacher, taught, data, out, method=method(terms=terms), job=job)
        assert label_smoothing(load_classifier(out)) == share
    words = ["--teacher", "t0", "alone", "--data", "digits", *QUICK, "--out", "of-both"]
    status, out, err = cli(*words)
    assert status == 0 and "teacher 2 of 2 was trained with label smoothing 0.1" in out + err


@pytest.mark.parametrize("share", [None, "x", 1.5])
def test_a_share_that_is_none_is_a_damaged_file(cli, tmp_path, share):
    path = tmp_path / "t0" / "classifier.json"
    rewritten(path, lambda about: about.update(label_smoothing=share))
    with pytest.raises(CheckpointError, match="is damaged: label_smoothing"):
        load_classifier(tmp_path / "t0")
