"""The benchmark of compiled and half-precision updates."""

import pytest
import torch

from benchmarks.precision import measure, table, Way

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ways():
    return [Way(name, CPU, 4) for name in ("float32", "bf16 teacher", "bf16")]


def test_the_parts_of_an_update_are_shares_of_the_first_way(ways):
    results = measure(ways, rounds=3)
    for name, row in results["ways"].items():
        assert row["teacher"] + row["student"] + row["rest"] == pytest.approx(row["whole_update"])
        assert row["first_s"] > 0, name
    assert results["ways"]["float32"]["whole_update"] == 1
    assert results["ways"]["float32"]["pays_after"] is None


def test_only_the_networks_that_a_way_names_compute_in_bfloat16(ways):
    float32, bf16 = torch.float32, torch.bfloat16
    wanted = {
        "float32": {(False, float32), (True, float32)},
        "bf16 teacher": {(False, bf16), (True, float32)},
        "bf16": {(False, bf16), (True, bf16)},
    }
    for way in ways:
        assert calls_of(way, way.bench.update) == wanted[way.name]
        alone = calls_of(way, way.teacher) | calls_of(way, way.student)
        assert alone == wanted[way.name]


def calls_of(way, work):
    """Whether a linear layer was called with gradients, and the dtype of what it returned."""
    seen = set()

    def keep(module, args, out):
        seen.add((torch.is_grad_enabled(), out.dtype))

    nets = {call.net for call in way.bench.calls}
    layers = [next(m for m in net.modules() if isinstance(m, torch.nn.Linear)) for net in nets]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    work()
    for hook in hooks:
        hook.remove()
    return seen


def test_the_table_has_a_line_for_each_way(ways):
    about = {"device": "cpu", "threads": 1, "torch": "2", "batch": 4, "rounds": 2}
    text = table(about | measure(ways, rounds=2)).splitlines()
    assert len(text) == 2 + len(ways)
    assert "never" in text[2]
    assert max(map(len, text)) <= 90
