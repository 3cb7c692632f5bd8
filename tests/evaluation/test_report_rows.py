"""The evidence: every number of a report, complete, of the same noise, and at not more calls."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from halfstep.batch import Cond
from halfstep.data import Dataset
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import V
from halfstep.diffusion.samplers import calls
from halfstep.diffusion.schedules import BetaTable, Cosine, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.evaluation import Candidates, Evaluation, Features, SampleScorer
from halfstep.evaluation.metrics.distance_bootstrap import kernel_interval
from halfstep.evaluation.metrics.distances import sampling_floor
from halfstep.evaluation.metrics.fidelity import grid_cost, learning_error, worst_pairs
from halfstep.evaluation.metrics.precision_recall_bootstrap import precision_recall_intervals
from halfstep.evaluation.report_rows import teacher_rows as measured_rows
from halfstep.evaluation.row_metrics import drift_of, memorisation_of, row as row_of, sheets
from halfstep.evaluation.sample_sets import SampleSet
from halfstep.evaluation.setups import chosen_counts, most_steps, refuse_sampler, Setup, TIMED
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.report.page import render
from halfstep.schema import plain
from tests.support.denoisers import seeded
from tests.support.evidence import evidence, gather, typed
from tests.support.progress import Ledger

SHAPE = (3, 4, 6)
ASKED = Evaluation(
    samples=40, full=16, shown=3, split_samples=24, cost_rounds=1, baselines=("ddim", "heun")
)
BRIEF = replace(ASKED, cost_rounds=0, metrics=("frechet",))
"""What is quick to measure."""
INTERVALS = ("value", "low", "high")


class Leaky(nn.Module):
    """A nonlinear network for images, whose students differ in one weight."""

    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(float(gain)))
        self.mix = nn.Conv2d(3, 3, 1)

    def forward(self, x, t, cond=None):
        return torch.tanh(self.gain * x + t.reshape(-1, 1, 1, 1)) - 0.3 * self.mix(x)


def pipeline(gain=1.0, times=(), class_names=(), schedule=Cosine()):  # noqa: B008
    torch.manual_seed(3)
    net = build("tests.evaluation.test_report_rows:Leaky", {"gain": gain})
    denoiser = Denoiser(net, schedule, V(), time=NetTime(scale=1.0)).freeze()
    return Pipeline(denoiser, SHAPE, times, class_names)


def few(images):
    return images.flatten(1)[:, :5].double()


FEATURES = Features(
    "five pixels", few, "as they are", digest="d" * 64, head=lambda x: torch.cat([x, -x], 1)
)


@pytest.fixture(scope="module")
def data():
    values = torch.rand(60, *SHAPE, generator=seeded(1)) * 2 - 1
    return Dataset(values, torch.arange(60) % 2, ("even", "odd"))


def students(*counts):
    return [pipeline(1 + 0.1 / k, (uniform(k),)) for k in counts]


@pytest.fixture(scope="module")
def subject(data):
    return Candidates(pipeline(), students(4, 2, 1), data, uniform(8))


def judge(data, **options):
    return SampleScorer(FEATURES, data.values, n=ASKED.samples, **options)


@pytest.fixture(scope="module")
def found(subject, data):
    return gather(subject, judge(data), ASKED)


def teacher_rows(*arguments):
    """The teacher's rows, as tables."""
    return [plain(row) for row in measured_rows(*arguments).rows]


def of(found, role):
    return [row for row in found[0]["rows"] if row["role"] == role]


# Complete.


