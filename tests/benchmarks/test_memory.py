"""A distillation takes the bytes that it is held to, counted on networks whose activations are small."""

from pathlib import Path

import pytest
import torch

from benchmarks.memory import CASES, in_process, run
from halfstep.workflows.live_bytes import LiveBytes


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
    if "lora" not in case:  # whose process keeps some of what its start took
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


def test_the_table_of_gigabytes_is_what_the_cases_are_held_to():
    page = (Path(__file__).parents[2] / "docs/how-to/memory.md").read_text()
    parameters = 859_520_964, 2_567_463_684, 11_901_408_320
    rows = {
        "full, float32": "full",
        "full, bf16": "bf16",
        "LoRA of rank 16, bf16, at most": "lora-bf16",
    }
    for name, case in rows.items():
        limit = CASES[case][1]
        cells = [f"{limit * n / 1e9:.1f} GB" for n in parameters]
        assert f"| {name} | {limit:.1f} | {' | '.join(cells)} |" in page
    assert all(f"{n:,}" in page for n in parameters)
