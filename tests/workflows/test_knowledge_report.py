"""The example of the report on knowledge distillation: what it runs, and what it makes of the numbers."""

import gzip
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from halfstep.errors import ConfigError

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


def rows(data="digits", **accuracies):
    """Rows of made-up accuracies, one a seed."""
    return [
        {"data": data, "experiment": name.replace("_", " "), "seed": seed, "accuracy": value}
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


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


def test_differences_are_seed_by_seed_and_of_shared_seeds():
    accuracies = rows(soft=[0.9, 0.5, 0.7], scratch=[0.8, 0.4])
    difference = claims.paired_difference(accuracies, "soft", "scratch")
    assert difference.seeds == 2
    assert difference.mean == pytest.approx(0.1)
    assert difference.error == pytest.approx(0, abs=1e-12)  # 0.2 apart, and yet the same difference
    assert claims.paired_difference(accuracies, "soft", "weighted") is None


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
    accuracies = rows(scratch=[0.7] * len(by), soft=[0.7 + gain for gain in by])
    assert (
        verdicts(claims.result(accuracies, "digits"))["soft targets beat training from scratch"]
        == verdict
    )
    other = claims.result(accuracies, "fashion-mnist")  # has no rows
    assert set(verdicts(other).values()) == {"was not measured"}


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
    accuracies = rows(soft=[0.7] * 3, weighted=[0.7 + gain for gain in by])
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
    accuracies = rows(soft=[0.7] * 3)
    for temperature in (1, 2, 20):
        values = [0.7 + (gain if temperature == 20 else 0) for gain in by]
        accuracies += rows(**{f"soft,_T_=_{temperature}": values})
    assert verdicts(claims.result(accuracies, "digits"))["temperature barely matters"] == verdict


@pytest.mark.parametrize(("best", "verdict"), [(0.9, "holds"), (0.65, "does not hold")])
def test_a_claim_of_many_pairs_falls_with_one_of_them(best, verdict):
    noise = [0.001, -0.001, 0.0]
    levels = {"soft": 0.7, "weighted": 0.6, "logits": 0.5, "logits, deeper": 0.55}
    levels["weighted, augmented"] = best
    accuracies = [
        r
        for name, level in levels.items()
        for r in rows(**{name: [level + e for e in noise[:: 1 if name != "soft" else -1]]})
    ]
    by_claim = verdicts(claims.result(accuracies, "digits"))
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
    rows = report.main(options)
    assert "digits alone" in capsys.readouterr().out
    assert {(row["experiment"], row["seed"]) for row in rows} == {
        (name, seed) for name in (*some, "teacher, first") for seed in (0, 1)
    }
    assert all(
        row["accuracy"] * 1000 == pytest.approx(round(row["accuracy"] * 1000)) for row in rows
    )
    names = sorted(path.name for path in (options.out / "digits" / "seed-0").iterdir())
    assert names == ["answers", "teacher-first"]  # students go once they are judged
    result = json.loads((options.out / "report.json").read_text())["data"][0]
    assert result["accuracies"]["toy, scratch"]["seeds"] == 2
    assert set(verdicts(result).values()) == {"was not measured"}
    assert "last 38 images" in (options.out / "report.md").read_text()
    assert (options.out / "report.png").read_bytes().startswith(b"\x89PNG")

    path = options.out / "results.jsonl"
    path.write_text("\n".join([*path.read_text().splitlines()[:-1], '{"data": "dig']))
    again = report.main(options)  # the last row was cut short
    assert sorted(map(str, again)) == sorted(map(str, rows))
    more = report.main(report.Options(**about, only=("scratch, deeper",)))
    assert more[: len(rows)] == again
    assert {row["experiment"] for row in more[len(rows) :]} == {"scratch, deeper"}
    with pytest.raises(ConfigError, match=r"was begun with --rate '0\.01', now '0\.1'"):
        report.main(report.Options(**about, rate=0.1))
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
