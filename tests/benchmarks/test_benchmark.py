"""The benchmark of one update measures what it says."""

import json

import pytest
import torch

from benchmarks.step import Bench, main, NETS, STAGES, table
from halfstep.models import recipe


@pytest.fixture(autouse=True)
def same_threads():
    """The benchmark sets torch's number of threads, which belongs to the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def calls(net, counted):
    net.register_forward_hook(lambda module, inputs, out: counted.append(out.requires_grad))
    return counted


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("work", ["floor", "update", "whole_update"])
def test_all_three_make_the_same_network_calls(name, stage, work):
    """Two forwards of the teacher without gradients, or one of both branches; one of the student with
    them."""
    bench = Bench(name, torch.device("cpu"), batch=2, stage=stage)
    teacher, student, sizes = calls(bench.teacher.net, []), calls(bench.student.net, []), []
    bench.teacher.net.register_forward_pre_hook(lambda net, args: sizes.append(len(args[0])))
    getattr(bench, work)()
    assert student == [True] and not any(teacher)
    assert sizes == ([4] if stage == "guided" else [2, 2])


def test_the_guided_stages_are_told_labels_and_scales():
    first = Bench("uvit", torch.device("cpu"), batch=3, stage="guided")
    [(x, t, cond)] = first.teacher_inputs
    assert len(x) == len(t) == 6 and cond.guidance_scale is None
    assert cond.label.tolist() == [0, 1, 2, 10, 10, 10] and first.objective.null == 10
    assert (
        first.inputs[2].guidance_scale.tolist() == [1, 3, 5]
        and first.data.cond.guidance_scale is None
    )
    assert recipe(first.teacher.net)[1].get("guidance_embed_dim", 0) == 0
    second = Bench("uvit", torch.device("cpu"), batch=3, stage="guided-halving")
    assert (
        recipe(second.teacher.net)[1]["guidance_embed_dim"]
        == recipe(first.student.net)[1]["guidance_embed_dim"]
        == 256
    )
    scales = [cond.guidance_scale.tolist() for _, _, cond in second.teacher_inputs]
    assert scales == [[1, 3, 5]] * 2
    assert second.objective.objective.teacher is second.teacher


def test_a_whole_update_moves_student_and_average():
    bench = Bench("uvit", torch.device("cpu"), batch=3)
    before = [p.detach().clone() for p in bench.student.parameters()]
    teacher = [p.clone() for p in bench.teacher.parameters()]
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
    assert all(torch.equal(p, q) for p, q in zip(bench.teacher.parameters(), teacher, strict=True))


def test_ratios_are_printed_as_json_and_as_a_table(capsys):
    arguments = ["--net", "uvit", "--batch", "2", "--rounds", "3", "--device", "cpu"]
    main([*arguments, "--json"])
    results = json.loads(capsys.readouterr().out)
    assert (results["device"], results["threads"], results["dtype"]) == ("cpu", 1, "fp32")
    assert list(results["nets"]["uvit"]) == list(STAGES)
    for measured in results["nets"]["uvit"].values():
        assert measured["floor_ms"] > 0
        for key in ("update", "whole_update"):
            row = measured[key]
            assert 0 < row["low"] <= row["ratio"] <= row["high"]
    measured = results["nets"]["uvit"]["halving"]
    # Two images are so few that the loss around the network shows, and the optimiser more.
    assert measured["whole_update"]["ratio"] > measured["update"]["ratio"] > 1
    lines = table(results).splitlines()
    assert len(lines) == 2 + 2 * 3 and f"{measured['update']['ratio']:.3f}" in lines[2]
    assert [line.split()[1] for line in lines[2::2]] == list(STAGES)


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
    for name, stages in json.loads(capsys.readouterr().out)["nets"].items():
        for stage, measured in stages.items():
            for key in ("update", "whole_update"):
                row = measured[key]
                assert row["ratio"] <= row["limit"], (name, stage, key, row)
