"""`compare`: equal budgets, ordinary runs, one page of numbers; resumed, skipped, read back."""

import json
import shutil
from dataclasses import replace

import pytest

from halfstep import storage
from halfstep.cli.parse import parse
from halfstep.errors import CheckpointError, ConfigError, Stopped
from halfstep.evaluation.method_files import read_comparison
from halfstep.evaluation.setups import Evaluation
from halfstep.methods.stages import student_name
from halfstep.training import ProgressCallback
from halfstep.training.config import TrainingOptions
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.compare import compare, prepare_comparison
from halfstep.workflows.compare_config import (
    CompareConfig,
    ComparedTeacher,
    CompareMeasures,
    CompareOptions,
    ComparisonData,
    ComparisonFolder,
)
from halfstep.workflows.evaluate import evaluate
from halfstep.workflows.locate import locate_pipeline
from tests.cli.commands import SHIPPED, TINY, type_command

BUDGET = 5 * 8 * 200


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALFSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    out = tmp_path_factory.mktemp("moons") / "teacher"
    assert type_command(["train", "denoiser", *TINY, "--out", out, "--updates", 60]) == 0
    return out


def config(teacher, out, *methods, measures=(), training=(), **options):
    return CompareConfig(
        folder=ComparisonFolder(out=out, device="cpu"),
        dataset=ComparisonData(data="two-moons"),
        teacher=ComparedTeacher(teacher=str(teacher)),
        compare=CompareOptions(
            **{"methods": methods, "budget": BUDGET, "counts": (2, 1), "start": 4, **options}
        ),
        training=TrainingOptions(batch_size=8, **dict(training)),
        evaluation=CompareMeasures(samples=64, **dict(measures)),
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "evenly.toml"
    path.write_text('method = "progressive"\nweighting = "snr+1"\nbatch_size = 99\n')
    return path


@pytest.fixture(scope="module")
def made(teacher, file, tmp_path_factory):
    """(the options, what was found)"""
    out = tmp_path_factory.mktemp("compare") / "out"
    options = config(teacher, out, "progressive", str(file), seeds=2)
    return options, compare(options)


def test_every_run_has_the_budget(made):
    _, found = made
    assert {run.method for run in found.runs} == {"progressive", "evenly"}
    for run in found.runs:
        assert 0.99 * BUDGET <= run.cost.forwards <= BUDGET
        [method] = [m for m in found.methods if m.name == run.method]
        assert run.cost.forwards == method.planned
    assert [m.options["weighting"] for m in found.methods] == ["truncated-snr", "snr+1"]
    assert found.budget == BUDGET and found.batch == 8 and found.counts == (2, 1)
    assert found.training["optimiser"] == "adamw" and found.training["learning_rate"] == 3e-4
    for run in found.runs:
        trained = RunFolder(made[0].folder.out / run.folder).options
        assert {**trained, **found.training} == trained


def test_the_walks_that_a_method_keeps_are_in_its_budget(teacher, tmp_path):
    found = compare(config(teacher, tmp_path / "out", "cached-walks", budget=2 * BUDGET))
    [method], [run] = found.methods, found.runs
    assert method.planned == run.cost.forwards and 0.99 * found.budget <= method.planned
    assert method.planned > run.cost.updates * 3 * 8


def test_parts_are_ordinary_runs(made):
    options, found = made
    out = options.folder.out
    folders = {path.name for path in (out / "runs").iterdir()}
    assert folders == {f"{m}-seed{s}" for m in ("progressive", "evenly") for s in (0, 1)}
    run = RunFolder.open(out / "runs/progressive-seed1")
    assert run.options["seed"] == 1 and run.options["batch_size"] == 8
    assert run.config["teacher"] == options.teacher.teacher and run.config["start"] == 4
    assert [stage.name for stage in run.stages] == [student_name(2), student_name(1)]
    report = evaluate(run.folder, Evaluation(
        samples=64, baselines=(), metrics=(), split_samples=0, cost_rounds=0,
    ))  # fmt: skip
    mine = [row for row in found.rows if (row.method, row.seed) == ("progressive", 1)]
    for row, theirs in zip(mine, report.students, strict=True):  # the same numbers as a report's
        assert row.distance == theirs.distances.frechet_distance
        for end in ("value", "low", "high"):
            assert getattr(row.ratio, end) == pytest.approx(getattr(theirs.ratio, end), rel=1e-12)
        assert row.teacher_rmse == theirs.fidelity.rmse


def test_the_target_walk_has_its_own_score(made):
    _, found = made
    assert (found.target.sampler, found.target.steps) == ("ddim", 4)
    assert found.target.ratio.value == pytest.approx(
        found.target.distance.value / found.teacher.distance.value
    )
    for row in found.rows:
        assert row.target_ratio.value == pytest.approx(
            row.distance.value / found.target.distance.value
        )


def test_the_error_is_to_the_target_s_own_pictures(made):
    options, found = made
    target = locate_pipeline(options.teacher.teacher).sample(64, seed=0, steps=4, sampler="ddim")
    student = RunFolder(options.folder.out / "runs/progressive-seed0").student(2)
    error = (student.sample(64, seed=0, steps=2) - target).double().square().mean().sqrt()
    assert found.rows[0].rmse.value == pytest.approx(float(error), rel=1e-6)


def test_means_are_over_seeds(made):
    _, found = made
    for mean in found.means:
        rows = [r for r in found.rows if (r.method, r.steps) == (mean.method, mean.steps)]
        ratios = [row.ratio.value for row in rows]
        assert mean.seeds == 2 and mean.ratio.value == pytest.approx(sum(ratios) / 2)
        assert mean.spread == pytest.approx(abs(ratios[0] - ratios[1]) / 2**0.5)
        assert mean.rmse == pytest.approx(sum(row.rmse.value for row in rows) / 2)
        assert mean.ratio.low < mean.ratio.value < mean.ratio.high


def test_it_is_read_back(made):
    options, found = made
    assert read_comparison(options.folder.out) == found
    path = options.folder.out / "compare.json"
    assert json.loads(path.read_text())["verdicts"][0]["best"] in ("progressive", "evenly")


def test_finished_runs_are_skipped_and_the_numbers_are_the_same(made):
    options, found = made
    began = []

    class Seen(ProgressCallback):
        def begin(self, stage, update):
            began.append(stage.name)

    again = compare(options, callback=lambda part: Seen())
    assert not began
    assert replace(again, provenance=found.provenance) == found


def test_a_stopped_comparison_goes_on(teacher, tmp_path, made):
    """Ctrl-C in the second run: the first is finished, and the second goes on to the same bits."""

    class Stopping(ProgressCallback):
        def step(self, update, rate):
            if update == 9:
                raise KeyboardInterrupt

    options = config(teacher, tmp_path / "out", "progressive", seeds=2)
    with pytest.raises((KeyboardInterrupt, Stopped)):
        compare(options, callback=lambda part: Stopping() if part.seed else ProgressCallback())
    prepared = prepare_comparison(options)
    assert [part.progress(prepared).finished for part in prepared.parts] == [True, False]
    found = compare(options)
    _, whole = made
    rows = [row for row in whole.rows if row.method == "progressive"]
    assert list(found.rows) == rows


def test_a_method_can_be_added_later(teacher, tmp_path, file):
    first = compare(config(teacher, tmp_path / "out", "progressive"))
    both = compare(config(teacher, tmp_path / "out", "progressive", str(file)))
    assert first.rows == tuple(row for row in both.rows if row.method == "progressive")
    assert [v.answer for v in first.verdicts] == ["alone", "alone"]
    assert {v.answer for v in both.verdicts} <= {"cannot tell", "one seed"}


def test_runs_of_the_page_are_not_left_out(made, teacher, file, tmp_path):
    """The page is written again as a whole, so that fewer methods or seeds would lose the others."""
    options, found = made
    out = options.folder.out
    with pytest.raises(ConfigError, match=r"evenly \(seeds 0 and 1\).*--methods"):
        compare(config(teacher, out, "progressive", seeds=2))
    with pytest.raises(ConfigError, match=r"progressive \(seed 1\) and evenly \(seed 1\)"):
        prepare_comparison(config(teacher, out, "progressive", str(file)))
    assert read_comparison(out) == found
    runs = tuple(out / run.folder for run in found.runs)
    other = config(teacher, tmp_path / "all", beside=runs, budget=None)
    compare(other)
    fewer = replace(other, compare=replace(other.compare, beside=runs[1:]))
    with pytest.raises(ConfigError, match=r"progressive \(seed 0\).*--beside"):
        prepare_comparison(fewer)


def test_a_deleted_run_is_not_missed_nor_one_of_a_damaged_comparison(made, teacher, file, tmp_path):
    options, _ = made
    out = shutil.copytree(options.folder.out, tmp_path / "out")
    for run in (out / "runs").glob("evenly-*"):
        shutil.rmtree(run)
    found = compare(config(teacher, out, "progressive", seeds=2))
    assert [method.name for method in found.methods] == ["progressive"]
    (out / "compare.json").write_text("{}")
    assert prepare_comparison(config(teacher, out, "progressive")).parts


def extended(options):
    return replace(options, folder=replace(options.folder, extend=True))


def test_a_finished_student_that_another_follows_has_no_more_updates(teacher, tmp_path):
    """Refused before a new method is trained, and before the run is changed."""
    out = tmp_path / "out"
    options = config(teacher, out, "progressive")
    compare(options)
    before = (out / "runs/progressive-seed0/run.json").read_bytes()
    more = extended(config(teacher, out, "multistep-consistency", "progressive", budget=2 * BUDGET))
    with pytest.raises(ConfigError, match="only a run's last stage can be extended"):
        compare(more)
    assert [path.name for path in (out / "runs").iterdir()] == ["progressive-seed0"]
    assert (out / "runs/progressive-seed0/run.json").read_bytes() == before
    compare(options)


def test_the_only_student_of_a_run_has_more_updates(teacher, tmp_path):
    """Before it is trained further, the plan says what is left."""
    one = {"counts": (1,), "start": 2}
    options = config(teacher, tmp_path / "out", "progressive", **one)
    compare(options)
    more = extended(config(teacher, tmp_path / "out", "progressive", budget=2 * BUDGET, **one))
    prepared = prepare_comparison(more)
    progress = prepared.parts[0].progress(prepared)
    assert progress.done == pytest.approx(0.5) and not progress.finished
    [run] = compare(more).runs
    assert run.cost.forwards == 2 * BUDGET
    assert prepared.parts[0].progress(prepared).finished


def test_a_budget_too_small_names_the_smallest(teacher, tmp_path):
    options = config(teacher, tmp_path / "out", "progressive", budget=BUDGET - 1)
    with pytest.raises(ConfigError, match=f"--budget {BUDGET}"):
        prepare_comparison(options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "methods, options, word",
    [
        ((), {}, "--methods"),
        (("progressiv",), {}, "progressive"),
        (("reparameterise",), {}, "fewer steps"),
        (("encoder",), {}, "encode"),
        (("progressive", "progressive"), {}, "two methods"),
        (("progressive",), {"counts": (4, 2)}, "4 steps"),
        (("progressive",), {"budget": None}, "--budget"),
        (("progressive",), {"start": 6}, "start"),
        (("none.toml",), {}, "cannot be read"),
        (("stochastic",), {}, "student of 1 step:"),
    ],
)
def test_refusals(methods, options, word, teacher, tmp_path):
    with pytest.raises(ConfigError, match=word):
        prepare_comparison(config(teacher, tmp_path / "out", *methods, **options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sampler", ["ancestral", "euler-maruyama"])
def test_a_target_that_draws_noise_is_refused(sampler, teacher, tmp_path):
    with pytest.raises(ConfigError, match="deterministic"):
        config(teacher, tmp_path / "out", "progressive", target_sampler=sampler)


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"training": {"learning_rate": 1e-3}}, "learning_rate"),
        ({"training": {"weight_decay": 0.1}}, "weight_decay"),
        ({"budget": 2 * BUDGET}, "updates"),
    ],
)
def test_no_run_begins_where_another_has_other_options(changes, word, teacher, tmp_path):
    out = tmp_path / "out"
    compare(config(teacher, out, "progressive"))
    with pytest.raises(ConfigError, match=word):
        compare(config(teacher, out, "multistep-consistency", "progressive", **changes))
    assert [path.name for path in (out / "runs").iterdir()] == ["progressive-seed0"]


