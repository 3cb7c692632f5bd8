"""The examples run, and what they show is what happened."""

import gzip
import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch

import halfstep
from halfstep import Cosine, Denoiser, Pipeline, V
from halfstep.diffusion.samplers import ddim, heun

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def figure1():
    return example("figure1")


@pytest.fixture
def points():
    torch.manual_seed(0)
    net = halfstep.build("mlp", {"width": 8, "depth": 1})
    return Pipeline(Denoiser(net, Cosine(), V()), shape=(2,))


@pytest.mark.parametrize("steps", [1, 5])
def test_a_path_ends_where_sampling_does(figure1, points, steps):
    noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    path = figure1.ddim_path(points, noise, steps)
    assert path.shape == (steps + 1, 3, 2)
    assert torch.equal(path[0], noise)
    assert torch.equal(path[-1], halfstep.sample(points.denoiser, noise, points.grid(steps)))


def test_a_recorded_step_is_the_step(figure1, points):
    noise, path = torch.randn(3, 2, generator=torch.Generator().manual_seed(2)), []
    end = halfstep.sample(points.denoiser, noise, points.grid(4), figure1.recording(heun, path))
    assert torch.equal(end, halfstep.sample(points.denoiser, noise, points.grid(4), heun))
    assert len(path) == 4
    assert not torch.equal(end, halfstep.sample(points.denoiser, noise, points.grid(4), ddim))


def test_figure1_is_drawn(figure1, tmp_path, capsys):
    options = figure1.Options(out=tmp_path, updates=2, halving=1, points=3)
    picture = figure1.main(options)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 200_000
    assert sorted(p.name for p in (tmp_path / "student" / "stages").iterdir()) == [
        f"{steps:04d}-steps" for steps in (1, 2, 4, 8, 16, 32)
    ]
    assert "1 distilled" in capsys.readouterr().out


@pytest.fixture(scope="module")
def which_method():
    return example("which_method")


