"""`compare --beside`: runs that exist, of the same teacher; teacher and data are those of the first."""

import shutil
from dataclasses import replace

import pytest
import torch

from halfstep.data import Dataset, load
from halfstep.errors import ConfigError
from halfstep.methods import Progressive
from halfstep.pipeline import Pipeline
from halfstep.training import distill, TrainingConfig
from halfstep.training.config import TrainingOptions
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.compare import compare, prepare_comparison
from halfstep.workflows.compare_beside import options_shown, read_beside
from halfstep.workflows.compare_config import (
    CompareConfig,
    ComparedTeacher,
    CompareMeasures,
    CompareOptions,
    ComparisonData,
    ComparisonFolder,
)
from tests.cli.commands import TINY, type_command
from tests.support.runs import rewritten


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALFSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A teacher; a run of it with three seeds, one with another weighting, and one of another teacher."""
    root = tmp_path_factory.mktemp("runs")
    for name, updates in (("teacher", 60), ("other", 50)):
        assert (
            type_command(["train", "denoiser", *TINY, "--out", root / name, "--updates", updates])
            == 0
        )
    halve = [
        "--data",
        "two-moons",
        "--start",
        4,
        "--batch-size",
        8,
        "--updates",
        20,
        "--tolerance",
        0,
    ]

    def made(name, teacher, *words):
        words = ["distill", "progressive", "--teacher", root / teacher, *halve, *words]
        assert type_command([*words, "--out", root / name]) == 0

    for seed in (0, 1, 2):
        made(f"a-seed{seed}", "teacher", "--seed", seed)
    made("b", "teacher", "--weighting", "snr+1")
    made("c", "other")
    return root


def config(out, *beside, **changes):
    options = CompareConfig(
        folder=ComparisonFolder(out=out, device="cpu"),
        compare=CompareOptions(beside=beside, counts=(2, 1), start=4),
        evaluation=CompareMeasures(samples=64),
    )
    return replace(options, **changes)


def test_runs_that_differ_in_their_seed_are_one_method(runs, tmp_path):
    folders = [runs / f"a-seed{seed}" for seed in (0, 1, 2)]
    found = compare(config(tmp_path / "out", *folders, runs / "b"))
    assert [(method.name, method.planned) for method in found.methods] == [("a", None), ("b", None)]
    assert found.methods[1].options["weighting"] == "snr+1"
    trained = {"batch_size": 8, "optimiser": "adamw", "learning_rate": 3e-4, "ema": 0.0}
    assert found.methods[1].options.items() >= trained.items() and found.training is None
    assert found.methods[0].learns == ("ddim", 4)
    assert [(mean.method, mean.steps, mean.seeds) for mean in found.means] == [
        ("a", 2, 3), ("b", 2, 1), ("a", 1, 3), ("b", 1, 1),
    ]  # fmt: skip
    assert found.budget is None and found.batch is None and found.seeds == 3
    for run, folder in zip(found.runs, [*folders, runs / "b"], strict=True):
        assert run.folder == folder.as_posix()
        assert run.cost.forwards == RunFolder(folder).cost["forwards"]
    assert not (tmp_path / "out/runs").exists()
    assert "99.0 %" not in (tmp_path / "out/compare.html").read_text()


def test_a_rate_that_changed_within_a_run_is_shown_with_the_first(runs, tmp_path):
    """And its method is another than that of runs whose rate stayed."""
    halfway = shutil.copytree(runs / "a-seed1", tmp_path / "a-seed1")
    place = {"stage": 1, "name": "0001-steps", "update": 3}
    change = {**place, "values": {"learning_rate": 1e-5}}
    rewritten(halfway / "run.json", lambda about: about.update(changed_options=[change]))
    teacher = Pipeline.load(runs / "teacher/stages/teacher")
    first, second = read_beside([runs / "a-seed0", halfway], teacher, [])
    assert options_shown(first.options)["learning_rate"] == 3e-4
    assert options_shown(second.options)["learning_rate"] == [3e-4, 1e-5]


def test_beside_methods_that_are_trained(runs, tmp_path):
    options = CompareOptions(
        methods=("progressive",), budget=8000, beside=(runs / "b",), counts=(2, 1), start=4
    )
    training = TrainingOptions(batch_size=8)
    found = compare(config(tmp_path / "out", compare=options, training=training))
    assert [method.name for method in found.methods] == ["progressive", "b"]
    run = RunFolder.open(tmp_path / "out/runs/progressive-seed0")
    assert run.config["teacher"] == str(runs / "teacher") and run.config["data"] == "two-moons"
    assert run.options["teacher"] == RunFolder(runs / "b").options["teacher"]


def test_the_same_students_score_the_same(runs, tmp_path):
    copied = shutil.copytree(runs / "b", tmp_path / "b")
    found = compare(config(tmp_path / "out", runs / "b", copied))
    names = [method.name for method in found.methods]
    assert names == ["b", f"{tmp_path.name}/b"]  # two of one name have their places
    for first, second in zip(
        *([m for m in found.means if m.method == n] for n in names), strict=True
    ):
        assert replace(first, method="") == replace(second, method="")
    assert {verdict.answer for verdict in found.verdicts} == {"cannot tell"}


def test_a_count_that_a_run_lacks_is_left_out(runs, tmp_path):
    options = CompareOptions(beside=(runs / "b",), counts=(8, 2), start=4)
    found = compare(config(tmp_path / "out", compare=options))
    assert [mean.steps for mean in found.means] == [2] and len(found.verdicts) == 1
    options = replace(options, counts=(8,))
    with pytest.raises(ConfigError, match="8 steps"):
        compare(config(tmp_path / "none", compare=options))


def test_another_teacher_is_refused(runs, tmp_path):
    with pytest.raises(ConfigError, match="another teacher"):
        prepare_comparison(config(tmp_path / "out", runs / "b", runs / "c"))
    given = ComparedTeacher(teacher=str(runs / "other"))
    with pytest.raises(ConfigError, match="another teacher"):
        prepare_comparison(config(tmp_path / "out", runs / "b", teacher=given))


def test_a_run_stands_in_the_table_once(runs, tmp_path):
    again = runs / "teacher" / ".." / "b"
    with pytest.raises(ConfigError, match="twice"):
        prepare_comparison(config(tmp_path / "out", runs / "b", again))
    shutil.copytree(runs / "b", tmp_path / "out/runs/progressive-seed0")
    options = CompareOptions(
        methods=("progressive",), beside=(tmp_path / "out/runs/progressive-seed0",),
        counts=(2, 1), start=4, budget=5 * 8 * 200,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="twice"):
        prepare_comparison(
            config(tmp_path / "out", compare=options, training=TrainingOptions(batch_size=8))
        )


def test_what_is_no_run_of_students_is_refused(runs, tmp_path):
    given = ComparedTeacher(teacher=str(runs / "teacher"))
    with pytest.raises(ConfigError, match="no run of students"):
        prepare_comparison(config(tmp_path / "out", runs / "teacher", teacher=given))
    with pytest.raises(ConfigError, match="holds no run"):
        prepare_comparison(config(tmp_path / "out", tmp_path))


def test_a_run_from_python_needs_its_data_named(runs, tmp_path):
    """It was given tensors, and its config.toml has neither their name nor the teacher's place."""
    teacher = Pipeline.load(runs / "teacher/stages/teacher")
    out, points = tmp_path / "run", Dataset(load("two-moons").batch(torch.arange(200)).x0)
    distill(
        teacher, points, out, method=Progressive(start=4, stop=1, updates=(2,)),
        training=TrainingConfig(batch_size=8),
    )  # fmt: skip
    place = ComparedTeacher(teacher=str(runs / "teacher"))
    with pytest.raises(ConfigError, match="--data"):
        prepare_comparison(config(tmp_path / "out", out, teacher=place))
    data = ComparisonData(data="two-moons")
    found = compare(config(tmp_path / "out", out, teacher=place, dataset=data))
    assert [mean.method for mean in found.means] == ["run", "run"]
