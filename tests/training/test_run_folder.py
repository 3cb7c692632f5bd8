"""RunFolder: what a run says of itself, and its students."""

import shutil
from pathlib import Path

import pytest
import torch

from halfstep import RunFolder, storage
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import CheckpointError, ConfigError
from halfstep.identity import digest_of
from halfstep.methods import MultistepConsistency, Progressive
from tests.support.runs import halve


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "r"
    halve(out)
    return out


def test_a_run_says_what_it_was_made_with_and_what_it_cost(run):
    opened = RunFolder.open(run)
    assert opened.config == {} and opened.about["command"] == "distill progressive"
    assert (opened.options["start"], opened.options["stop"], opened.options["batch_size"]) == (
        8,
        2,
        6,
    )
    assert [stage.name for stage in opened.stages] == ["0004-steps", "0002-steps"]
    cost = opened.cost
    assert cost["updates"] == 7 + 14  # to 2 steps and fewer take twice as many
    assert cost["forwards"] == 21 * 6 * 5  # of the student 3, of the teacher 2
    assert {line["stage"] for line in opened.losses} == {"0004-steps", "0002-steps"}
    assert all(line.keys() == {"stage", "update", "loss", "rate"} for line in opened.losses)


def test_students_come_with_the_most_steps_first(run):
    opened = RunFolder.open(run)
    four, two = opened.students()
    assert [len(four.times[0]), len(two.times[0])] == [5, 3]
    assert torch.equal(opened.stage("0002-steps").sample(3), two.sample(3))
    assert opened.teacher_times == uniform(8)
    assert opened.about["plan"]["stages"] == [
        {
            "name": "0004-steps",
            "steps": 4,
            "updates": 7,
            "forwards": 5,
            "once": 0,
            "teacher_steps": 8,
        },
        {
            "name": "0002-steps",
            "steps": 2,
            "updates": 14,
            "forwards": 5,
            "once": 0,
            "teacher_steps": 4,
        },
    ]
    assert opened.halved == {4, 2}
    assert opened.stage("nonsense") is None and opened.first_student() is None


def test_a_stage_of_every_time_stands_for_no_halved_student(run, tmp_path):
    """A guided run's first stage, asked for 1 step, would draw what no student draws."""
    shutil.copytree(run, tmp_path / "r")
    opened = RunFolder.open(tmp_path / "r")
    first = opened.students()[0]
    type(first)(first.denoiser, first.shape).save(tmp_path / "r" / "stages" / "guided")
    (tmp_path / "r" / "run.json").unlink()  # which would refuse a stage that it did not make
    assert len(opened.student(2).times[0]) == 3
    with pytest.raises(ConfigError, match="they take 2 or 4"):
        opened.student(1)
    for stage in (tmp_path / "r" / "stages").glob("*-steps"):
        shutil.rmtree(stage)
    assert opened.student(1).times == ()


@pytest.mark.parametrize("start, steps", [((1.0, 0.7, 0.4, 0.2, 0.0), 4), ((), 6)])
def test_before_the_first_halving_the_first_student_is_seen_at_the_start(
    start, steps, run, tmp_path
):
    """Of a guided run; at `full` steps where the run says no start."""
    shutil.copytree(run, tmp_path / "r")
    opened = RunFolder.open(tmp_path / "r")
    first = opened.students()[0]
    for stage in opened.stages:
        shutil.rmtree(stage)
    assert opened.students() == []
    run = RunFolder.open(tmp_path / "r")
    run.about["plan"]["teacher_times"] = start
    bare_first = type(first)(first.denoiser, first.shape)
    bare_first.save(tmp_path / "r" / "stages" / "guided")
    (tmp_path / "r" / "run.json").unlink()  # which would refuse a stage that it did not make
    [student] = run.students(full=6)
    assert len(student.times[0]) == steps + 1 and student.times[0][0] == 1
    assert run.first_student().times == ()
    assert start in ((), student.times[0])


