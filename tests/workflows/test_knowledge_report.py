"""The example of the report on knowledge distillation: what it runs, and what it makes of the numbers."""

import gzip
import importlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.recipe_comparison import ComparedStudent, SeedResult
from tests.support.recipes import comparison, gain

EXAMPLES = Path(__file__).parents[2] / "examples"


def imported(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return importlib.import_module(name)


claims, report = (
    imported("knowledge_distillation_claims"),
    imported("knowledge_distillation_report"),
)
experiments = imported("knowledge_distillation_experiments")
CLAIMS = {claim.text: claim for claim in claims.CLAIMS}


def compared(**accuracies):
    """A comparison with made-up accuracies, one a seed, whose teacher has 90 % right."""
    values = {name.replace("_", " "): scores for name, scores in accuracies.items()}
    base = comparison(())
    students = tuple(
        ComparedStudent(
            name=name, terms=(), updates=1, forwards=1.0, accuracy=Interval(0.5, 0.5, 0.5),
            seeds=tuple(
                SeedResult(seed=k, accuracy=value, agreement=1.0, teacher=0.9, seconds=1.0)
                for k, value in enumerate(scores)
            ),
        )
        for name, scores in values.items()
    )  # fmt: skip
    gains = tuple(
        replace(gain(a, 0, 0, 0, "cannot tell"), control=b, differences=differences(values, a, b))
        for a, b in claims.all_pairs()
        if a in values and b in values
    )
    return replace(base, students=students, gains=gains)


def differences(values, a, b):
    return tuple(x - y for x, y in zip(values[a], values[b], strict=True))


def verdicts(result):
    return {claim["claim"]: claim["verdict"] for claim in result["claims"]}


def test_an_estimate_is_students():
    one = claims.estimate([0.5, 0.6, 0.7, 0.8, 0.9])
    assert one.mean == pytest.approx(0.7)
    assert one.error == pytest.approx(0.1 * math.sqrt(2.5) / math.sqrt(5))
    half = 2.7764451051977987 * one.error  # of four degrees of freedom
    assert (one.low, one.high) == pytest.approx((0.7 - half, 0.7 + half))
    assert one.significant
    assert math.isnan(claims.estimate([0.5]).error)
    assert not claims.estimate([0.5]).significant


def test_teachers_have_rows_of_their_own():
    scores = claims.accuracies(compared(scratch=[0.5, 0.6], **{"soft, second teacher": [0.7, 0.8]}))
    assert scores == {
        "teacher, first": [0.9, 0.9],
        "teacher, second": [0.9, 0.9],
        "scratch": [0.5, 0.6],
        "soft, second teacher": [0.7, 0.8],
    }


@pytest.mark.parametrize(
    ("by", "verdict"),
    [
        ([0.02, 0.03, 0.04], "holds"),
        ([-0.02, -0.03, -0.04], "does not hold"),
        ([-0.02, 0.03, 0.01], "cannot be told"),
        ([0.02], "was not measured"),
    ],
)
def test_soft_beats_scratch_only_beyond_two_standard_errors(by, verdict):
    accuracies = compared(scratch=[0.7] * len(by), soft=[0.7 + gain for gain in by])
    by_claim = verdicts(claims.result(accuracies, "digits"))
    assert by_claim.pop("soft targets beat training from scratch") == verdict
    assert set(by_claim.values()) == {"was not measured"}


@pytest.mark.parametrize(
    ("by", "verdict"),
    [
        ([0.001, -0.002, 0.0], "holds"),
        ([-0.05, -0.04, -0.06], "holds"),  # labels that harm add nothing, either
        ([0.003, 0.004, 0.005], "does not hold"),
        ([0.05, -0.05, 0.0], "cannot be told"),
    ],
)
def test_nothing_is_added_only_where_a_point_would_have_been_seen(by, verdict):
    accuracies = compared(soft=[0.7] * 3, weighted=[0.7 + gain for gain in by])
    assert (
        verdicts(claims.result(accuracies, "digits"))["hard labels beside them add nothing"]
        == verdict
    )


@pytest.mark.parametrize(
    ("by", "verdict"),
    [
        ([0.001, -0.001, 0.0], "holds"),
        ([-0.03, -0.031, -0.029], "does not hold"),
        ([0.011, 0.009, 0.010], "cannot be told"),
        ([0.05, -0.05, 0.0], "cannot be told"),
    ],
)
def test_temperatures_are_alike_only_within_a_point(by, verdict):
    values = {f"soft, T = {t}": [0.7 + (gain if t == 20 else 0) for gain in by] for t in (1, 2, 20)}
    accuracies = compared(soft=[0.7] * 3, **values)
    assert verdicts(claims.result(accuracies, "digits"))["temperature barely matters"] == verdict


@pytest.mark.parametrize(("best", "verdict"), [(0.9, "holds"), (0.65, "does not hold")])
def test_a_claim_of_many_pairs_falls_with_one_of_them(best, verdict):
    noise = [0.001, -0.001, 0.0]
    levels = {"soft": 0.7, "weighted": 0.6, "logits": 0.5, "logits, deeper": 0.55}
    levels["weighted, augmented"] = best
    values = {
        name: [level + e for e in noise[:: 1 if name != "soft" else -1]]
        for name, level in levels.items()
    }
    by_claim = verdicts(claims.result(compared(**values), "digits"))
    assert by_claim["augmentation is best"] == verdict
    assert by_claim["matching logits is worst"] == "holds"
    assert by_claim["a deeper student helps it"] == "holds"


def test_every_pair_that_is_compared_is_an_experiment():
    names = {one.name for one in experiments.EXPERIMENTS}
    assert len(names) == len(experiments.EXPERIMENTS)
    pairs = [pair for claim in claims.CLAIMS for pair in claim.pairs] + claims.OTHER_PAIRS
    assert {name for pair in pairs for name in pair} == names


def test_what_is_compared_differs_in_one_thing():
    """The baseline has the student's rate, its updates and its images."""
    known = {one.name: one for one in experiments.EXPERIMENTS}
    for claim in (
        "soft targets beat training from scratch",
        "with few labels soft targets help, too",
    ):
        for a, b in CLAIMS[claim].pairs:
            assert {**vars(known[a]), **dict.fromkeys(("name", "recipe", "config"))} == {
                **vars(known[b]), **dict.fromkeys(("name", "recipe", "config"))
            }  # fmt: skip


def test_each_seed_has_its_own_labels_and_all_have_one_validation_set():
    options = report.Options(labels=500, unlabelled=300)
    first, second = (experiments.seed_data("digits", seed, options) for seed in (0, 1))
    assert len(first.labelled) == 50
    assert first.labelled.labels.bincount().tolist() == [5] * 10
    assert len(first.unlabelled) == 300
    assert (first.unlabelled.labels == -1).all()
    assert len(first.validation) == 1000
    assert torch.equal(first.validation.values, second.validation.values)
    assert not torch.equal(first.labelled.values, second.labelled.values)
    first_images = {str(v.tolist()) for v in first.labelled.values}
    others = {str(v.tolist()) for v in first.unlabelled.values}
    assert not first_images & others


def test_the_filter_keeps_what_is_sure_and_balances_by_the_rarest():
    sure = torch.tensor([0.95, 0.85, 0.5, 0.9, 0.99, 0.81])
    classes = torch.tensor([0, 0, 0, 1, 0, 1])
    p = torch.full((6, 3), 0.0)
    p[torch.arange(6), classes] = sure
    p[:, 2] = 1 - sure
    assert sorted(experiments.filter_rows(p, even=False).tolist()) == [0, 1, 3, 4, 5]
    assert sorted(experiments.filter_rows(p, even=True).tolist()) == [0, 3, 4, 5]
    unsure = torch.full((6, 3), 1 / 3)
    assert experiments.filter_rows(unsure, even=True).tolist() == []


def test_it_runs_goes_on_and_refuses_other_options(tmp_path, capsys):
    about = {"out": tmp_path / "runs", "quick": True, "workers": 1}
    some = ("soft, T = 1", "weighted, unlabelled, sure, balanced", "toy, scratch")
    options = report.Options(**about, only=some)
    found = report.main(options)["digits"]
    assert "digits alone" in capsys.readouterr().out
    assert [student.name for student in found.students] == [
        e.name for e in experiments.EXPERIMENTS if e.name.startswith(some)
    ]
    scores = claims.accuracies(found)
    assert set(scores) == {*some, "teacher, first"}
    for values in scores.values():
        assert len(values) == 2
        assert all(value * 1000 == pytest.approx(round(value * 1000)) for value in values)
    result = json.loads((options.out / "report.json").read_text())["data"][0]
    assert result["accuracies"]["toy, scratch"]["seeds"] == 2
    assert set(verdicts(result).values()) == {"was not measured"}
    assert "last 38 images" in (options.out / "report.md").read_text()
    assert (options.out / "report.png").read_bytes().startswith(b"\x89PNG")

    run = options.out / "digits" / "toy, scratch" / "seed-1" / "metrics.jsonl"
    before = run.read_text()
    more = report.main(report.Options(**about, only=(*some, "scratch, deeper")))["digits"]
    assert run.read_text() == before
    assert claims.accuracies(more)["soft, T = 1"] == scores["soft, T = 1"]
    with pytest.raises(ConfigError, match=r"rate"):
        report.main(report.Options(**about, only=("toy, scratch",), rate=0.1))
    with pytest.raises(ConfigError, match=r"no experiment begins with \('hard'"):
        report.main(report.Options(**about, only=("hard",)))


@pytest.mark.slow
def test_all_of_it_runs_in_two_processes_on_fashion_mnist_too(tmp_path, idx_files):
    """As a user starts it: spawned workers import the script."""
    command = [sys.executable, str(EXAMPLES / "knowledge_distillation_report.py"), "--quick"]
    place = f"fashion-mnist:{idx_files}"
    subprocess.run([*command, "--data", place, "--out", str(tmp_path / "runs")], check=True)
    results = json.loads((tmp_path / "runs" / "report.json").read_text())["data"]
    assert [one["data"] for one in results] == ["fashion-mnist", "digits"]
    assert all(one["seeds"] == 2 for of in results for one in of["accuracies"].values())
    assert len(results[0]["accuracies"]) >= 20


@pytest.fixture
def idx_files(tmp_path):
    """Fashion-MNIST's four files with noise in them: 600 and 70 images."""
    folder = tmp_path / "idx"
    folder.mkdir()
    for stem, n in (("train", 600), ("t10k", 70)):
        pixels = torch.randint(256, (n, 28, 28), generator=torch.Generator().manual_seed(n))
        for kind, head, values in (
            ("images-idx3", (n, 28, 28), pixels),
            ("labels-idx1", (n,), torch.arange(n) % 10),
        ):
            sizes = b"".join(k.to_bytes(4, "big") for k in head)
            raw = bytes([0, 0, 8, len(head)]) + sizes + bytes(values.flatten().tolist())
            (folder / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress(raw))
    return folder