def test_a_rate_that_changed_within_a_run_is_no_longer_the_others(teacher, tmp_path):
    options = config(teacher, tmp_path / "out", "progressive")
    compare(options)
    part = prepare_comparison(options).parts[0]
    about = json.loads((part.folder / "run.json").read_text())
    assert not about["changed_options"]
    place = {"stage": 0, "name": student_name(2), "update": 3}
    about["changed_options"] = [{**place, "values": {"learning_rate": 1e-5}}]
    about.pop("checksum")
    storage.write_json(part.folder / "run.json", about)
    with pytest.raises(ConfigError, match="learning_rate = 1e-05"):
        compare(options)


@pytest.mark.parametrize(
    "text, word",
    [
        ("start = 4\n", "method ="),
        ('method = "knowledge"\n', "method ="),
        ('method = "progressive"\nstrat = 4\n', "start"),
        ('method = "progressive"\nstart = "four"\n', "whole number"),
    ],
)
def test_files_are_checked(text, word, teacher, tmp_path):
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises(ConfigError, match=word):
        prepare_comparison(config(teacher, tmp_path / "out", str(tmp_path / "my.toml")))


def test_a_preset_is_a_method(teacher, tmp_path):
    """Its own start and shares hold; its optimiser does not."""
    options = config(
        teacher, tmp_path / "out", "digits-progressive", counts=(16, 1), budget=928_000
    )
    prepared = prepare_comparison(replace(options, training=TrainingOptions(batch_size=64)))
    [entry] = prepared.entries
    assert entry.method.updates == (550, 650, 750, 600, 350) and entry.method.start == 32
    assert prepared.training.optimiser == "adamw" and "optimiser" in entry.unused


