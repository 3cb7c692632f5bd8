"""The gate: it stops at the right step, noise does not decide, and a decision is kept."""

import json
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from halfstep.diffusion.analytic import gaussian_teacher
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import arriving, Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import CheckpointError, ConfigError
from halfstep.evaluation import (
    Features,
    frechet_distance,
    Gate,
    Interval,
    SampleScorer,
    sampling_floor,
)
from halfstep.evaluation.gate import decide, Decision, describe, fewest_steps, within
from halfstep.evaluation.gate_meter import AgainstData, Meter, TeacherSource
from halfstep.evaluation.metrics.distance_bootstrap import raw_frechet_ratio
from halfstep.methods import Progressive
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.schema import CHECKSUM
from tests.support.denoisers import seeded
from tests.support.progress import Ledger
from tests.support.runs import halve, job, points

SIZE, MEAN, STD, REAL = 4, 0.3, 0.5, 0.8
"""The teacher draws N(MEAN, STD²) in the limit of many steps, and the data is N(MEAN, REAL²)."""
FULL = 64


class Posterior(nn.Module):
    """The exact network of N(MEAN, STD²), with one weight, which does nothing."""

    def __init__(self):
        super().__init__()
        self.exact = gaussian_teacher(Cosine(), MEAN, STD).net
        self.idle = nn.Parameter(torch.zeros(1))

    def forward(self, x, t, cond=None):
        return self.exact(x, t, cond)


def teacher():
    net = build("tests.evaluation.test_gate:Posterior", {})
    return Pipeline(Denoiser(net, Cosine(), V(), time=NetTime(scale=1.0)), (SIZE,))


def student(steps, weight=0.0):
    """The teacher at so many steps: it has learned nothing, so what it loses is known."""
    made = replace(teacher(), times=(uniform(steps),))
    with torch.no_grad():
        made.denoiser.net.idle.fill_(weight)
    return made


@dataclass(frozen=True)
class Spoilt(Pipeline):
    """A student whose samples are scaled."""

    gain: float = 1.0

    def sample(self, n, **options):
        return self.gain * super().sample(n, **options)


def law(steps):
    """Mean and standard deviation of what DDIM draws in so many steps: it is linear in the noise."""
    mean, std = 0.0, 1.0
    times = [torch.tensor(t, dtype=torch.float64) for t in uniform(steps)]
    for t, end in pairwise(times):
        level, next_level = Cosine().at(t), arriving(Cosine(), end)
        keep = level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2)
        slope = next_level.alpha * keep + next_level.sigma * (1 - level.alpha * keep) / level.sigma
        shift = (next_level.alpha - next_level.sigma * level.alpha / level.sigma) * (
            1 - keep * level.alpha
        )
        mean, std = float(slope * mean + shift * MEAN), float(slope * std)
    return mean, std


def distance(mean, std):
    return SIZE * ((mean - MEAN) ** 2 + (std - REAL) ** 2)


def loss(steps):
    """Its distance over the teacher's at full steps, without noise."""
    return distance(*law(steps)) / distance(*law(FULL))


@pytest.fixture(scope="module")
def real():
    return MEAN + REAL * torch.randn(3000, SIZE, generator=seeded(0))


@pytest.fixture
def meter(real):
    scorer = SampleScorer(Features("themselves", lambda x: x), real, n=400)
    source = TeacherSource(teacher(), load=teacher)
    return Meter([AgainstData(scorer, source, FULL)], source, FULL)


class Counting:
    """A measure that records its calls."""

    def __init__(self, measure):
        self.measure, self.measurements = measure, []

    def __call__(self, made, n):
        self.measurements.append((min(len(times) - 1 for times in made.times), n))
        return self.measure(made, n)


def constant_ratio(value, width=0.01):
    """A measure that always says the same of a student of so many steps."""
    values = value if isinstance(value, dict) else None

    def measure(made, n):
        ratio = values[len(made.times[0]) - 1] if values else value
        return Interval(ratio, ratio - width, ratio + width)

    return Counting(measure)


# At the right step.


