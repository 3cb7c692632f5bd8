"""A distillation takes the bytes that it is held to, counted on networks whose activations are small."""

from pathlib import Path

import pytest
import torch

from benchmarks import memory_table
from benchmarks.memory import CASES, in_process, run
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.models import build
from halfstep.workflows.live_bytes import LiveBytes
from halfstep.workflows.memory_plan import lora_parameters


@pytest.mark.parametrize("case", ["full", "resumed", "bf16"])
def test_the_tensors_of_a_run_are_those_it_is_held_to(case, tmp_path):
    """Teacher, student, gradients and two moments through both stages, their changes and a resumption."""
    with LiveBytes() as live:
        parameters = run(case, 192, tmp_path)
    assert live.peak / parameters <= 1.02 * CASES[case][1]
    assert live.now < parameters  # nothing of the run is left


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_memory_of_a_run_is_what_it_is_held_to(case):
    result = in_process(case)
    assert result["parameters"] >= 20e6
    assert result["tensors"] <= 1.005 * CASES[case][1]
    assert result["rss"] <= 1.05 * CASES[case][1]


def test_live_bytes_counts_what_lives():
    before = torch.ones(10)
    with LiveBytes(free=[before]) as live:
        before.add_(1)
        view = torch.zeros(100)[:50]
        assert live.now == 400  # a view is not counted twice, nor is what is free
        more = view + 1
        del view
        assert live.now == 200 == more.nbytes
    assert live.peak == 600 and live.history[-1] == 600


def test_live_bytes_counts_what_backward_makes_and_tensors_without_memory():
    weight = torch.ones(30, 20, device="meta", requires_grad=True)
    with LiveBytes(free=[weight], device="meta") as live:
        x = torch.ones(5, 20, device="meta")
        (x @ weight.T).square().sum().backward()
        del x
        assert live.now == weight.grad.nbytes == 2400


@pytest.mark.slow
def test_the_table_of_gigabytes_is_computed():
    page = (Path(__file__).parents[2] / "docs/how-to/memory.md").read_text()
    assert f"<!-- memory table -->\n{memory_table.table()}\n<!-- end -->" in page


def test_the_table_counts_copies_of_the_weights():
    net = Denoiser(build("mlp", {"dim": 2, "width": 8, "depth": 1}), Cosine(), V())
    weights = 4 * memory_table.parameters(net)
    steps = 4 * len(list(net.parameters()))
    assert memory_table.full(net) == 5 * weights + steps
    assert memory_table.full(net, ema=1) == 6 * weights + steps
    linear = sum(p.numel() for p in net.parameters())  # all of them are of linear layers
    half = memory_table.full(net) - memory_table.full(net, half=True)
    assert 0 < half <= 2 * linear
    adapter = memory_table.lora(net, 1, half=False) - weights
    assert adapter == 20 * lora_parameters(net, 1) > 0