def test_which_method_is_measured_and_drawn(which_method, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(which_method, "POINTS", 20)
    monkeypatch.setattr(which_method, "ODE", 16)
    names = ("progressive", "multistep-consistency", "cached-walks")
    options = which_method.Options(out=tmp_path, updates=2, budget=128_000, methods=names)
    distances = which_method.main(options)
    assert list(distances) == ["teacher, 16 steps", "teacher, DDIM", *names]
    assert all(math.isfinite(value) for row in distances.values() for value in row)
    assert (tmp_path / "which-method.png").read_bytes().startswith(b"\x89PNG")
    assert "multistep-consistency" in capsys.readouterr().out


def test_every_arrow_of_a_target_begins_where_the_last_one_ends(which_method):
    for title, steps, (start, end) in which_method.TARGETS:
        ends = [start, *(end for _, end, _ in steps)]
        assert [begin for begin, _, _ in steps] == ends[:-1] and ends[-1] == end, title


def test_the_drawn_trajectory_is_the_samplers(which_method, points):
    path = which_method.trajectory(points, 3)
    noise = halfstep.rng.sample_noise(0, [3], (2,))
    assert path.shape == (which_method.FINE + 1, 2) and torch.equal(path[:1], noise)
    assert torch.equal(path[-1:], halfstep.sample(points.denoiser, noise, points.grid(16)))


@pytest.mark.slow
def test_every_method_is_near_the_teachers_ode(which_method, tmp_path):
    """At 4 steps at most 1.5 times the distance of progressive distillation, for as many forwards."""
    distances = which_method.main(which_method.Options(out=tmp_path))
    at_four = {name: row[which_method.COUNTS.index(4)] for name, row in distances.items()}
    for name in which_method.NAMES:
        assert at_four[name] <= 1.5 * at_four["progressive"], name


def test_the_ablation_refuses_what_cannot_be_distilled_and_scores_the_rest(tmp_path, capsys):
    ablation = example("parameterisations")
    rows = ablation.main(ablation.Options(out=tmp_path, quick=True))
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows
    by_case = {(row["schedule"], row["output"], row["weight"]): row for row in rows}
    distilled = by_case["cosine", "x0", "snr+1"]
    assert all(math.isfinite(distilled[name]) for name in ablation.COLUMNS[3:])
    assert "vanishes at SNR 0" in by_case["cosine", "x0", "snr"]["4 steps"]
    assert "predicts eps" in by_case["cosine", "eps", "truncated-snr"]["4 steps"]
    assert math.isfinite(by_case["cosine", "eps", "truncated-snr"]["ancestral"])
    assert "at t = 1 of a zero" in by_case["table-zero-snr", "eps", "snr"]["ddim"]
    table = capsys.readouterr().out.splitlines()
    assert len([line for line in table if line.startswith("| ")]) == 1 + len(rows)


def test_the_ablation_has_a_row_for_every_pair():
    ablation = example("parameterisations")
    pairs = {(output, weight) for end, output, weight in ablation.ROWS if end == "cosine"}
    assert len(pairs) == len(ablation.OUTPUTS) * len(ablation.WEIGHTS) == 16
    assert {end for end, _, _ in ablation.ROWS} == set(ablation.ENDS)


def test_the_cut_cosine_ends_where_the_table_does():
    ends = example("parameterisations").ENDS
    one = torch.ones((), dtype=torch.float64)
    alphas = [float(ends[name].at(one).alpha ** 2) for name in ("cosine-cut", "table")]
    assert alphas == pytest.approx([0.0047, 0.0047], abs=5e-5)
    assert ends["table-zero-snr"].at(one).alpha == 0


@pytest.mark.slow
def test_loras_and_walks_are_scored_beside_each_other(tmp_path, capsys):
    lora = example("lora")
    options = lora.Options(
        out=tmp_path, ranks=(0, 4), data=("digits", "none"), updates=(1, 1, 1, 2), batch=4, n=64
    )
    rows = lora.main(options)
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows
    assert [(row["data"], row["rank"]) for row in rows] == [
        ("digits", 0), ("digits", 4), ("none", 0), ("none", 4),
    ]  # fmt: skip
    assert len({tuple(row[str(n)] for n in lora.COUNTS) for row in rows}) == 4
    sizes = [
        (tmp_path / name / "stages/0001-steps/pipeline.safetensors").stat().st_size
        for name in ("digits-all", "digits-4")
    ]
    assert sizes[1] < sizes[0] / 2  # the adapter alone
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)


@pytest.fixture(scope="module")
def uvit_ablation():
    return example("uvit_ablation")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HALFSTEP_CACHE", str(tmp_path / "cache"))


