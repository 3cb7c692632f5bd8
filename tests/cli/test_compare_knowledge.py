"""`halfstep compare knowledge`: recipes beside a plain student, over seeds, on the same test images."""

import json
import tomllib
from functools import partial

import pytest
import torch

from halfstep.cli import main
from halfstep.data import load
from halfstep.evaluation.method_files import save_comparison
from halfstep.evaluation.metrics.classification import score_classifier
from halfstep.evaluation.recipe_comparison import read_comparison
from halfstep.models.classifiers.checkpoint import load_classifier, save_classifier
from halfstep.models.classifiers.registry import build_classifier
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.compare_classifiers import (
    compare_classifiers,
    CompareClassifiersConfig,
    ComparedRecipeOptions,
    listed_recipes,
    split_recipe,
)
from tests.cli.commands import SHIPPED
from tests.support.comparisons import comparison

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
SOME = ["--teacher", "t", "--data", "digits", *QUICK, "--labels-per-class", 4]


@pytest.fixture
def cli(cli, tmp_path):
    """Types what follows `halfstep compare knowledge`, beside a teacher."""
    torch.manual_seed(0)
    config = {"channels": 1, "num_classes": 10, "size": 8}
    save_classifier(build_classifier("features", config), tmp_path / "t")
    return partial(cli, "compare", "knowledge")


def bits(folder):
    """The weights of the student in a run."""
    return load_classifier(folder / "stages" / "student").state_dict()


def test_recipes_beside_the_plain_student(cli, tmp_path):
    recipes = ["--recipes", "hinton", "logits", "--temperatures", 2, 4, "--seeds", 2, "--seed", 5]
    status, out, err = cli(*SOME, *recipes, "--out", "r")
    assert (status, err) == (0, "")
    comparison = read_comparison(tmp_path / "r")
    names = [student.name for student in comparison.students]
    assert names == ["plain", "hinton T=2", "hinton T=4", "logits"]
    assert [gain.student for gain in comparison.gains] == names[1:]
    assert all(gain.control == "plain" for gain in comparison.gains)
    assert comparison.gain_level == pytest.approx(1 - 0.05 / 3)
    assert [result.seed for result in comparison.student("logits").seeds] == [5, 6]
    assert comparison.images == 359  # a fifth of 1,797
    assert comparison.student("plain").terms == ("hard 1",)
    assert comparison.student("hinton T=2").terms == ("soft 0.9", "hard 0.1")
    for line in (
        "right, %",
        "hinton T=4",
        "the control",
        "cannot tell",
        "page      r/compare.html",
    ):
        assert line in out
    assert "soft' has the weight 0" not in out
    assert out.count("the term 'hard' has the weight 0") == 1  # of the logits, once for both seeds
    assert (tmp_path / "r" / "compare.html").read_text().startswith("<!doctype html>")
    # Every part is a run of `distill knowledge`, and its files say so.
    run = RunFolder.open(tmp_path / "r" / "hinton-T-4" / "seed-6")
    assert run.about["command"] == "distill knowledge" and run.options["seed"] == 6
    typed = tomllib.loads((run.folder / "config.toml").read_text())
    assert typed["recipe_config"] == {"temperature": "4"} and typed["validate"] == "0.2"
    accuracy = comparison.student("hinton T=4").seeds[1].accuracy
    assert main(["distill", "knowledge", "--config", str(run.folder / "config.toml")]) == 0
    assert accuracy * 359 == pytest.approx(round(accuracy * 359))


def test_the_numbers_are_those_of_the_runs(cli, tmp_path):
    """A run by hand with the same options is the same to the bit, and so is the count of right answers."""
    assert cli(*SOME, "--recipes", "hinton", "--seeds", 2, "--out", "r")[0] == 0
    words = ["distill", "knowledge", *SOME, "--seed", 1, "--validate", 0.2, "--out", "hand"]
    assert main(list(map(str, words))) == 0
    ours, theirs = bits(tmp_path / "r" / "hinton" / "seed-1"), bits(tmp_path / "hand")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    held_out = load("digits").apart(0.2)[1]
    scores = score_classifier(
        load_classifier(tmp_path / "hand"), held_out, teacher=load_classifier(tmp_path / "t")
    )
    table = read_comparison(tmp_path / "r")
    result = table.student("hinton").seeds[1]
    assert (result.accuracy, result.agreement) == (scores.accuracy.value, scores.agreement.value)
    assert result.accuracy != result.agreement
    row, plain, (gain,) = table.student("hinton"), table.student("plain"), table.gains
    differences = [a.accuracy - b.accuracy for a, b in zip(row.seeds, plain.seeds, strict=True)]
    assert gain.differences == pytest.approx(differences)
    assert gain.interval.value == pytest.approx(sum(differences) / 2)
    assert gain.alone - gain.control_alone == pytest.approx(gain.interval.value)


