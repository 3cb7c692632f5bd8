"""The benchmark of one update measures what it says."""

import json

import pytest
import torch

from benchmarks.step import main, table
from benchmarks.step_bench import Bench, BENCHED
from halfstep.models import recipe


@pytest.fixture(autouse=True)
def same_threads():
    """The benchmark sets torch's number of threads, which belongs to the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def made(bench, work):
    """(network, rows, whether with a gradient) of each network call that `work` makes, in order."""
    calls = []

    def keep(net, args):
        calls.append((net, len(args[0]), torch.is_grad_enabled()))

    hooks = [net.register_forward_pre_hook(keep) for net in bench._networks()]
    getattr(bench, work)()
    for hook in hooks:
        hook.remove()
    bench.student.zero_grad()
    return calls


@pytest.mark.parametrize(
    ("name", "method", "size"), [*(("uvit", m, 32) for m in BENCHED), ("unet", "progressive", 2)]
)
def test_the_floor_makes_the_network_calls_of_an_update_and_costs_what_is_declared(
    name, method, size
):
    """A batch of 32: every kind of row of flow maps and of walks is as frequent in it as on average."""
    bench = Bench(name, torch.device("cpu"), batch=size, method=method)
    floor = made(bench, "floor")
    assert made(bench, "update") == made(bench, "whole_update") == floor
    student = bench.student.net
    assert [call for call in floor if call[2]] == [(student, size, True)]
    cost = sum(rows * (3 if grad else 1) for _, rows, grad in floor)
    assert cost == bench.forwards * size
    assert cost == bench.objective.cost(1, size) - bench.once
    assert bench.forwards == bench.objective.forwards


def test_costs_are_those_of_the_methods():
    """Forwards of a sample: the student's three, and the calls that the target needs."""
    costs = {
        method: Bench("uvit", torch.device("cpu"), batch=32, method=method).forwards
        for method in BENCHED
    }
    assert (
        costs
        == {
            "progressive": 5,  # two of the teacher
            "guided": 5,  # both branches of the teacher
            "guided-halving": 5,
            "multistep-consistency": 5,  # one of the teacher, and the student's jump
            "cached-walks": 3,
            "flow-map": 4.5,  # the teacher for every second sample, the student's two halves for the others
            "parallel-decoding": 4,
            "parallel-decoding-noise": 4
            + 1.375,  # (7 + 3 + 1 + 0) / 2 / 4 steps of the student's walk
        }
    )


def test_the_floor_has_gradients_as_an_update_has():
    """Its backward reaches every weight that the update's reaches, and is not the update's own."""
    bench = Bench("uvit", torch.device("cpu"), batch=8, method="multistep-consistency")
    bench.update()
    mine = [p.grad.clone() for p in bench.student.parameters()]
    bench.student.zero_grad()
    bench.floor()
    theirs = [p.grad for p in bench.student.parameters()]
    assert all((a != 0).any() == (b != 0).any() for a, b in zip(mine, theirs, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_the_guided_stages_are_told_labels_and_scales():
    first = Bench("uvit", torch.device("cpu"), batch=3, method="guided")
    both, student = first.calls
    assert len(both.args[0]) == 6 and not both.backward and student.backward
    cond = both.args[2]
    assert cond.guidance_scale is None
    assert cond.label.tolist() == [0, 1, 2, 10, 10, 10] and first.objective.null == 10
    scales = student.args[2].guidance_scale
    assert len(scales) == 3 and ((scales >= 1) & (scales <= 5)).all()
    second = Bench("uvit", torch.device("cpu"), batch=3, method="guided-halving")
    assert len(second.calls) == 3
    assert all(len(call.args[2].guidance_scale) == 3 for call in second.calls)
    assert recipe(second.student.net)[1]["guidance_embed_dim"] == 256


def test_a_whole_update_moves_student_and_average():
    bench = Bench("uvit", torch.device("cpu"), batch=3)
    before = [p.detach().clone() for p in bench.student.parameters()]
    [teacher] = bench.objective.networks
    frozen = [p.clone() for p in teacher.parameters()]
    bench.update()
    assert all(torch.equal(p, q) for p, q in zip(bench.student.parameters(), before, strict=True))
    assert all(p.grad is not None for p in bench.student.parameters())
    bench.student.zero_grad()
    bench.state.update = 1  # the first one copies
    bench.whole_update()
    averages = bench.state.average.values
    for p, q, mean in zip(bench.student.parameters(), before, averages, strict=True):
        assert not torch.equal(p, q)
        torch.testing.assert_close(mean, q.lerp(p.detach(), 0.02), rtol=0, atol=1e-7)
    assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), frozen, strict=True))


def test_ratios_are_printed_as_json_and_as_a_table(capsys):
    arguments = ["--net", "uvit", "--batch", "2", "--rounds", "3", "--device", "cpu"]
    main([*arguments, "--json"])
    results = json.loads(capsys.readouterr().out)
    assert (results["device"], results["threads"], results["dtype"]) == ("cpu", 1, "fp32")
    assert list(results["nets"]["uvit"]) == list(BENCHED)
    for measured in results["nets"]["uvit"].values():
        assert measured["floor_ms"] > 0
        for key in ("update", "whole_update"):
            row = measured[key]
            assert 0 < row["low"] <= row["ratio"] <= row["high"]
    measured = results["nets"]["uvit"]["progressive"]
    # Two images are so few that the loss around the network shows, and the optimiser more.
    assert measured["whole_update"]["ratio"] > measured["update"]["ratio"] > 1
    lines = table(results).splitlines()
    assert len(lines) == 2 + 2 * len(BENCHED) and f"{measured['update']['ratio']:.3f}" in lines[2]
    assert [line.split()[1] for line in lines[2::2]] == list(BENCHED)


def test_bfloat16_casts_the_networks_alone():
    bench = Bench("uvit", torch.device("cpu"), torch.bfloat16, batch=2)
    dtypes = []
    bench.student.net.model.mid_block.mlp.fc1.register_forward_hook(
        lambda module, inputs, out: dtypes.append(out.dtype)
    )
    bench.floor()
    bench.update()
    assert dtypes == [torch.bfloat16, torch.bfloat16]
    assert all(p.grad.dtype == torch.float32 for p in bench.student.parameters())


@pytest.mark.slow
def test_an_update_is_held_to_its_floor(capsys):
    main(["--device", "cpu", "--json"])
    for name, methods in json.loads(capsys.readouterr().out)["nets"].items():
        for method, measured in methods.items():
            for key in ("update", "whole_update"):
                row = measured[key]
                assert row["ratio"] <= row["limit"], (name, method, key, row)