def test_the_loss_of_each_halving_is_the_known_one(meter):
    """What the tests below lean on: the closed form is what is sampled."""
    meter.comparisons[0].scorer.n = 2000  # one block, so that its floor hardly counts
    for steps in (32, 16, 8, 4, 2, 1):
        measured = meter.student(student(steps), 2000)
        assert measured.value == pytest.approx(loss(steps), rel=0.03)
        assert measured.low < measured.value < measured.high


@pytest.mark.parametrize("tolerance, last", [(1.04, None), (1.15, 32), (1.4, 16), (1.9, 8), (3, 4)])
def test_the_engine_stops_where_the_loss_is_too_much(tolerance, last, meter, tmp_path):
    """A whole run: the student that broke it is the last one that was made."""
    made = [steps for steps in (32, 16, 8, 4, 2, 1) if loss(steps) <= tolerance]
    assert min(made, default=None) == last
    gate = Gate(meter.student, tolerance, file=tmp_path / "d/gate.json", samples=400, most=1600)
    method = Progressive(start=FULL, updates=(0,))
    data = points()
    data = replace(data, values=torch.cat([data.values, data.values[:, :1]], 1))
    halve(tmp_path / "d", method=method, pipeline=teacher(), data=data, job=job(gate=gate))
    assert [d.steps for d in gate.decisions] == [*made, (last or FULL) // 2]
    assert [d.verdict for d in gate.decisions] == ["passed"] * len(made) + ["broken"]
    assert (gate.best.steps if gate.best else None) == last
    stages = {path.name for path in (tmp_path / "d" / "stages").iterdir()}
    assert stages == {decision.stage for decision in gate.decisions}
    record = json.loads((tmp_path / "d" / "gate.json").read_text())
    assert record["best"] == (f"{last:04d}-steps" if last else None)
    assert record["stopped"].startswith(f"Stopped at {(last or FULL) // 2} steps: ")


@pytest.mark.parametrize("gain, passes", [(1.0, True), (1.02, True), (0.9, False), (0.5, False)])
def test_a_student_that_was_spoilt_on_purpose(gain, passes, meter):
    """Its law is known: the same mean and deviation, both times the gain."""
    spoilt = Spoilt(**vars(student(32)), gain=gain)
    mean, std = law(32)
    expected = distance(gain * mean, gain * std) / distance(*law(FULL))
    assert (expected <= 1.1) == passes
    gate = Gate(meter.student, 1.1, samples=400, most=3200)
    assert gate(spoilt) == passes
    assert gate.decisions[0].ratio.value == pytest.approx(expected, rel=0.05)
    assert gate.decisions[0].verdict == ("passed" if passes else "broken")


def test_teacher_and_student_see_the_same_noise(meter):
    """At full steps a student that learned nothing is the teacher: 1, without any width."""
    assert meter.student(student(FULL), 100) == Interval(1.0, 1.0, 1.0)


def test_more_samples_are_added_to_those_there_are(meter, monkeypatch):
    drawn_by = []
    sample = Pipeline.sample

    def counted(self, n, **options):
        drawn_by.append((options["steps"], options["first"], n))
        return sample(self, n, **options)

    monkeypatch.setattr(Pipeline, "sample", counted)
    meter.student(student(8), 100)
    more = meter.student(student(8), 200)
    meter.student(student(4), 50)
    assert drawn_by == [(64, 0, 100), (8, 0, 100), (64, 100, 100), (8, 100, 100), (4, 0, 50)]
    monkeypatch.setattr(Pipeline, "sample", sample)
    (data,) = meter.comparisons
    fresh = Meter([AgainstData(data.scorer, data.teacher, FULL)], data.teacher, FULL)
    assert fresh.student(student(8), 200) == more
    meter.student(student(4), 20)
    again = meter.student(student(8), 200)
    assert again == more  # the teacher's 200 were not cut to 20


def test_all_steps_of_a_look_are_expected_before_the_first(meter):
    expected = {
        (8, 300): 2 * (64 + 8),
        (8, 700): 2 * (64 + 8),
        (4, 300): 2 * 4,
        (2, 900): 64 + 4 * 2,
    }
    for (steps, n), count in expected.items():
        ledger = Ledger()
        meter.showing = lambda title, ledger=ledger: nullcontext(ledger)
        meter.student(student(steps), n)
        assert ledger.steps == count, (steps, n)


# Noise does not decide.


class Noisy:
    """A ratio known up to noise: the mean of so many draws, with its interval."""

    def __init__(self, truth, seed, sigma=2.0):
        self.draws = truth + sigma * np.random.default_rng(seed).normal(size=12_800)
        self.looks = []

    def __call__(self, made, n):
        self.looks.append(n)
        mean, half = self.draws[:n].mean(), 1.96 * self.draws[:n].std() / n**0.5
        return Interval(mean, mean - half, mean + half)


@pytest.mark.parametrize("truth", [0.95, 1.25])
def test_a_wrong_decision_is_rare(truth):
    """At the first look the noise is as large as what is to be told: the value alone errs in a sixth."""
    wrong, hasty, looks = 0, 0, 0
    for seed in range(200):
        noisy = Noisy(truth, seed)
        right = truth <= 1.1
        wrong += Gate(noisy, 1.1, samples=200, most=12_800)(student(4)) != right
        hasty += (noisy.draws[:200].mean() <= 1.1) != right
        looks += len(noisy.looks)
        assert noisy.looks == [200 * 2**k for k in range(len(noisy.looks))]
    assert wrong <= 6 and hasty >= 15
    assert looks > 2 * 200


def test_what_stays_undecided_is_decided_by_its_value_and_says_so():
    for value, goes_on in ((1.09, True), (1.11, False)):
        measure, heard = constant_ratio(value, 0.05), []
        gate = Gate(measure, 1.1, samples=100, most=350, tell=heard.append)
        assert gate(student(4)) == goes_on
        assert [n for _, n in measure.measurements] == [100, 200, 350]
        (decision,) = gate.decisions
        assert (decision.verdict, decision.samples) == ("undecided", 350)
        assert within(decision, 1.1) == goes_on and (gate.best is not None) == goes_on
        side = "within" if goes_on else "more than"
        assert f"still undecided with 350 samples, the value decides: {side} 1.10" in heard[0]


def test_a_clear_student_costs_one_look():
    for value in (1.0, 1.2):
        measure = constant_ratio(value)
        Gate(measure, 1.1, samples=100)(student(4))
        assert measure.measurements == [(4, 100)]


@pytest.mark.parametrize(
    "low, high, verdict",
    [(0.9, 1.0, "passed"), (0.9, 1.1, "passed"), (0.9, 1.11, "undecided"), (1.1, 1.2, "undecided"),
     (1.11, 1.2, "broken")],
)  # fmt: skip
def test_a_verdict_needs_the_whole_interval(low, high, verdict):
    assert decide(Interval(1.0, low, high), 1.1) == verdict


@pytest.mark.parametrize(
    "interval, said_of_it",
    [
        (Interval(1.0, 0.95, 1.05), "4 steps: 1.00 (0.95 to 1.05) times the teacher's distance at full "
         "steps, within 1.10"),
        (Interval(1.3, 1.2, 1.4), "4 steps: 1.30 (1.20 to 1.40) times the teacher's distance at full "
         "steps, surely more than 1.10"),
    ],
)  # fmt: skip
def test_a_decision_in_words(interval, said_of_it):
    decision = Decision("0004-steps", 4, interval, 100, decide(interval, 1.1), "")
    assert describe(decision, 1.1) == said_of_it
    assert describe(replace(decision, steps=1), 1.1).startswith("1 step: ")


# A decision is kept.


def gate_in(folder, measure, tolerance=1.1, **options):
    return Gate(measure, tolerance, file=folder / "gate.json", samples=100, most=400, **options)


VALUES = {16: 1.0, 8: 1.05, 4: 1.5, 2: 1.6, 1: 3.0}


def test_a_resumed_run_keeps_its_decisions_without_measuring_again(tmp_path):
    heard = []
    first = gate_in(tmp_path, constant_ratio(VALUES), tell=heard.append)
    assert [first(student(k)) for k in (16, 8)] == [True, True] and len(heard) == 2
    measure = constant_ratio(VALUES)
    again = gate_in(tmp_path, measure, tell=heard.append)
    assert [again(student(k)) for k in (16, 8, 4)] == [True, True, False]
    assert measure.measurements == [(4, 100)] and len(heard) == 3
    assert again.decisions[:2] == first.decisions and again.best == first.decisions[1]
    last, silent = gate_in(tmp_path, None), json.loads((tmp_path / "gate.json").read_text())
    assert [last(student(k)) for k in (16, 8, 4)] == [True, True, False]
    del silent[CHECKSUM]
    assert last.to_json() == silent == again.to_json()


def test_a_student_that_was_trained_further_is_measured_again(tmp_path):
    gate_in(tmp_path, constant_ratio(VALUES))(student(8))
    assert not gate_in(tmp_path, constant_ratio(VALUES))(student(4))
    measure = constant_ratio(1.0)
    again = gate_in(tmp_path, measure)
    assert again(student(8)) and again(student(4, weight=1.0))
    assert measure.measurements == [(4, 100)]
    assert [d.steps for d in gate_in(tmp_path, None).decisions] == []  # read at the first decision
    assert [(d.steps, d.verdict) for d in again.decisions] == [(8, "passed"), (4, "passed")]


def test_what_follows_a_student_that_changed_is_forgotten(tmp_path):
    gate = gate_in(tmp_path, constant_ratio(VALUES), until=1)
    for steps in (8, 4, 2):
        gate(student(steps))
    gate(student(4, weight=1.0))
    assert [d.steps for d in gate.decisions] == [8, 4]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"tolerance": 1.2}, "tolerance 1.1 and now with 1.2"),
        ({"about": {"features": "b", "seed": 0}}, "features a and now with b"),
        ({"about": {"features": "a", "seed": 1}}, "seed 0 and now with 1"),
        ({"about": {"features": "a"}}, "seed 0 and now with None"),
    ],
)
def test_another_question_is_refused_with_a_sentence(changes, words, tmp_path):
    about = {"about": {"features": "a", "seed": 0}}
    gate_in(tmp_path, constant_ratio(VALUES), **about)(student(16))
    before = (tmp_path / "gate.json").read_bytes()
    options = {"tolerance": 1.1, **about, **changes}
    measure = constant_ratio(VALUES)
    with pytest.raises(ConfigError) as refused:
        gate_in(tmp_path, measure, **options)(student(16))
    assert words in str(refused.value) and f"delete '{tmp_path / 'gate.json'}'" in str(
        refused.value
    )
    assert not measure.measurements and (tmp_path / "gate.json").read_bytes() == before


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"tolerance": 1.1, "about": {}}',
     '{"tolerance": 1.1, "about": {}, "decisions": [{"steps": 4}]}',
     '{"tolerance": 1.1, "about": 3, "decisions": []}', '{"tolerance": 1.1, "about": {}, "decisions": 5}',
     '{"tolerance": 1.1, "about": {}, "decisions": [3]}'],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_a_sentence(text, tmp_path):
    (tmp_path / "gate.json").write_text(text)
    with pytest.raises(CheckpointError, match="damaged"):
        gate_in(tmp_path, constant_ratio(VALUES))(student(16))
    assert (tmp_path / "gate.json").read_text() == text