def test_the_preset_of_a_comparison_gives_each_method_what_progressive_spends():
    words = ["--preset", "digits-compare", "--teacher", str(SHIPPED), "--out", "out"]
    prepared = prepare_comparison(parse(CompareConfig, words, prog="halfstep compare"))
    assert len(prepared.entries) == 7 and len(prepared.parts) == 3 * len(prepared.entries)
    assert len({entry.verb for entry in prepared.entries}) == 5
    for part in prepared.parts:
        assert 0.99 * 928_000 <= part.forwards <= 928_000
    starts = {entry.name: entry.method.start for entry in prepared.entries}
    assert starts.pop("digits-progressive-heun") == 16 and starts.pop("digits-cached-walks") == 48
    assert set(starts.values()) == {64} and prepared.config.compare.target == ("ddim", 64)


def test_a_damaged_comparison_is_refused(made, tmp_path):
    options, _ = made
    for name in ("compare.json", "compare.npz"):
        shutil.copy(options.folder.out / name, tmp_path)
    path = tmp_path / "compare.json"
    path.write_text(path.read_text().replace('"seeds": 2', '"seeds": 3', 1))
    with pytest.raises(CheckpointError, match=r"compare\.json"):
        read_comparison(tmp_path)
    path.unlink()
    with pytest.raises(ConfigError, match="no compare"):
        read_comparison(tmp_path)