def test_every_row_has_every_number(found):
    rows = found[0]["rows"]
    assert [row["role"] for row in rows[:1]] == ["teacher"]
    names = {"frechet_distance", "kernel_distance", "inception_score", "precision", "recall"}
    for row in rows:
        assert row.keys() == {
            "role", "name", "sampler", "steps", "calls", "distances", "ratio", "fidelity", "split",
            "memorisation", "drift", "cost", "compressed", "network", "student_ratio",
        }  # fmt: skip
        assert all(row["distances"][name] for name in names)
        for one in filter(None, row["distances"].values()):
            assert tuple(one) == INTERVALS
            assert one["low"] <= one["high"] and all(map(np.isfinite, one.values()))
        assert row["cost"]["calls"] == row["calls"] == calls(row["sampler"], row["steps"])
        assert row["cost"]["seconds_per_sample"].keys() == {"1", "64"}
        assert (
            row["cost"]["parameters"] == 13 and row["cost"]["multiply_adds"] == row["calls"] * 216
        )
        for part in ("ratio", "fidelity"):
            assert (row[part] is None) == (row["role"] == "teacher")
        for part in ("split", "drift"):
            assert (row[part] is None) == (row["role"] != "student")
    for row in of(found, "student"):
        assert [*row["fidelity"]] == ["rmse", "psnr", "feature_rmse"]
        assert [*row["split"]] == ["grid", "learning"]
        assert {one["measure"] for one in row["drift"]} >= {"contrast", "saturation", "fine detail"}


def test_the_names_of_the_rows(found):
    assert [row["name"] for row in found[0]["rows"]] == [
        "teacher, 16 steps",
        "teacher, ddim, 4 steps",
        "teacher, heun, 2 steps",
        "teacher, ddim, 2 steps",
        "teacher, heun, 1 step",
        "teacher, ddim, 1 step",
        "student, 4 steps",
        "student, 2 steps",
        "student, 1 step",
    ]


def test_it_says_how_it_measured(found, data):
    measure = found[0]["measure"]
    assert (measure["features"], measure["preprocessing"]) == ("five pixels", "as they are")
    assert (measure["samples"], measure["real"], measure["seed"]) == (40, 60, 0)
    assert measure["digest"] == "d" * 64 and len(measure["data"]) == 64
    assert measure["floor"] == judge(data).floor


def test_it_goes_through_json_onto_the_page(found):
    tables, pictures = found
    report = typed(evidence() | json.loads(json.dumps(tables, allow_nan=False)), pictures)
    page = render(report)
    assert report.verdict.split(":")[0][:20] in page
    for row in report.rows:
        assert row.name in page


# At not more calls.


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 16, 33])
def test_most_steps_that_cost_no_more(count):
    for sampler in ("ddim", "dpmpp-2m", "ancestral"):
        assert most_steps(sampler, count) == count
    steps = most_steps("heun", count)
    assert 2 * steps - 1 <= count < 2 * (steps + 1) - 1


def test_a_sampler_that_costs_more_even_in_one_step_is_left_out(monkeypatch, subject, data):
    from halfstep.evaluation import setups

    monkeypatch.setattr(setups, "calls", lambda name, n: 3 * n if name == "heun" else n)
    assert [most_steps("heun", k) for k in (1, 2, 3, 5, 6)] == [None, None, 1, 1, 2]
    asked = replace(BRIEF, counts=(2, 1))
    rows = teacher_rows(subject.teacher, (2, 1), judge(data), asked)
    assert [row["sampler"] for row in rows] == ["ddim"] * 3


def test_every_student_has_baselines_that_cost_no_more(found):
    for student in of(found, "student"):
        for sampler in ASKED.baselines:
            own = [row for row in of(found, "baseline") if row["sampler"] == sampler]
            fitting = [row["calls"] for row in own if row["calls"] <= student["calls"]]
            assert fitting and max(fitting) == calls(sampler, most_steps(sampler, student["calls"]))
    most = max(row["calls"] for row in of(found, "student"))
    assert all(row["calls"] <= most for row in of(found, "baseline"))