def written(folder):
    """All files of the runs, and when they were written."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if "seed-" in str(p) and p.is_file()}


@pytest.mark.usefixtures("cache")
def test_the_uvit_ablation_scores_every_network_and_goes_on(uvit_ablation, tmp_path, capsys):
    options = uvit_ablation.Options(out=tmp_path / "runs", quick=True)
    rows = uvit_ablation.main(options)
    assert json.loads((options.out / "results.json").read_text())["rows"] == rows
    assert [row["network"] for row in rows] == list(uvit_ablation.VARIANTS)
    scores = {row["network"]: (*row["teacher"], *row["student"]) for row in rows}
    assert all(len(values) == 2 and min(values) > 0 for values in scores.values())
    assert len(set(scores.values())) == len(rows)
    assert (options.out / "uvit-ablation.png").read_bytes().startswith(b"\x89PNG")
    stages = options.out / "no-long-skips" / "seed-0" / "student" / "stages"
    assert sorted(p.name for p in stages.iterdir()) == ["0004-steps", "0008-steps", "0016-steps"]
    printed = capsys.readouterr().out
    assert len([line for line in printed.splitlines() if line.startswith("| ")]) == 1 + len(rows)

    before = {p: at for p, at in written(options.out).items() if p.suffix == ".safetensors"}
    assert uvit_ablation.main(options) == rows
    assert before == {p: at for p, at in written(options.out).items() if p in before}


def test_the_networks_cost_the_same_but_for_what_is_left_out(uvit_ablation):
    options, data, costs = uvit_ablation.Options(), halfstep.load_data("digits"), {}
    for name in uvit_ablation.VARIANTS:
        net, config = uvit_ablation.network(name, data, options)
        blank = uvit_ablation.blank(net, config, 0, data)
        costs[name] = uvit_ablation.multiply_adds(blank)
    full, tokens, skips = costs["U-ViT"], 16 + 2, 2
    assert full - costs["no long skips"] == skips * tokens * 2 * 64 * 64
    assert full - costs["no final convolution"] == 8 * 8 * 3 * 3
    assert costs["U-Net"] == pytest.approx(full, rel=0.03)


@pytest.mark.usefixtures("cache")
@pytest.mark.slow
def test_the_uvit_ablation_reads_fashion_mnist(uvit_ablation, tmp_path):
    pixels = torch.randint(256, (96, 28, 28), generator=torch.Generator().manual_seed(0))
    for name, head, values in (
        ("images-idx3", (96, 28, 28), pixels),
        ("labels-idx1", (96,), torch.arange(96) % 10),
    ):
        sizes = b"".join(n.to_bytes(4, "big") for n in head)
        raw = bytes([0, 0, 8, len(head)]) + sizes + bytes(values.flatten().tolist())
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(raw))
    about = {"data": f"fashion-mnist:{tmp_path}", "features": "digits", "quick": True}
    rows = uvit_ablation.main(uvit_ablation.Options(out=tmp_path / "runs", **about))
    assert rows[0]["config"]["patch_size"] == 4
    assert len(rows[-1]["config"]["block_out_channels"]) == 3  # 32, 16, 8: the U-ViT's 8 x 8 tokens
    assert all(math.isfinite(row["student"][0]) for row in rows)


def test_networks_are_apart_only_where_no_seeds_overlap(uvit_ablation):
    scores = {"U-ViT": [2.0, 3.0], "over": [2.9, 9.0], "under": [0.1, 2.9]}
    scores |= {"above": [3.1, 4.9], "below": [0.5, 1.5]}
    rows = [{"network": name, "teacher": v, "student": v[::-1]} for name, v in scores.items()]
    lines = uvit_ablation.verdict(rows).splitlines()
    assert lines[::2] == [
        "over, teacher: 2.38 of the U-ViT's distance, within the spread over seeds",
        "under, teacher: 0.60 of the U-ViT's distance, within the spread over seeds",
        "above, teacher: 1.60 of the U-ViT's distance, worse with every seed",
        "below, teacher: 0.40 of the U-ViT's distance, better with every seed",
    ]
    assert [line.replace("student", "teacher") for line in lines[1::2]] == lines[::2]
    assert uvit_ablation.spread([0.5, 1.5, 2.5]) == "1.500 ± 1.000"
    assert uvit_ablation.spread([0.5]) == "0.500"


@pytest.mark.usefixtures("cache")
@pytest.mark.slow
def test_the_guided_ablation_holds_one_student_against_many(tmp_path, capsys):
    ablation = example("guided_ablation")
    options = ablation.Options(out=tmp_path / "runs", quick=True)
    rows = ablation.main(options)
    assert json.loads((options.out / "results.json").read_text()) == rows
    both = [(scale, steps) for scale in (1.0, 3.0) for steps in (8, 4, 2, 1)]
    assert [(row["guidance_scale"], row["steps"]) for row in rows] == both
    assert all(row["range"] > 0 and row["one"] > 0 for row in rows)
    assert any(row["range"] != row["one"] for row in rows)
    assert Pipeline.load(options.out / "3-3" / "stages" / "guided").guidance_range == (3.0, 3.0)
    assert capsys.readouterr().out.count("\n| ") == len(rows)
