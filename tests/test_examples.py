"""The examples run, and what they show is what happened."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch

import halfstep
from halfstep import Cosine, Denoiser, Pipeline, V
from halfstep.samplers import ddim, heun

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
def test_a_recorded_walk_is_the_walk(figure1, points, steps):
    noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    path = figure1.visited(points, noise, steps)
    assert path.shape == (steps + 1, 3, 2)
    assert torch.equal(path[0], noise)
    assert torch.equal(path[-1], halfstep.sample(points.denoiser, noise, points.grid(steps)))


def test_a_recorded_step_is_the_step(figure1, points):
    noise, path = torch.randn(3, 2, generator=torch.Generator().manual_seed(2)), []
    end = halfstep.sample(points.denoiser, noise, points.grid(4), figure1.recorded(heun, path))
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


def test_the_ablation_refuses_what_cannot_be_distilled_and_scores_the_rest(tmp_path, capsys):
    ablation = example("parameterisations")
    rows = ablation.main(ablation.Options(out=tmp_path, quick=True))
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows
    said = {(row["schedule"], row["output"], row["weight"]): row for row in rows}
    distilled = said["cosine", "x0", "snr+1"]
    assert all(math.isfinite(distilled[name]) for name in ablation.COLUMNS[3:])
    assert "vanishes at SNR 0" in said["cosine", "x0", "snr"]["4 steps"]
    assert "predicts eps" in said["cosine", "eps", "truncated-snr"]["4 steps"]
    assert math.isfinite(said["cosine", "eps", "truncated-snr"]["ancestral"])
    assert "at t = 1 of a zero" in said["table-zero-snr", "eps", "snr"]["ddim"]
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