def test_all_steps_are_expected_before_the_first(subject, data):
    every = (
        {"counts": (2, 1)},
        {"samples": 300, "baselines": ()},
        {"counts": (1,), "cost_rounds": 1},
    )
    for changes in every:
        asked, told = replace(BRIEF, **changes), Ledger()
        mine = judge(data)
        mine.n = asked.samples
        found, _ = gather(subject, mine, asked, progress=told)
        rows, batches = found["rows"], -(-asked.samples // mine.batch)
        sampled = sum(row["steps"] for row in rows) * batches
        assert told.steps == sampled + len(rows) * asked.cost_rounds * len(TIMED)


# Samplers with a grid of their own.

OWN_GRIDS = ("dpmpp-3s", "dpm-fast", "euler-maruyama")


def test_a_published_sampler_is_a_row_on_its_own_grid(data):
    teacher = pipeline(schedule=VPLinear())
    mine = judge(data)
    asked = replace(BRIEF, full=6, baselines=OWN_GRIDS)
    rows = teacher_rows(teacher, (10, 8), mine, asked)
    assert [row["name"] for row in rows] == ["teacher, 6 steps"] + [
        f"teacher, {name}, {k} steps" for k in (10, 8) for name in OWN_GRIDS
    ]
    for row in rows[1:]:
        images = teacher.sample(40, steps=row["steps"], sampler=row["sampler"])
        seen = SampleSet(images, FEATURES(images), 0.0)
        distance = row["distances"]["frechet_distance"]["value"]
        assert distance == pytest.approx(mine.distance(seen), rel=1e-9)
        assert row["calls"] == row["steps"]
    found = [row["distances"]["frechet_distance"]["value"] for row in rows]
    assert np.diff(sorted(found)).min() > 1e-4  # so that none was taken for another


def test_the_teacher_at_full_steps_by_another_sampler(data):
    teacher, mine = pipeline(schedule=VPLinear()), judge(data)
    asked = replace(ASKED, full=7, full_sampler="dpm-fast", baselines=("ddim", "dpmpp-3s"))
    subject = Candidates(teacher, [pipeline(1.1, (uniform(4),), schedule=VPLinear())], data)
    found, pictures = gather(subject, mine, asked)
    full = found["rows"][0]
    assert (full["name"], full["sampler"], full["calls"]) == (
        "teacher, dpm-fast, 7 steps", "dpm-fast", 7,
    )  # fmt: skip
    images = teacher.sample(40, steps=7, sampler="dpm-fast")
    seen = SampleSet(images, FEATURES(images), 0.0)
    distance = full["distances"]["frechet_distance"]["value"]
    assert distance == pytest.approx(mine.distance(seen), rel=1e-9)
    student = found["rows"][-1]
    other = mine.sample(subject.students[0], "ddim", 4)
    assert student["ratio"] == plain(mine.ratio(other, seen))
    assert all(row["cost"]["calls"] == row["steps"] for row in found["rows"])
    assert pictures["grid_labels"][0] == full["name"]


@pytest.mark.parametrize(
    "schedule, words",
    [
        (
            RectifiedFlow(),
            {"dpmpp-3s": "cannot start at t = 1", "dpm-fast": "log-SNR at t = 1 or 0.0001 is infinite",
             "euler-maruyama": "cannot start at t = 1"},
        ),
        (BetaTable("scaled_linear"), {"euler-maruyama": "a table of betas has corners"}),
        (VPLinear(), {}),
    ],
)  # fmt: skip
def test_a_baseline_that_the_schedule_refuses_is_left_out_with_a_sentence(schedule, words, data):
    asked = replace(BRIEF, full=5, baselines=("ddim", *OWN_GRIDS))
    student = pipeline(1.1, (uniform(8),), schedule=schedule)
    subject, told = Candidates(pipeline(schedule=schedule), [student], data), Ledger()
    found = gather(subject, judge(data), asked, progress=told)
    there = [row["sampler"] for row in of(found, "baseline")]
    assert there == [name for name in asked.baselines if name not in words]
    left_out = found[0]["measure"]["left_out"]
    assert left_out == subject.left_out(asked) and len(left_out) == len(words)
    for sentence, (name, why) in zip(left_out, words.items(), strict=True):
        assert sentence.startswith(f"no baseline {name}: ") and why in sentence
    rows = found[0]["rows"]
    assert told.steps == sum(row["steps"] + asked.cost_rounds * len(TIMED) for row in rows)


def test_a_baseline_that_would_lead_nowhere_is_left_out_of_those_steps(data):
    pndm, heun = "diffusers:PNDMScheduler", "diffusers:HeunDiscreteScheduler"
    teacher = pipeline(schedule=VPLinear())
    students = [pipeline(1.1, (uniform(k),), schedule=VPLinear()) for k in (4, 2)]
    asked = replace(BRIEF, full=16, baselines=("ddim", "dpm-fast", "euler-maruyama", pndm, heun))
    subject = Candidates(teacher, students, data)
    found = gather(subject, judge(data), asked)
    there = [(row["sampler"], row["steps"]) for row in of(found, "baseline")]
    assert there == [
        ("ddim", 4), ("dpm-fast", 4), (pndm, 3), (heun, 2), ("ddim", 2), (pndm, 1), (heun, 1),
    ]  # fmt: skip
    drawn, fast = subject.left_out(asked)
    assert fast.startswith("no baseline dpm-fast in 2 steps: dpm_fast cannot go")
    assert drawn.startswith("no baseline euler-maruyama: euler-maruyama cannot step")
    three = replace(subject, students=[pipeline(1.1, (uniform(3),), schedule=VPLinear())])
    (combined,) = three.left_out(replace(asked, baselines=(pndm,)))
    assert combined.startswith(f"no baseline {pndm}: ") and "diverges" in combined
    with pytest.raises(ConfigError, match="there is no diffusers scheduler"):
        subject.left_out(replace(asked, baselines=("diffusers:PNDMSchedule",)))
    with pytest.raises(ConfigError, match="diverges"):
        refuse_sampler(pipeline(), heun, 4)
    refuse_sampler(pipeline(), heun, 64)


def test_every_baseline_that_is_left_out_has_its_sentence(data):
    names = ("diffusers:PNDMScheduler", "diffusers:HeunDiscreteScheduler", "euler-maruyama")
    students = [pipeline(1.1, (uniform(k),)) for k in (8, 3)]
    asked = replace(BRIEF, full=16, baselines=names)
    found = Candidates(pipeline(), students, data).left_out(asked)
    assert [one.split(" ")[2] for one in found] == [f"{name}:" for name in names]
    served = [pipeline(1.1, (uniform(k),), schedule=VPLinear()) for k in (8, 5, 3)]
    teacher = pipeline(schedule=VPLinear())
    [one] = Candidates(teacher, served, data).left_out(replace(asked, baselines=names[:1]))
    assert one.startswith(f"no baseline {names[0]} in 2 steps: ")


def test_a_teacher_that_is_a_student_has_no_sampler_with_another_grid(data):
    subject = Candidates(
        pipeline(times=(uniform(4),), schedule=VPLinear()),
        [pipeline(1.1, (uniform(2),), schedule=VPLinear())],
        data,
    )
    asked = replace(BRIEF, full=4, baselines=("ddim", "dpm-fast"))
    (sentence,) = subject.left_out(asked)
    assert sentence.startswith("no baseline dpm-fast: 'dpm-fast' has a grid of its own")


def test_full_steps_that_cannot_be_are_refused_without_a_network_call(data):
    class Never(nn.Module):
        def forward(self, x, t, cond=None):
            raise AssertionError("asked")

    teacher = Pipeline(Denoiser(Never(), RectifiedFlow(), V()), SHAPE)
    for sampler in OWN_GRIDS:
        with pytest.raises(ConfigError, match="t = 1"):
            refuse_sampler(teacher, sampler, 5)
        with pytest.raises(ConfigError, match="t = 1"):
            teacher_rows(teacher, (), judge(data), replace(BRIEF, full_sampler=sampler))
    refuse_sampler(teacher, "ddim", 5)
    with pytest.raises(ConfigError, match="steps"):
        refuse_sampler(teacher, "ddim", 0)


# The same noise, the same numbers.


def test_what_the_teacher_does_can_be_measured_before(found, subject, data):
    mine = judge(data)
    asked = replace(ASKED, cost_rounds=0, metrics=("frechet", "kernel"))
    before = measured_rows(subject.teacher, (4, 2, 1), mine, asked)
    told = Ledger()
    again, pictures = gather(subject, mine, asked, of_teacher=before, progress=told)
    assert told.steps == 4 + 2 + 1  # the teacher was not asked again
    for name in pictures:
        assert np.array_equal(pictures[name], found[1][name])
    for one, two in zip(found[0]["rows"], again["rows"], strict=True):
        assert (
            one["distances"] | {k: v for k, v in two["distances"].items() if v} == one["distances"]
        )
        for part in ("ratio", "fidelity", "split", "drift"):
            assert one[part] == two[part]


def test_a_student_that_is_the_teacher_keeps_everything(data):
    same = Candidates(pipeline(), [pipeline(times=(uniform(16),))], data, uniform(32))
    row = of(gather(same, judge(data), replace(BRIEF, baselines=())), "student")[0]
    one = {"value": 1.0, "low": 1.0, "high": 1.0}
    assert row["ratio"] == one and row["fidelity"]["rmse"]["value"] == 0
    assert all(each["change"]["value"] == 0 and not each["alarm"] for each in row["drift"])


def test_a_student_that_differs_loses(found):
    rows = of(found, "student")
    errors = [row["fidelity"]["rmse"]["value"] for row in rows]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_the_split_is_that_of_the_student_before(found, subject, data):
    batch = data.batch(torch.arange(24))
    makers = [subject.teacher, *subject.students]
    grids = [uniform(8), *(one.times[0] for one in subject.students)]
    for k, row in enumerate(of(found, "student")):
        grid = grid_cost(subject.teacher, grids[k], n=24)
        learning = learning_error(
            subject.students[k].denoiser, makers[k].denoiser, grids[k], batch.x0
        )
        assert row["split"] == {"grid": plain(grid), "learning": plain(learning)}


def test_without_the_student_before_there_is_no_split(data):
    asked = replace(BRIEF, baselines=())
    gap = Candidates(pipeline(), students(4, 1), data, uniform(8))
    rows = of(gather(gap, judge(data), asked), "student")
    assert [row["split"] is None for row in rows] == [False, True]
    unknown = Candidates(pipeline(), students(4, 2), data)  # the teacher's grid is not known
    rows = of(gather(unknown, judge(data), asked), "student")
    assert [row["split"] is None for row in rows] == [True, False]


def test_labels_go_only_to_a_teacher_that_takes_them(data, monkeypatch):
    from halfstep.evaluation import report_rows

    conds = []

    def seen(*args, cond, **options):
        conds.append(cond)
        return learning_error(*args, cond=cond, **options)

    monkeypatch.setattr(report_rows, "learning_error", seen)
    asked = replace(BRIEF, counts=(4,), baselines=())
    for class_names in ((), ("even", "odd")):
        labelled = Candidates(
            pipeline(class_names=class_names),
            [pipeline(1.1, (uniform(4),), class_names)],
            data,
            uniform(8),
        )
        gather(labelled, judge(data), asked)
    assert conds[0] == Cond() and conds[1].label.tolist() == [0, 1] * 12


def test_memorisation_needs_data_that_was_held_out(subject, data):
    held_out = torch.rand(30, *SHAPE, generator=seeded(9)) * 2 - 1
    asked = replace(BRIEF, counts=(4,), split_samples=0)
    rows = gather(replace(subject, held_out=held_out), judge(data), asked)[0]["rows"]
    assert [row["memorisation"] is None for row in rows] == [False, True, True, False]
    known = rows[-1]["memorisation"]
    assert known.keys() == {"train", "held_out", "ratio", "copies", "flag"}
    copied = Candidates(subject.teacher, subject.students, data, uniform(8), data.values)
    with pytest.raises(ConfigError, match="held_out are training"):
        gather(copied, judge(data), asked)


def test_what_costs_n_squared_sees_as_many_real_images_as_samples(data):
    mine = SampleScorer(FEATURES, data.values, n=25)
    assert len(mine.real_features) == 60 and len(mine.real_few) == 25
    assert torch.equal(mine.real_few, SampleScorer(FEATURES, data.values, n=25).real_few)
    rows = {tuple(row.tolist()) for row in mine.real_features}
    assert all(tuple(row.tolist()) in rows for row in mine.real_few)
    assert torch.equal(SampleScorer(FEATURES, data.values, n=60).real_few, mine.real_features)
    seen = mine.sample(pipeline(), "ddim", 2)
    subject = Candidates(pipeline(), [], data)
    asked = replace(ASKED, samples=25, full=2, cost_rounds=0)
    row = gather(subject, mine, asked)[0]["rows"][0]["distances"]
    assert row["kernel_distance"] == plain(kernel_interval(mine.real_few, seen.features))
    both = precision_recall_intervals(mine.real_few, seen.features)
    assert [row["precision"], row["recall"]] == [plain(one) for one in both]


# Pictures.


def test_the_pictures_are_of_the_same_seeds(found, subject):
    pictures = found[1]
    assert pictures["grid_labels"].tolist() == ["teacher, 16 steps", "4 steps", "2 steps", "1 step"]
    assert pictures["grid"].shape == (4, 3, 4, 6, 3) and pictures["grid"].dtype == np.uint8
    drawn = subject.students[1].sample(3)
    levels = ((drawn.numpy().transpose(0, 2, 3, 1) + 1) * 127.5).clip(0, 255)
    assert np.abs(pictures["grid"][2] - levels).max() <= 0.51


def test_the_worst_pairs_are_those_of_the_fewest_steps(found, subject):
    pictures, full = found[1], subject.teacher.sample(40, steps=16)
    worst = worst_pairs(full, subject.students[-1].sample(40), count=6)
    assert pictures["worst_labels"].tolist() == [f"1 step, seed {k}" for k in worst]
    assert pictures["worst"].shape == (6, 2, 4, 6, 3)
    levels = ((full[worst[0]].permute(1, 2, 0) + 1) * 127.5).clip(0, 255).numpy()
    assert np.abs(pictures["worst"][0, 0] - levels).max() <= 0.51


def test_a_run_without_students_is_its_teacher_alone(data):
    found, pictures = gather(Candidates(pipeline(), [], data), judge(data), BRIEF)
    assert [row["role"] for row in found["rows"]] == ["teacher"]
    assert pictures.keys() == {"grid", "grid_labels"}


def test_points_have_neither_pictures_nor_drift():
    net = build("mlp", {"dim": 3, "width": 8, "depth": 1})
    teacher = Pipeline(Denoiser(net, Cosine(), V()).freeze(), (3,))
    values = torch.randn(50, 3, generator=seeded(2)).tanh()
    subject = Candidates(
        teacher, [replace(teacher, times=(uniform(2),))], Dataset(values), uniform(4)
    )
    mine = SampleScorer(Features("points", lambda x: x), values, n=30)
    found, pictures = gather(subject, mine, replace(ASKED, samples=30, cost_rounds=0))
    assert pictures == {}
    row = found["rows"][-1]
    assert row["drift"] is None and row["split"] and not row["distances"]["inception_score"]
    assert row["cost"] is None


# What is asked for.


def test_metrics_can_be_left_out(subject, data):
    asked = replace(ASKED, metrics=("kernel",), counts=(2,), split_samples=0, cost_rounds=0)
    rows = gather(subject, judge(data), asked)[0]["rows"]
    for row in rows:
        assert row["distances"]["frechet_distance"] and row["distances"]["kernel_distance"]
        assert not any(row["distances"][k] for k in ("precision", "recall", "inception_score"))
        assert row["split"] is row["cost"] is None
    assert [row["steps"] for row in rows if row["role"] == "student"] == [2]


def test_counts_are_sorted_and_there():
    assert chosen_counts([1, 4, 2], ASKED) == [4, 2, 1]
    assert chosen_counts([1, 4, 2], replace(ASKED, counts=(1, 4))) == [4, 1]
    with pytest.raises(ConfigError, match="no student takes 3 or 8 steps: there are students of 4"):
        chosen_counts([4, 2], replace(ASKED, counts=(8, 4, 3)))
    with pytest.raises(ConfigError, match="there are students of none"):
        chosen_counts([], replace(ASKED, counts=(8,)))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"samples": 7}, "samples must be at least 8"),
        ({"full": -1}, "full must be at"),
        ({"shown": 0}, "shown must be at least 1"),
        ({"split_samples": -1}, "split_samples must be at least 0"),
        ({"cost_rounds": -2}, "cost_rounds must be at least 0"),
        ({"metrics": ("frechet", "kernl")}, "perhaps you meant 'kernel'"),
        ({"baselines": ("ddim", "huen")}, "perhaps you meant 'heun'"),
        ({"baselines": ("dpm-fats",)}, "perhaps you meant 'dpm-fast'"),
        ({"full_sampler": "dpmpp-3m"}, "perhaps you meant 'dpmpp-3s'"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(options, words):
    with pytest.raises(ConfigError, match=words):
        Evaluation(**options)


# Which is which.


def seen(images, seconds=1.0):
    return SampleSet(images, few(images), seconds)


def images(n, seed):
    return torch.rand(n, *SHAPE, generator=seeded(seed)) * 2 - 1


def test_drift_is_the_students_against_the_teachers():
    dark = images(20, 1) / 2 - 0.5  # pixels from 0 to a half
    found = {one.measure: one.change.value for one in drift_of(seen(dark), seen(dark + 0.2))}
    for k, colour in enumerate(("red", "green", "blue")):
        own = float((dark[:, k].double() + 1).mean() / 2)
        assert found[f"brightness of {colour}"] == pytest.approx(0.1 / own, rel=1e-5)


def test_a_row_is_the_students_over_the_teachers(data):
    full, other = seen(images(40, 1)), seen(images(40, 2) * 0.7 + 0.2)
    mine = judge(data)
    setup = Setup("student", "name", (pipeline(), "heun", 3))
    found = plain(row_of(setup, other, mine, ("precision-recall",), full))
    assert (found["steps"], found["calls"], found["sampler"]) == (3, 5, "heun")
    over = mine.distance(other) / mine.distance(full)
    assert found["ratio"]["value"] == pytest.approx(over) and not 0.99 < over < 1.01
    assert found["distances"]["frechet_distance"]["value"] == pytest.approx(mine.distance(other))
    rms = [float(x.square().mean().sqrt()) for x in (full.features - other.features, full.features)]
    assert found["fidelity"]["feature_rmse"]["value"] == pytest.approx(rms[0] / rms[1])
    both = precision_recall_intervals(mine.real_few, other.features)
    assert [found["distances"][name] for name in ("precision", "recall")] == plain(both)
    assert both[0].value != both[1].value


def test_memorised_is_measured_from_the_samples_to_what_was_trained_on(data):
    mine = judge(data)
    copies = SampleSet(data.values[:30], mine.real_features[:30], 1.0)
    found = memorisation_of(copies, few(images(25, 9)), mine)
    assert found.train.value == 0 < found.held_out.value


def test_pictures_stand_in_their_rows_and_pairs():
    """Row by row as given, seeds across; the worst pairs, the teacher left of the student of fewest steps."""
    full, middle = images(9, 1), images(9, 2)
    last = full.clone()
    last[7] -= 0.5
    last[2] += 0.25
    found = sheets([("teacher", full), ("4 steps", middle), ("1 step", last)], 5)
    levels = [
        ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        for x in (full, middle, last)
    ]
    assert found["grid_labels"].tolist() == ["teacher", "4 steps", "1 step"]
    assert (found["grid"] == np.stack([x[:5] for x in levels])).all()
    assert found["worst_labels"][:2].tolist() == ["1 step, seed 7", "1 step, seed 2"]
    for k, number in enumerate((7, 2)):
        assert (found["worst"][k, 0] == levels[0][number]).all()
        assert (found["worst"][k, 1] == levels[2][number]).all()


def test_the_few_real_images_are_drawn_from_all_of_them():
    """Data that lies class by class: the first n would be of one class."""
    values = torch.arange(100.0).reshape(100, 1, 1, 1) / 100
    mine = SampleScorer(Features("itself", lambda x: x.flatten(1).double()), values, n=20)
    few_of_it = (100 * mine.real_few[:, 0]).round().int().tolist()
    assert len(set(few_of_it)) == 20 and max(few_of_it) > 75 and min(few_of_it) < 25
    assert torch.equal(mine.real_few, mine.real_few)
    assert torch.equal(
        replace(mine, n=100, known_features=mine.real_features).real_few, mine.real_features
    )


def test_seconds_go_with_the_samples(data):
    some = seen(images(8, 1), seconds=4.0)
    assert some.first(2).seconds == 1.0 and len(some.first(2)) == 2
    assert torch.equal(some.first(2).images, some.images[:2])
    row = judge(data)._row((pipeline(), "heun", 3), some, seen(images(8, 2)))
    assert (row.seconds_per_sample, row.calls, row.steps) == (0.5, 5, 3)


def test_the_floor_is_that_of_as_many_samples(data):
    few_samples, many = (SampleScorer(FEATURES, data.values, n=n).floor for n in (20, 60))
    assert few_samples == sampling_floor(few(data.values), 20) > many