def test_only_the_first_process_writes(tmp_path):
    gate = gate_in(tmp_path, constant_ratio(VALUES), writes=False)
    assert gate(student(16)) and not list(tmp_path.iterdir())


def test_a_gate_without_a_file_writes_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gate = Gate(constant_ratio(VALUES), 1.1)
    assert [gate(student(k)) for k in (8, 4)] == [True, False]
    assert not list(tmp_path.iterdir())


# --until.


def test_until_one_never_stops_and_reports_all(tmp_path):
    gate = gate_in(tmp_path, constant_ratio(VALUES), until=1)
    assert all(gate(student(k)) for k in (16, 8, 4, 2, 1))
    record = json.loads((tmp_path / "gate.json").read_text())
    assert record["stopped"] is None and record["best"] == "0008-steps" and record["until"] == 1
    assert [decision["verdict"] for decision in record["decisions"]] == ["passed"] * 2 + [
        "broken"
    ] * 3


def test_until_some_steps_stops_there():
    gate = Gate(constant_ratio(VALUES), 1.02, until=4)
    assert [gate(student(k)) for k in (16, 8, 4)] == [True, True, False]
    assert gate.to_json()["stopped"].startswith("Stopped at 4 steps")
    assert gate.best.steps == 16
    assert Gate(constant_ratio(1.0), 1.02, until=4)(student(2))  # while it holds, on it goes


