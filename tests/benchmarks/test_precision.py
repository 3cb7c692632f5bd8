"""The benchmark of compiled and half-precision updates."""

import pytest
import torch

from benchmarks.precision import measure, PARTS, Setup, table

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def setups():
    return [Setup(name, CPU, 4) for name in ("float32", "bf16 teacher", "bf16")]


class Timed:
    """A setup whose parts take known seconds: a whole update, the teacher's calls, the student's."""

    def __init__(self, name, first, **seconds):
        self.name, self.first, self.parts = name, first, seconds

    def seconds(self, part):
        return self.parts[part]


def test_the_parts_of_an_update_are_shares_of_the_first_setup():
    plain = Timed("float32", 0.1, whole_update=0.10, teacher=0.03, student=0.06)
    faster = Timed("compiled", 2.0, whole_update=0.08, teacher=0.02, student=0.05)
    results = measure([plain, faster], rounds=3)
    assert results["float32_ms"] == pytest.approx(100)
    shares = {"teacher": 0.3, "student": 0.6, "rest": 0.1, "whole_update": 1}
    assert results["setups"]["float32"] == pytest.approx(
        {**shares, "first_s": 0.1, "pays_after": None}
    )
    shares = {"teacher": 0.2, "student": 0.5, "rest": 0.1, "whole_update": 0.8}
    compiled = {
        **shares,
        "first_s": 2.0,
        "pays_after": 100,
    }  # 2 s are 100 times the .02 that it saves
    assert results["setups"]["compiled"] == pytest.approx(compiled)


def test_every_part_of_a_setup_takes_its_time(setups):
    assert all(setup.first > 0 and setup.seconds(part) > 0 for setup in setups for part in PARTS)


def test_only_the_networks_that_a_setup_names_compute_in_bfloat16(setups):
    float32, bf16 = torch.float32, torch.bfloat16
    wanted = {
        "float32": {(False, float32), (True, float32)},
        "bf16 teacher": {(False, bf16), (True, float32)},
        "bf16": {(False, bf16), (True, bf16)},
    }
    for setup in setups:
        assert calls_of(setup, setup.bench.update) == wanted[setup.name]
        alone = calls_of(setup, setup.teacher) | calls_of(setup, setup.student)
        assert alone == wanted[setup.name]


def calls_of(setup, work):
    """Whether a linear layer was called with gradients, and the dtype of what it returned."""
    seen = set()

    def keep(module, args, out):
        seen.add((torch.is_grad_enabled(), out.dtype))

    nets = {call.net for call in setup.bench.calls}
    layers = [next(m for m in net.modules() if isinstance(m, torch.nn.Linear)) for net in nets]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    work()
    for hook in hooks:
        hook.remove()
    return seen


def test_the_table_has_a_line_for_each_setup(setups):
    about = {"device": "cpu", "threads": 1, "torch": "2", "batch": 4, "rounds": 2}
    text = table(about | measure(setups, rounds=2)).splitlines()
    assert len(text) == 2 + len(setups)
    assert "never" in text[2]
    assert max(map(len, text)) <= 90
