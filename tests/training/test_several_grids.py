"""A student of one run that serves several numbers of steps: its files, its steps, its gate."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from halfstep import RunFolder, storage
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.evaluation import Gate, Interval
from halfstep.methods import StagePlan
from halfstep.pictures import tile
from halfstep.pipeline import Pipeline
from halfstep.training.sample_grid import SampleGrid
from halfstep.workflows.compress import compress
from halfstep.workflows.runs import list_runs
from tests.support.runs import Crash, crash, halve, job, points, teacher
from tests.support.several_grids import FINE, GRIDS, Several

RATIOS = {4: 1.0, 2: 1.05, 1: 1.5}


def gate_in(folder, ratios, **options):
    """A gate with these ratios, and what it measured and told."""
    measured, told = [], []

    def measure(made, n):
        [steps] = made.step_counts
        measured.append(steps)
        return Interval(ratios[steps], ratios[steps] - 0.01, ratios[steps] + 0.01)

    return (
        Gate(measure, 1.1, file=folder / "gate.json", tell=told.append, **options),
        measured,
        told,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "r"
    gate, measured, told = gate_in(out, RATIOS)
    halve(out, method=Several(), job=job(gate=gate))
    assert measured == [4, 2, 1]
    assert [line.split(":")[0] for line in told[:3]] == [
        "ddim, 4 steps", "ddim, 2 steps", "ddim, 1 step"
    ]  # fmt: skip
    assert told[3:] == ["4 and 2 steps pass, 1 step does not"]
    return out


def test_the_students_pipeline_has_all_grids_and_the_fine_one(run):
    [stage] = RunFolder.open(run).stages
    assert stage.name == "ddim"
    loaded = Pipeline.load(stage)
    assert loaded.times == GRIDS and loaded.fine_times == FINE and loaded.default_steps == 1
    assert RunFolder.open(run).teacher_times == FINE
    assert RunFolder.open(run).about["plan"]["stages"] == [
        {"name": "ddim", "steps": 1, "updates": 7, "forwards": 3, "once": 0, "teacher_steps": 8}
    ]


def test_a_student_is_found_by_any_number_of_steps_that_it_serves(run):
    opened = RunFolder.open(run)
    whole = Pipeline.load(opened.stages[0])
    for steps in range(1, 9):
        student = opened.student(steps)
        assert len(student.grid()) - 1 == steps
        assert torch.equal(student.sample(3), whole.sample(3, steps=steps))
    with pytest.raises(ConfigError, match="9 steps: they take 1 or 2 or 3"):
        opened.student(9)
    with pytest.raises(ConfigError, match="not distilled for 9 steps: it can take 1 to 8"):
        whole.grid(9)


def test_the_gate_says_which_numbers_pass_and_the_fewest_is_the_default(run):
    """All are measured, also after one that failed; the run is not stopped."""
    record = RunFolder.open(run).gate
    assert [(d["stage"], d["steps"], d["verdict"]) for d in record["decisions"]] == [
        ("ddim", 4, "passed"), ("ddim", 2, "passed"), ("ddim", 1, "broken")
    ]  # fmt: skip
    assert (record["best"], record["best_steps"], record["stopped"]) == ("ddim", 2, None)
    student = RunFolder.open(run).student()
    assert student.times == GRIDS and len(student.grid()) - 1 == 2
    assert student.sample(2, steps=1).shape == (2, 3)  # still served
    [row] = list_runs(run)
    assert (row.steps, row.state, row.ratio.value) == (2, "finished", 1.05)


def test_a_failure_between_two_that_pass_hides_neither(tmp_path):
    gate, measured, told = gate_in(tmp_path, {4: 1.0, 2: 1.5, 1: 1.05})
    student = replace(teacher(), times=GRIDS, fine_times=FINE)
    assert gate(student) and measured == [4, 2, 1]
    assert told[-1] == "4 and 1 steps pass, 2 steps do not"
    assert gate.best.steps == 1
    (tmp_path / "other").mkdir()
    gate, _, told = gate_in(tmp_path / "other", {4: 1.5, 2: 1.0, 1: 1.5})
    assert gate(student) and told[-1] == "2 steps pass, 4 and 1 steps do not"


@pytest.mark.parametrize(
    "ratio, sentence", [(1.0, "all of 4, 2 and 1 steps pass"), (2.0, "none of 4, 2 and 1 steps passes")]
)  # fmt: skip
def test_all_or_none_pass(tmp_path, ratio, sentence):
    gate, _, told = gate_in(tmp_path, dict.fromkeys((4, 2, 1), ratio))
    assert gate(replace(teacher(), times=GRIDS, fine_times=FINE))
    assert told[-1] == sentence and (gate.best is None) == (ratio == 2.0)


def test_none_passes_and_no_student_is_the_default(run, tmp_path):
    gate, _, _ = gate_in(tmp_path / "r", dict.fromkeys((4, 2, 1), 2.0))
    halve(tmp_path / "r", method=Several(), job=job(gate=gate))
    assert RunFolder.open(tmp_path / "r").gate["best_steps"] is None
    with pytest.raises(ConfigError, match="passed its gate"):
        RunFolder.open(tmp_path / "r").student()
    assert len(RunFolder.open(tmp_path / "r").students()) == 3


def test_decisions_are_kept_and_a_count_that_was_not_decided_is_measured(tmp_path):
    student = replace(teacher(), times=GRIDS, fine_times=FINE)
    gate_in(tmp_path, RATIOS)[0](student)
    again, measured, told = gate_in(tmp_path, RATIOS)
    assert again(student) and not measured and not told
    record = storage.read_json(tmp_path / "gate.json", dict)
    storage.write_json(tmp_path / "gate.json", {**record, "decisions": record["decisions"][:2]})
    third, measured, told = gate_in(tmp_path, RATIOS)
    assert third(student) and measured == [1] and len(told) == 2
    assert [d.steps for d in third.decisions] == [4, 2, 1]


def test_a_student_that_was_trained_further_is_measured_again_at_every_count(tmp_path):
    gate_in(tmp_path, RATIOS)[0](replace(teacher(), times=GRIDS, fine_times=FINE))
    gate, measured, _ = gate_in(tmp_path, dict.fromkeys(RATIOS, 1.0))
    gate(replace(teacher(seed=1), times=GRIDS, fine_times=FINE))
    assert measured == [4, 2, 1] and [d.steps for d in gate.decisions] == [4, 2, 1]
    assert {d.verdict for d in gate.decisions} == {"passed"}


def test_other_weights_than_the_gate_saw_are_refused(run, tmp_path):
    gate, _, _ = gate_in(tmp_path / "r", RATIOS)
    halve(tmp_path / "r", method=Several(), job=job(gate=gate))
    record = storage.read_json(tmp_path / "r/gate.json", dict)
    changed = [{**d, "weights": "0"} if d["steps"] == 2 else d for d in record["decisions"]]
    storage.write_json(tmp_path / "r/gate.json", {**record, "decisions": changed})
    with pytest.raises(ConfigError, match="other weights of ddim"):
        RunFolder.open(tmp_path / "r").student()


def test_students_are_one_at_each_number_of_steps_on_one_network(run):
    students = RunFolder.open(run).students()
    assert [student.times for student in students] == [(times,) for times in GRIDS]
    assert [len(student.grid()) - 1 for student in students] == [4, 2, 1]
    assert len({id(student.denoiser) for student in students}) == 1
    assert [len(s.at_each_count) for s in students] == [1, 1, 1]


def test_a_run_that_stopped_while_the_gate_measured_goes_on(run, tmp_path):
    gate, _, _ = gate_in(tmp_path / "r", RATIOS)
    measure = gate.measure
    gate.measure = lambda made, n: crash() if made.step_counts == (2,) else measure(made, n)
    with pytest.raises(Crash):
        halve(tmp_path / "r", method=Several(), job=job(gate=gate))
    again, measured, _ = gate_in(tmp_path / "r", RATIOS)
    halve(tmp_path / "r", method=Several(), job=job(gate=again))
    assert measured == [2, 1]
    assert [d.steps for d in again.decisions] == [4, 2, 1]


def test_the_picture_of_a_student_has_a_row_for_each_number(run):
    [student] = [Pipeline.load(folder) for folder in RunFolder.open(run).stages]
    image = replace(student, shape=(1, 1, 3))

    net = image.denoiser.net
    image.denoiser.net.forward = lambda x, t, cond=None: (
        type(net).forward(net, x.flatten(1), t, cond).reshape(x.shape)
    )
    picture = SampleGrid(points(), torch.device("cpu")).draw(image)
    rows = torch.cat([image.sample(4, steps=steps) for steps in (4, 2, 1)])
    assert np.array_equal(picture, tile(rows, columns=4))


def test_variants_of_a_student_are_one_for_each_number(run, tmp_path):
    halve(tmp_path / "r", method=Several(), width=32)
    made = compress(tmp_path / "r", prune=(0.5,), steps=(4, 1), evaluate=False)
    names = [one.folder.name.split("-")[:2] for one in made.students]
    assert names == [["ddim", "4"], ["ddim", "1"]]
    assert [len(Pipeline.load(one.folder).grid()) - 1 for one in made.students] == [4, 1]


@pytest.mark.parametrize(
    "options, word",
    [
        ({"name": "flow", "grids": GRIDS}, "write 'ddim'"),
        ({"name": "0004-steps", "grids": GRIDS, "times": uniform(4)}, "times and grids"),
        ({"name": "ddim", "times": uniform(4)}, "0004-steps"),
    ],
)
def test_a_plan_names_such_a_stage_by_its_sampler(options, word):
    with pytest.raises(ConfigError, match=word):
        StagePlan(updates=1, **options)


@pytest.mark.parametrize("grid", [(1.0, 0.3, 0.0), (1.0, 0.5), (0.5, 0.0)])
def test_a_grid_has_the_fine_ones_times_and_ends(grid):
    with pytest.raises(ConfigError, match="fine_times"):
        replace(teacher(), times=(grid,), fine_times=FINE)