def test_the_same_command_goes_on_with_more_recipes_and_seeds(cli, tmp_path):
    assert cli(*SOME, "--recipes", "hinton", "--seeds", 1, "--out", "r")[0] == 0
    before = bits(tmp_path / "r" / "hinton" / "seed-0")
    first = read_comparison(tmp_path / "r")
    assert first.gains[0].verdict == "cannot tell"
    log = tmp_path / "r" / "hinton" / "seed-0" / "metrics.jsonl"
    lines = log.read_text()
    more = ["--recipes", "hinton", "tang,hard_share=0.25", "--seeds", 2, "--out", "r"]
    status, out, _ = cli(*SOME, *more)
    assert status == 0 and "One seed decides nothing" not in out
    again = read_comparison(tmp_path / "r")
    assert again.student("hinton").seeds[0] == first.student("hinton").seeds[0]
    assert again.student("tang hard_share=0.25").terms == ("logits 0.75", "hard 0.25")
    assert log.read_text() == lines
    after = bits(tmp_path / "r" / "hinton" / "seed-0")
    assert all(torch.equal(before[name], after[name]) for name in before)
    fewer = ["--recipes", "hinton", "--seeds", 2, "--out", "r"]
    status, _, err = cli(*SOME, *fewer)
    assert status == 2 and "also has tang hard_share=0.25 (seeds 0 and 1)" in err
    assert read_comparison(tmp_path / "r") == again
    words = ["compare", "--methods", "progressive", "--budget", 900_000, "--data", "digits"]
    status, _, err = cli.func(*words, "--counts", 16, "--teacher", SHIPPED, "--out", "r")
    assert status == 2 and "recipes of knowledge distillation" in err
    status, _, err = cli(*SOME, *more, "--learning-rate-schedule", "constant")
    assert status == 2 and "learning_rate_schedule" in err.replace("-", "_")


def test_a_comparison_of_methods_is_not_written_over(cli, tmp_path):
    (tmp_path / "m").mkdir()
    save_comparison(comparison({"a": {4: [0.1]}}), tmp_path / "m")
    before = (tmp_path / "m" / "compare.json").read_bytes()
    status, _, err = cli(*SOME, "--out", "m")
    assert status == 2 and "holds a comparison of methods" in err
    assert (tmp_path / "m" / "compare.json").read_bytes() == before


def test_a_dry_run_writes_nothing_and_knows_what_is_done(cli, tmp_path):
    words = [*SOME, "--recipes", "hinton", "dist", "--temperatures", 2, "--seeds", 2, "--out", "r"]
    status, out, _ = cli(*words, "--dry-run")
    assert status == 0 and not (tmp_path / "r").exists()
    assert "dist T=2" in out and "learns    plain: hard 1" in out
    (row,) = [line.split() for line in out.splitlines() if line.startswith("hinton T=2")]
    # Two runs of 3 updates of 16: the student's forward and backward, and the teacher's forward.
    assert row[2:6] == ["2", "0", "6", "384"]
    assert cli(*words)[0] == 0
    _, out, _ = cli(*words, "--dry-run")
    assert [line.split()[3] for line in out.splitlines() if line.startswith("hinton T=2")] == ["2"]
    assert "time      about 0 s" in out


def test_logits_are_kept_once_for_each_choice_of_images(cli, tmp_path):
    words = [*SOME, "--recipes", "hinton", "dist", "--seeds", 2]
    assert cli(*words, "--out", "r")[0] == 0
    assert (
        len(list((tmp_path / "r" / "teacher-logits").iterdir())) == 2
    )  # a seed has its own images
    assert cli(*words, "--no-logits", "--out", "s")[0] == 0
    assert not (tmp_path / "s" / "teacher-logits").exists()
    kept, asked = (read_comparison(tmp_path / name) for name in "rs")
    assert kept.gains == asked.gains


