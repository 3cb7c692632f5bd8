"""`halfstep demo --guided`: students that come with halfstep, against their guided teacher."""

import json
import math
import tomllib
from importlib.resources import files

import pytest

from halfstep.cli import main
from halfstep.hub.bundled import bundled_cost, bundled_students, bundled_teacher
from halfstep.methods.diffusion.guided import GuidedOptions
from halfstep.workflows.demo import DemoConfig

SCALES, COUNTS = (1.0, 1.3, 2.0, 3.0), (8, 4, 2, 1)
NUMBERS = {
    "frechet_to_guided_teacher",
    "floor",
    "times_floor",
    "rmse_to_guided_teacher",
    "frechet_to_data",
    "inception_score",
}


def shown(out, *more):
    assert main(["demo", "--guided", "--device", "cpu", "--out", str(out), *more]) == 0
    return json.loads((out / "results.json").read_text())


def test_a_row_for_every_scale_and_number_of_steps(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HALFSTEP_CACHE", str(tmp_path / "cache"))
    results = shown(tmp_path / "d", "--quick", "--n", "80")
    rows = results["guided"]
    assert [(row["guidance_scale"], row["steps"]) for row in rows] == [
        (scale, steps) for scale in SCALES for steps in COUNTS
    ]
    for row in rows:
        assert set(row) == {"guidance_scale", "steps", "calls"} | NUMBERS
        assert row["calls"] == row["steps"] and all(math.isfinite(row[key]) for key in NUMBERS)
        assert row["times_floor"] == pytest.approx(row["frechet_to_guided_teacher"] / row["floor"])
        assert 0 < row["rmse_to_guided_teacher"] < 0.15
    assert len({row["floor"] for row in rows}) == len(SCALES)
    assert results["samples"] == results["reference"]["samples"] == 8
    output = capsys.readouterr().out
    assert (
        "--from-scratch distils them" in output and "guidance 1 to 3 in one call a step" in output
    )
    run = json.loads((tmp_path / "d" / "report.json").read_text())["run"]
    assert run["config"]["updates"] == 20_000 and run["cost"]["halvings"]["updates"] == 28_400
    page = (tmp_path / "d" / "slider.html").read_text()
    assert "128" in page and "http://" not in page and "https://" not in page
    assert "slider.html" in (tmp_path / "d" / "report.html").read_text()


def test_the_shipped_students_are_the_presets():
    students, teacher = bundled_students(), bundled_teacher()
    assert [len(one.times[0]) - 1 for one in students] == list(COUNTS)
    for one in students:
        assert one.guidance_range == (1.0, 3.0) and one.class_names == teacher.class_names
        assert one.times[0][0] == 1.0 and one.times[0][-1] == 0.0
    preset = tomllib.loads((files("halfstep.presets") / "digits-guided.toml").read_text())
    expected = {
        key: preset[key] for key in ("guidance_range", "start", "updates", "halving_updates")
    }
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in expected.items()}
    method = GuidedOptions(**options).build()
    assert bundled_cost("digits-guided")["updates"] == sum(
        stage.updates for stage in method.plan(teacher)
    )


@pytest.mark.slow
def test_they_are_as_near_to_the_guided_teacher_as_was_wanted(tmp_path, monkeypatch):
    """At most 1.5, 2, 3 and 5 times the teacher's own distance (10,000 samples: docs/results)."""
    monkeypatch.setenv("HALFSTEP_CACHE", str(tmp_path / "cache"))
    limits = dict(zip(COUNTS, (1.5, 2, 3, 5), strict=True))
    for row in shown(tmp_path / "d", "--n", "2000")["guided"]:
        assert row["times_floor"] <= limits[row["steps"]], row


def test_the_record_says_how_they_were_made(tmp_path, capsys):
    """A seed or a tenth of the updates would be of a training that there is none of."""
    assert main(["demo", "--guided", "--seed", "3", "--out", str(tmp_path / "d")]) == 2
    assert "--from-scratch" in capsys.readouterr().err and not (tmp_path / "d").exists()


def test_its_own_folder():
    assert str(DemoConfig(guided=True).folder) == "runs/demo-guided"
    assert str(DemoConfig().folder) == "runs/demo"


@pytest.mark.slow
def test_from_scratch_distils_them(tmp_path):
    results = shown(tmp_path / "d", "--quick", "--n", "320", "--from-scratch")
    assert [row["steps"] for row in results["guided"]] == list(COUNTS) * len(SCALES)
    assert (tmp_path / "d" / "distill" / "stages" / "guided").is_dir()
    assert results["cost"]["halvings"]["updates"] > 100
