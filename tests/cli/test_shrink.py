"""`halfstep distill shrink` and `plan`, and what `halfstep evaluate` says of networks of several sizes."""

import json
from dataclasses import replace

import pytest
import torch

from halfstep import Pipeline, TrainingConfig
from halfstep.cli import main
from halfstep.data import load
from halfstep.evaluation.report_files import read_report
from halfstep.methods import DenoiserOnly, Shrink
from halfstep.models.hooks import unwrap
from halfstep.report.plots.sizes import on_front, sizes
from halfstep.workflows.dry_run import seconds_per_update
from tests.methods.diffusion.test_shrink import teacher
from tests.support.evidence import evidence, typed
from tests.support.runs import refused, rewritten

QUICK = ["--batch-size", "8", "--device", "cpu"]
FEW = ["--features", "digits", "--samples", "16", "--split-samples", "0", "--cost-rounds", "1"]
FEW += ["--baselines", "ddim", "--full", "8"]


@pytest.fixture
def halfstep(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("COLUMNS", "160")

    def run(*words):
        status = main([str(word) for line in words for word in str(line).split()])
        got = capsys.readouterr()
        return status, got.out, got.err

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher of digits with the shape that they have, untrained."""
    out = tmp_path_factory.mktemp("teacher") / "teacher"
    pipeline = replace(teacher(img_size=8, num_classes=11), shape=(1, 8, 8), null=10)
    replace(pipeline, class_names=tuple("0123456789")).save(out)
    return out


@pytest.fixture(scope="module")
def plan(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("plan") / "run"
    line = f"distill plan --teacher {place} --data digits --depth 2 --updates 2 --start 8 --stop 4"
    words = f"{line} --halving-updates 2 --tolerance 50 --samples 16 --full 8 --out {out}".split()
    assert main([*words, *QUICK]) == 0
    return out


def test_shrinking_on_the_line(place, tmp_path, halfstep):
    words = f"distill shrink --teacher {place} --data digits --updates 2 --depth 2 --out {tmp_path / 'run'}"
    status, out, err = halfstep(words, *QUICK)
    assert status == 0, err
    assert "of 2 pairs of blocks, 0 the outermost" in out + err
    assert "shrink to depth 2" in out + err
    keep = json.loads((tmp_path / "run/run.json").read_text())["options"]["keep"]
    assert keep in ([0], [1])
    status, out, err = halfstep(words, *QUICK)
    assert status == 0 and "nothing was left to do" in out + err
    status, out, err = halfstep(
        f"sample {tmp_path / 'run'} --steps 2 --n 2 --out {tmp_path / 'made'}"
    )
    assert status == 0, err


def test_a_rehearsal_and_refusals(place, tmp_path, halfstep):
    words = f"distill plan --teacher {place} --data digits --out {tmp_path / 'run'}"
    got = halfstep(words, "--keep 1 --guidance-range 1 3 --start 8 --stop 4 --dry-run", *QUICK)
    assert got[0] == 0, got[2]
    for stage in ("shrunk", "guided", "0004-steps"):
        assert stage in got[1] + got[2]
    assert refused(halfstep(words, *QUICK), "not smaller")
    assert refused(
        halfstep(words, "--depth 6", *QUICK), "is no shallower than its teacher of depth 4"
    )
    assert refused(halfstep(words, "--keep 0 4", *QUICK), "0 (outermost) to 1, each once")
    assert refused(halfstep(words, "--student embed_dim 3", *QUICK), "embed_dim 3")
    assert not (tmp_path / "run").exists()


def test_a_narrower_student_is_timed_in_bf16(place):
    pipeline = Pipeline.load(place)
    method = Shrink(student={"embed_dim": 4}, feature_weight=0.1)
    [stage] = method.stages(DenoiserOnly(pipeline.denoiser, pipeline.null))
    student = unwrap(stage.student)
    student.autocast = torch.float16
    dtypes = []
    student.register_forward_pre_hook(lambda *_: dtypes.append(student.autocast))
    seconds_per_update(stage, load("digits"), TrainingConfig(batch_size=4), torch.device("cpu"))
    assert dtypes and set(dtypes) == {torch.bfloat16} and student is not stage.student


def test_a_rehearsal_of_a_narrower_student_is_about_the_student(place, halfstep):
    """And not about the projectors of its features, which are trained beside it."""
    words = (
        f"distill shrink --teacher {place} --data digits --student embed_dim 4 --out x --dry-run"
    )
    networks = []
    for features in (0, 0.1):
        status, out, err = halfstep(words, f"--feature-weight {features} --precision fp16", *QUICK)
        assert status == 0, err
        assert "in bf16; fp16 is far slower on a CPU" in out
        networks += [line for line in out.splitlines() if line.startswith("network")]
    assert networks[0] == networks[1] and "parameters" in networks[0]


def test_a_rehearsal_of_fp16_tells_the_bytes_of_two_a_weight(place, halfstep):
    words = f"distill progressive --start 4 --tolerance 0 --teacher {place} --data digits --out x"
    told = []
    for precision in ("bf16", "fp16"):
        status, out, err = halfstep(
            words, f"--lora-rank 1 --precision {precision} --dry-run", *QUICK
        )
        assert status == 0, err
        told.append([line for line in out.splitlines() if line.startswith(("memory", "  "))])
    assert told[0] == told[1] and any(line.startswith("  teacher") for line in told[0])


def test_a_rehearsal_tells_of_the_savings_by_the_commands_own_options(place, halfstep, monkeypatch):
    monkeypatch.setattr("halfstep.workflows.memory_plan.RANK", 1)
    told = []
    for words in ("progressive --start 4 --tolerance 0", "shrink --depth 2"):
        words = f"distill {words} --teacher {place} --data digits --out x --dry-run"
        told.append(halfstep(words, "--micro-batch-size 1", *QUICK)[1])
        assert "--gradient-checkpointing" in told[-1]
    assert "--lora-rank 1" in told[0] and "--lora-rank" not in told[1]


def test_the_gate_looks_at_what_is_halved(plan):
    gate = json.loads((plan / "gate.json").read_text())
    assert [one["stage"] for one in gate["decisions"]] == ["0004-steps"]


def test_evaluating_a_plan_shows_sizes_and_steps(plan, place, halfstep):
    status, out, err = halfstep(f"evaluate {plan} --device cpu --beside {plan}", *FEW)
    assert status == 0, err
    report = json.loads((plan / "report.json").read_text())
    others = [(row["network"], row["steps"]) for row in report["rows"] if row["role"] == "other"]
    assert others == [("shrunk", 8), ("shrunk", 4), ("run", 4)]
    over = report["rows"][-1]["student_ratio"]
    assert over["low"] == over["value"] == over["high"] == 1  # it is the student itself
    lines = sizes(read_report(plan))
    assert len({line.parameters for line in lines}) == 2 and any(line.front for line in lines)
    # as many steps of the smaller network cost less
    cost = {line.name: line.multiply_adds for line in lines}
    assert cost["shrunk, 4 steps"] == cost["student, 4 steps"] < cost["teacher, 8 steps"] / 2
    page = (plan / "report.html").read_text()
    assert 'id="sizes"' in page and 'id="figure-sizes"' in page and 'id="figure-seconds"' in page
    assert "of which a smaller network's cost less" in page and "what costs time" not in page
    assert "multiply-adds" in out and "…" not in out
    assert "shrunk, 8 steps" in page and "multiply-adds" in out


def test_evaluating_what_was_only_shrunk(place, plan, tmp_path, halfstep):
    out = tmp_path / "run"
    words = f"distill shrink --teacher {place} --data digits --updates 1 --keep 1 --out {out}"
    assert halfstep(words, *QUICK)[0] == 0
    status, _, err = halfstep(f"evaluate {out} --device cpu", *FEW)
    assert status == 0, err
    report = json.loads((out / "report.json").read_text())
    names = [row["name"] for row in report["rows"]]
    assert "student, 64 steps" in names and "teacher, ddim, 4 steps" in names
    assert "shrunk, 4 steps" in names
    rewritten(out / "run.json", lambda begun: begun["options"].update(teacher="another"))
    got = halfstep(f"evaluate {plan} --device cpu --beside {out}", *FEW)
    assert refused(got, "was made from another teacher than")


def test_the_front():
    points = [(1.0, 5.0), (2.0, 3.0), (2.0, 4.0), (3.0, 3.0), (4.0, 1.0), (4.0, 1.0)]
    assert [on_front(point, points) for point in points] == [True, True, False, False, True, True]


def test_one_size_has_no_table_of_sizes():
    report = typed(evidence())
    teacher = report.teacher
    small = replace(report.students[-1], cost=replace(teacher.cost, parameters=5))
    assert sizes(replace(report, rows=(teacher, teacher))) == []
    assert sizes(replace(report, rows=(teacher, replace(teacher, cost=None)))) == []
    lines = sizes(replace(report, rows=(teacher, small)))
    assert [line.seconds for line in lines] == [teacher.cost.seconds_per_sample[64]] * 2