def test_a_run_that_stopped_goes_on_when_until_says_so(tmp_path):
    assert not gate_in(tmp_path, constant_ratio(VALUES))(student(4))
    measure = constant_ratio(VALUES)
    gate = gate_in(tmp_path, measure, until=1)
    assert gate(student(4)) and gate(student(2)) and measure.measurements == [(2, 100)]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"tolerance": 0.9}, "tolerance of 0.9 asks a student to be better"),
        ({"tolerance": float("nan")}, "tolerance of nan"),
        ({"samples": 0}, "0 samples first"),
        ({"samples": 100, "most": 50}, "100 samples first and 50"),
        ({"until": 0}, "write until=1"),
    ],
)
def test_a_gate_that_cannot_be_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        Gate(constant_ratio(1.0), **{"tolerance": 1.1, **options})


# --start auto.


@pytest.mark.parametrize("slack", [1.02, 1.1, 1.4, 1.9, 3, 9])
def test_the_start_is_the_fewest_steps_that_cost_nothing(slack, meter):
    good = [steps for steps in (64, 32, 16, 8, 4, 2) if loss(steps) <= slack]
    actual = fewest_steps(meter.teacher_at, FULL, samples=400, most=3200, slack=slack)
    assert actual == min(good)


@pytest.mark.parametrize(
    "full, stop, expected", [(64, 1, 2), (64, 4, 8), (48, 3, 6), (7, 1, 7), (12, 1, 3), (2, 1, 2)]
)
def test_it_leaves_a_halving_to_be_done(full, stop, expected):
    """A start can be halved down to stop, once at least."""
    start = fewest_steps(lambda steps, n: Interval(1, 1, 1), full, stop=stop)
    assert start == expected


