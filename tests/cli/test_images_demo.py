"""`halfstep demo --data fashion-mnist`: students that the repository has, and their stored report."""

import json
from dataclasses import replace

import pytest
import torch

from halfstep.errors import ConfigError
from halfstep.evaluation.report_files import read_report, save_report
from halfstep.hub.bundled import bundled_teacher
from halfstep.workflows import demo_files, demo_images
from halfstep.workflows.demo import DemoConfig, prepare_demo
from halfstep.workflows.demo_guided import prepare_guided_demo
from tests.support.evidence import evidence, pictures, typed
from tests.support.runs import refused

COUNTS = (8, 4, 2, 1)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The teacher of digits in place of one of clothes, as its own student, with a made-up report."""
    teacher, folder = bundled_teacher(), tmp_path / "weights"
    teacher.save(folder / "fashion-mnist-teacher")
    for steps in COUNTS:
        student = replace(teacher, times=(teacher.grid(steps, "ddim"),))
        student.save(folder / "fashion-mnist-students" / f"{steps:04d}-steps")
    save_report(typed(evidence(), pictures()), folder / "fashion-mnist-students")
    monkeypatch.setattr(demo_images, "models_beside", folder.joinpath)
    return folder


def test_samples_are_drawn_and_scores_are_those_that_were_stored(
    cli, models, tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr(demo_files, "same_seeds", lambda *arguments: drawn.extend(arguments))
    status, out, err = cli("demo", "--data", "fashion-mnist", "--out", tmp_path / "d")
    assert (status, err) == (0, "")
    stored = read_report(models / "fashion-mnist-students")
    results = json.loads((tmp_path / "d" / "results.json").read_text())
    assert [row["frechet_distance"] for row in results["students"]] == [
        row.distances.frechet_distance.value for row in stored.students
    ]
    assert read_report(tmp_path / "d") == stored
    assert "students  of 8, 4, 2 and 1 steps, from the repository" in out
    assert f"measured on {stored.provenance.date}, not now, by {stored.provenance.command}" in (
        " ".join(out.split())
    )
    (path, (label, full), rows), teacher = drawn, bundled_teacher()
    assert path == tmp_path / "d" / "samples.png" and label == "teacher, 64 steps"
    assert torch.equal(full, teacher.sample(12, steps=64))
    assert [row[0] for row in rows] == ["8 steps", "4 steps", "2 steps", "1 step"]
    for steps, (_, student, other) in zip(COUNTS, rows, strict=True):
        assert torch.equal(student, teacher.sample(12, steps=steps, seed=0))
        assert torch.equal(student, other)
    assert (tmp_path / "d" / "report.html").exists()


def test_nothing_is_trained_so_its_options_are_refused(cli, models, tmp_path):
    for words in (["--quick"], ["--guided"], ["--from-scratch"], ["--seed", 1], ["--n", 9]):
        got = cli("demo", "--data", "fashion-mnist", *words, "--out", tmp_path / "d")
        assert refused(got, f"{words[0]} is for the digits")
    assert not (tmp_path / "d").exists()


def test_a_package_without_the_repository_says_where_the_models_are(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("halfstep.hub.bundled.REPOSITORY", tmp_path / "site-packages")
    got = cli("demo", "--data", "fashion-mnist", "--out", tmp_path / "d")
    assert refused(got, "in the repository of halfstep, not in the package: clone it")


@pytest.mark.parametrize("prepare", [prepare_demo, prepare_guided_demo])
def test_the_demos_of_digits_refuse_other_data(prepare, tmp_path):
    with pytest.raises(ConfigError, match="prepare_images_demo"):
        prepare(DemoConfig(data="fashion-mnist", out=tmp_path / "d"))
    assert not (tmp_path / "d").exists()
