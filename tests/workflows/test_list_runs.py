"""Lists of runs: rows of every state, ratios from report and gate, and a page without a script."""

import re
from dataclasses import replace

import pytest

from halfstep import storage
from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.report_files import save_report
from halfstep.methods import Denoising
from halfstep.training import train
from halfstep.training.run_folder import RunFolder
from halfstep.training.stages import RunOptions
from halfstep.workflows.runs import list_runs, REFRESH, RunRow, write_runs_page
from tests.support.browser import needs_chromium, opened
from tests.support.evidence import evidence, typed
from tests.support.pages import different
from tests.support.runs import At, Crash, crash, everything, halve, job, points, teacher, TRAINING


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "a"
    halve(out)
    return out


@pytest.fixture
def place(finished, tmp_path):
    """A folder with a finished run."""
    import shutil

    shutil.copytree(finished, tmp_path / "runs" / "deep" / "a")
    return tmp_path / "runs"


def decision(ratio, steps, verdict="passed"):
    return {
        "stage": f"{steps:04d}-steps",
        "steps": steps,
        "ratio": {"value": ratio, "low": ratio - 0.1, "high": ratio + 0.1},
        "samples": 64,
        "verdict": verdict,
        "weights": "0",
    }


def write_gate(run, *decisions, best, stopped=None):
    record = {"tolerance": 1.1, "until": None, "about": {}, "best": best, "stopped": stopped}
    storage.write_json(run / "gate.json", {**record, "decisions": list(decisions)})


def test_a_finished_run(place):
    [row] = list_runs(place)
    run = place / "deep" / "a"
    assert row == RunRow(
        folder=run,
        name="deep/a",
        method="distill progressive",
        state="finished",
        done=1.0,
        steps=2,
        seconds_left=0.0,
    )
    assert [row.name for row in list_runs(str(run))] == ["a"]  # a run itself


def test_a_run_in_every_state(place):
    with pytest.raises(Crash):
        halve(place / "b", job=job(callback=At("0002-steps", 4, crash)))
    method = Denoising(updates=3)
    options = {"method": method, "training": TRAINING, "job": RunOptions(device="cpu")}
    train(teacher(), points(), place / "c", **options)
    (place / "d").mkdir()
    (place / "d" / "run.json").write_text("{")
    before = everything(place)
    with_lock = RunFolder(place / "b")
    b, c, d, a = list_runs(place)
    assert (b.state, b.steps, b.name) == ("stopped", 4, "b")
    assert b.done == pytest.approx(10 / 21) and b.seconds_left > 0
    assert (c.state, c.steps, c.method, c.done) == ("finished", None, "train denoiser", 1.0)
    assert (d.state, d.method, d.steps) == ("damaged", "", None) and "run.json" in d.damage
    assert a.state == "finished" and everything(place) == before
    record = with_lock.about
    request = record["command"], record["options"]
    held = RunFolder.begin(place / "b", *request)
    try:
        assert list_runs(place)[0].state == "running"
    finally:
        held.close()
    assert list_runs(place)[0].state == "stopped"


def test_the_ratio_is_the_report_s_and_before_it_the_gate_s(place):
    run = place / "deep" / "a"
    write_gate(run, decision(1.04, 4), decision(1.3, 2, "broken"), best="0004-steps")
    [row] = list_runs(place)
    assert (row.steps, row.ratio.value) == (4, pytest.approx(1.04)) and row.report is None
    report = typed(evidence())
    student = replace(report.students[0], steps=4, ratio=Interval(1.01, 0.99, 1.03))
    save_report(replace(report, guided=None, rows=(report.teacher, student)), run)
    assert list_runs(place)[0].ratio == Interval(1.01, 0.99, 1.03)
    other = replace(student, steps=8)
    save_report(replace(report, guided=None, rows=(report.teacher, other)), run)
    assert list_runs(place)[0].ratio.value == pytest.approx(1.04)
    write_gate(run, decision(1.3, 2, "broken"), best=None)
    [row] = list_runs(place)
    assert row.steps is None and row.ratio is None


def test_of_a_guided_student_the_largest_of_all_scales(place):
    report = typed(different())
    rows = [row for row in report.guided.rows if row.role == "student"][:1] * 3
    ratios = Interval(1.1, 1.0, 1.6), Interval(1.4, 1.3, 1.5), None
    rows = [replace(row, steps=2, floor_ratio=r) for row, r in zip(rows, ratios, strict=True)]
    guided = replace(report.guided, rows=tuple(rows))
    save_report(replace(report, guided=guided), place / "deep" / "a")
    assert list_runs(place)[0].ratio == Interval(1.4, 1.3, 1.6)  # of each end, as the gate's


def test_a_damaged_report_is_a_damaged_row(place):
    (place / "deep" / "a" / "report.json").write_text("[]")
    [row] = list_runs(place)
    assert row.state == "damaged" and "report.json" in row.damage


def test_folders_without_runs_are_refused(tmp_path):
    for place in (tmp_path, tmp_path / "no"):
        with pytest.raises(ConfigError, match="folder"):
            list_runs(place)


def pages(place, rows):
    return write_runs_page(rows, place).read_text()


def test_the_page_links_reports_and_has_no_script(place):
    run = place / "deep" / "a"
    (run / "report.html").write_text("")
    [row] = list_runs(place)
    odd = place / "a b" / "report.html"
    other = replace(row, name="<b>", report=odd, ratio=Interval(1.0349, 1.01, 1.06))
    bad = RunRow(folder=place, name="bad", state="damaged", damage="it's <broken>")
    page = pages(place, [row, replace(other, folder=place / "x"), bad])
    assert 'href="deep/a/report.html"' in page and 'href="a%20b/report.html"' in page
    assert "<b></th>" not in page and "&lt;b&gt;" in page and "it&#39;s &lt;broken&gt;" in page
    assert "<script" not in page and "refresh" not in page
    assert "1.03<small>1.01 to 1.06</small>" in page


def test_it_refreshes_itself_while_something_runs(place):
    [row] = list_runs(place)
    running = replace(row, state="running", done=0.25, seconds_left=90.0)
    page = pages(place, [row, running])
    assert f'<meta http-equiv="refresh" content="{REFRESH}">' in page
    assert "running, 25 %" in page and "width:25.0%" in page and "1.50 min" in page
    assert "1 running" in page


@needs_chromium
def test_a_browser_shows_every_row(place, tmp_path):
    [row] = list_runs(place)
    path = write_runs_page([row, replace(row, name="second", steps=None)], place)
    dom = opened(path, tmp_path / "profile")
    assert len(re.findall(r'<th scope="row">', dom)) == 2


def test_the_demo_has_its_report_beside_its_run(place):
    demo = place / "demo"
    (place / "deep" / "a").rename(place / "deep" / "distill")
    (place / "deep").rename(demo)
    report = typed(evidence())
    student = replace(report.students[0], steps=2, ratio=Interval(1.2, 1.1, 1.3))
    save_report(replace(report, guided=None, rows=(report.teacher, student)), demo)
    (demo / "report.html").write_text("")
    [row] = list_runs(place)
    assert row.report is None and row.ratio is None  # some folder with a report
    (demo / "results.json").write_text("{}")
    [row] = list_runs(place)
    assert row.report == demo / "report.html" and row.ratio.value == 1.2