def test_a_teacher_that_may_know_the_test_images_is_named(cli, tmp_path):
    words = ["train", "classifier", "--data", "digits", "--net", "toy-student", "--updates", 1]
    words += ["--batch-size", 8, "--device", "cpu"]
    assert main([*map(str, words), "--out", "all"]) == 0
    assert main([*map(str, words), "--validate", "0.2", "--out", "most"]) == 0
    for teacher, caution in (("all", True), ("most", False), ("most/stages/classifier", False)):
        options = [*SOME[2:], "--teacher", teacher, "--recipes", "hinton", "--seeds", 1]
        status, out, _ = cli(*options, "--out", f"r-{teacher.replace('/', '-')}")
        assert status == 0 and ("may know the test images" in out) == caution
    status, out, _ = cli(*options, "--validate", "digits", "--out", "same")
    assert status == 2  # the training images themselves are refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipes", "hint"], "perhaps you meant 'hinton'"),
        (["--recipes", "hinton", "hinton"], "twice"),
        (["--recipes", "hinton,temperature=2", "--temperatures", 2], "leave it out"),
        (["--recipes", "logits", "--temperatures", 2], "leave it out"),
        (["--recipes", "hinton,hard"], "with options after commas"),
        (["--recipes", "hinton,softness=2"], "softness"),
        (["--recipes", ""], "with options after commas"),
        (["--augment", "mixup"], "mixup"),
        (["--temperatures", 0], "above 0"),
        (["--seeds", 0], "at least 1"),
        (["--margin", 1], "below 1"),
        (["--validate", 2], "share"),
        (["--recipes", "hinton,soft_weight=1", "hinton soft_weight=1"], "recipe"),
    ],
)
def test_one_sentence_and_no_folder(cli, tmp_path, words, said):
    status, _, err = cli(*SOME, *words, "--out", "r")
    assert status == 2 and err.count("\n") == 1 and said in err, err
    assert not (tmp_path / "r").exists()


def test_all_runs_are_tried_before_the_first_begins(cli, tmp_path):
    words = [*SOME, "--recipes", "hinton", "logits", "--seeds", 1, "--out", "r"]
    (tmp_path / "r" / "logits" / "seed-0").mkdir(parents=True)
    (tmp_path / "r" / "logits" / "seed-0" / "mine.txt").write_text("kept")
    status, _, err = cli(*words)
    assert status == 2 and "mine.txt" in err
    assert not (tmp_path / "r" / "plain").exists()


def test_names_and_options_of_recipes():
    assert split_recipe("hinton") == ("hinton", {})
    assert split_recipe("mine:losses,weight=0.1..0,pairs=[1,2]") == (
        "mine:losses", {"weight": "0.1..0", "pairs": "[1,2]"},
    )  # fmt: skip
    options = ComparedRecipeOptions(
        recipes=("hinton", "logits", "dist,temperature=3"), temperatures=(0.5, 4)
    )
    assert listed_recipes(options) == {
        "hinton T=0.5": ("hinton", {"temperature": "0.5"}),
        "hinton T=4": ("hinton", {"temperature": "4"}),
        "logits": ("logits", {}),
        "dist temperature=3": ("dist", {"temperature": "3"}),
    }


def test_from_python_as_from_the_command_line(cli, tmp_path):
    from halfstep.config.fields import build

    assert cli(*SOME, "--seeds", 1, "--out", "typed")[0] == 0
    options = {
        "teacher": (tmp_path / "t",), "data": "digits", "updates": 3, "batch_size": 16, "log_every": 1,
        "device": "cpu", "net": "toy-student", "labels_per_class": 4, "seeds": 1, "out": tmp_path / "called",
    }  # fmt: skip
    called = compare_classifiers(build(CompareClassifiersConfig, options))
    assert called.gains == read_comparison(tmp_path / "typed").gains
    assert json.loads((tmp_path / "called" / "compare.json").read_text())["images"] == 359