def test_what_cannot_be_told_gets_more_samples_and_counts_as_different():
    looks = []

    def ratio(steps, n):
        looks.append((steps, n))
        width = 0.1 if steps == 8 else 2 / n**0.5
        return Interval(1.0, 1 - width, 1 + width)

    assert fewest_steps(ratio, 32, samples=2000, most=12_000) == 16
    assert looks == [(16, 2000), (16, 4000), (16, 8000), (16, 12_000), *looks[4:]]
    assert [pair for pair in looks if pair[0] == 8] == [(8, 2000 * 2**k) for k in range(3)] + [
        (8, 12_000)
    ]


# The floor.


def test_the_floor_is_in_both(real):
    """Two perfect samplers, each with noise of its own, are at a ratio of 1 on average."""
    values = []
    for seed in range(40):
        a, b = (
            MEAN + REAL * torch.randn(150, SIZE, generator=seeded(k)) for k in (seed, seed + 99)
        )
        values.append(raw_frechet_ratio(real, a, b, resamples=39).value)
    assert np.median(values) == pytest.approx(1, abs=0.25)
    assert frechet_distance(real, a) == pytest.approx(sampling_floor(real, 150), rel=0.9)


def test_a_student_after_one_that_broke_is_not_the_best():
    """With until=1 the gate goes on; the best student is the last before the first failure."""
    gate = Gate(constant_ratio({8: 1.0, 4: 1.05, 2: 1.5, 1: 1.0}), 1.1, until=1)
    assert gate.best is None
    assert [gate(student(steps)) for steps in (8, 4, 2, 1)] == [True] * 4
    assert [d.verdict for d in gate.decisions] == ["passed", "passed", "broken", "passed"]
    assert gate.best.steps == 4 and gate.to_json()["best"] == "0004-steps"


def test_a_smaller_network_that_is_no_student_yet_passes():
    measure = constant_ratio(9.0)
    gate = Gate(measure, 1.1)
    assert gate(teacher()) and not measure.measurements and not gate.decisions
    assert not gate(student(4))
