"""How far a run is, and the seconds that it will take, of runs whose speeds are known."""

import json

import pytest

from halfstep import storage
from halfstep.training.run_folder import RunFolder
from halfstep.training.run_progress import RunProgress, seconds_left, share_done, Work
from tests.support.runs import At, Crash, crash, halve, job, rewritten

STAGES = [Work(100, 100, 5), Work(200, 50, 5), Work(40, 0, 10)]


def test_the_share_is_of_the_cost():
    # 500 of 500, 250 of 1000, 0 of 400
    assert share_done(STAGES) == pytest.approx(750 / 1900)
    assert share_done([]) == share_done([Work(0, 0, 5)]) == 0
    assert share_done([Work(4, 9, 1), Work(4, 0, 1)]) == 0.5  # extended by another command


def test_the_updates_left_take_as_long_as_their_cost():
    # 0.2 s an update of 5 forwards: 150 of those, and 40 twice as dear
    assert seconds_left(STAGES, 0.2 / 5) == pytest.approx(150 * 0.2 + 40 * 0.4)
    assert seconds_left([Work(4, 9, 1)], 1.0) == 0


def test_walks_that_are_kept_are_part_of_the_cost():
    """Walks of 600 forwards of a batch, and 100 updates of 3: they are made before the first update."""
    assert share_done([Work(100, 0, 3, once=600)]) == 0
    assert share_done([Work(100, 50, 3, once=600)]) == pytest.approx(750 / 900)
    assert seconds_left([Work(100, 0, 3, once=600)], 0.1) == pytest.approx(90)
    assert seconds_left([Work(100, 50, 3, once=600)], 0.1) == pytest.approx(15)


@pytest.fixture
def halted(tmp_path):
    """A run of stages of 7 and 14 updates, stopped at the fourth update of its second, after a checkpoint."""
    with pytest.raises(Crash):
        halve(tmp_path, job=job(callback=At("0002-steps", 4, crash)))
    return tmp_path


def test_a_run_that_was_stopped(halted):
    for stem in sorted((halted / "checkpoints").glob("01-*.json")):
        rewritten(stem, lambda about: about.update(seconds=2.0 * about["update"]))
    progress = RunProgress.of(RunFolder.open(halted))
    assert progress.done == pytest.approx((7 + 3) / 21) and not progress.finished
    assert progress.seconds_left == pytest.approx(2.0 * (14 - 3))


def test_walks_that_were_there_before_say_nothing_of_the_speed(halted):
    """The log's pace does: at 12 samples a second an update of 6 takes half a second."""
    rewritten(halted / "run.json", lambda run: run["plan"]["stages"][1].update(once=6_000))
    log = halted / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    paced = [line | ({"samples_per_second": 12.0} if "loss" in line else {}) for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in paced))
    assert RunProgress.of(RunFolder.open(halted)).seconds_left == pytest.approx(11 * 0.5)


def test_before_its_first_checkpoint_the_stage_before_tells_the_speed(halted):
    for path in (halted / "checkpoints").iterdir():
        path.unlink()
    run = RunFolder.open(halted)
    [finished] = [line for line in run.metrics if "seconds" in line and "updates" in line]
    each = finished["seconds"] / 7
    # Without a checkpoint the run's log says that three updates were done.
    assert RunProgress.of(run).seconds_left == pytest.approx(11 * each)


def test_a_new_run_says_no_time(halted):
    for path in (halted / "checkpoints").iterdir():
        path.unlink()
    (halted / "metrics.jsonl").unlink()
    rewritten(halted / "run.json", lambda record: record["plan"]["stages"].pop(0))
    progress = RunProgress.of(RunFolder.open(halted))
    assert progress == RunProgress(0.0, False, None)


def test_a_finished_run_and_one_that_its_gate_ended(tmp_path, halted):
    gate = {"tolerance": 1.1, "until": None, "about": {}, "best": None, "decisions": []}
    storage.write_json(halted / "gate.json", {**gate, "stopped": None})
    assert not RunProgress.of(RunFolder.open(halted)).finished
    storage.write_json(halted / "gate.json", {**gate, "stopped": "it is worse"})
    assert RunProgress.of(RunFolder.open(halted)) == RunProgress(1.0, True, 0.0)
    halve(tmp_path / "b")
    assert RunProgress.of(RunFolder.open(tmp_path / "b")) == RunProgress(1.0, True, 0.0)


def test_a_run_from_before_costs_were_recorded(halted):
    def forget(record):
        for stage in record["plan"]["stages"]:
            del stage["forwards"]

    rewritten(halted / "run.json", forget)
    assert RunProgress.of(RunFolder.open(halted)).done == pytest.approx(10 / 21)