def test_what_is_no_run_or_a_damaged_one_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        RunFolder.open(tmp_path)
    shutil.copytree(run, tmp_path / "r")
    (tmp_path / "r" / "stages" / "0002-steps" / "stage.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"stage\.json"):
        RunFolder.open(tmp_path / "r").students()
    (tmp_path / "r" / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run\.json"):
        RunFolder.open(tmp_path / "r")


def test_a_run_without_a_finished_stage_has_cost_nothing_yet(tmp_path):
    empty = RunFolder(tmp_path)
    assert empty.cost is None and empty.losses == [] and empty.stages == [] and not empty.exists


def test_a_student_is_named_by_its_steps_and_chosen_by_the_gate(run, tmp_path):
    opened = RunFolder.open(run)
    assert opened.gate is None and len(opened.student().times[0]) == 3
    assert len(opened.student(4).times[0]) == 5
    with pytest.raises(ConfigError, match="2 or 4"):
        opened.student(8)
    with pytest.raises(ConfigError, match="neither a pipeline nor a run"):
        RunFolder(tmp_path).student()
    shutil.copytree(run, tmp_path / "r")
    tried = {
        "stage": "0004-steps",
        "steps": 4,
        "ratio": {"value": 1.0, "low": 0.9, "high": 1.1},
        "samples": 8,
        "verdict": "passed",
        "weights": digest_of(opened.student(4).denoiser),
    }
    record = {"tolerance": 2.0, "until": None, "about": {}, "stopped": None, "best": "0004-steps"}
    storage.write_json(tmp_path / "r" / "gate.json", {**record, "decisions": [tried]})
    gated = RunFolder.open(tmp_path / "r")
    assert gated.gate["decisions"] == [tried] and len(gated.student().times[0]) == 5
    assert len(gated.student(2).times[0]) == 3
    storage.write_json(
        tmp_path / "r" / "gate.json", {**record, "decisions": [{**tried, "weights": "0"}]}
    )
    with pytest.raises(ConfigError, match="other weights"):
        RunFolder.open(tmp_path / "r").student()
    storage.write_json(tmp_path / "r" / "gate.json", {**record, "best": None, "decisions": []})
    with pytest.raises(ConfigError, match="passed its gate"):
        RunFolder.open(tmp_path / "r").student()


def test_each_file_is_read_once(run, monkeypatch):
    reads = []
    real = Path.read_bytes

    def counted(path):
        reads.append(path.relative_to(run).as_posix())
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    opened = RunFolder.open(run)
    for _ in range(3):
        _ = opened.options, opened.config, opened.cost, opened.losses, opened.metrics, opened.gate
        _ = opened.stages, opened.student()
    once = ["run.json", "metrics.jsonl", "stages/0002-steps/stage.json"]
    assert [reads.count(name) for name in once] == [1, 1, 1]


def test_what_is_written_is_read_again(tmp_path):
    """The writer forgets what it has read of a file that it changes."""
    run = RunFolder.begin(tmp_path / "r", "distill own", {"stop": 1})
    cost = {"updates": 3, "seconds": 1.0, "forwards": 9}
    assert run.finished("one") is None and run.metrics == [] and run.options == {"stop": 1}
    for updates in (3, 5):
        run.finish("one", lambda folder: None, {**cost, "updates": updates})
        assert run.finished("one")["updates"] == updates
        run.log_finished("one")
    assert run.cost == {**cost, "updates": 3}  # its line was there
    run.close()


@pytest.mark.parametrize(
    "method, halved",
    [
        (MultistepConsistency(start=8, first=4, stop=2, updates=(1,)), {4}),
        (Progressive(start=8, first=2, updates=(1,)), {1}),
    ],
)
def test_a_student_that_does_not_merge_two_steps_halves_nothing(tmp_path, method, halved):
    """Its error is not split into the grid's and that of learning the two steps."""
    halve(tmp_path / "r", method=method)
    assert RunFolder.open(tmp_path / "r").halved == halved
