"""The benchmark of the U-ViT measures what it says."""

import json

import pytest
import torch

from benchmarks.uvit import Bench, FORMS, main, NETS, Plain, table
from halfstep.models import UViT

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def same_threads():
    """The benchmark sets torch's number of threads, which belongs to the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype, tolerance", [(None, 1e-5), (torch.bfloat16, 0.02)], ids=str)
def test_all_compute_the_same_from_the_same_weights(dtype, tolerance):
    bench = Bench("tiny", CPU, batch=3)
    want = bench.forward("plain", dtype)
    assert set(bench.nets) == {"plain", *FORMS} and want.shape == (3, 3, 8, 8)
    assert want.std() > 0.01
    for name, net in bench.nets.items():
        out = bench.forward(name, dtype)
        torch.testing.assert_close(out.float(), want.float(), rtol=0, atol=tolerance)
        first = net.get_parameter("mid_block.attn.qkv.weight")
        assert first is bench.nets["plain"].get_parameter("mid_block.attn.qkv.weight")


@pytest.mark.parametrize("name", ["plain", *FORMS])
def test_a_training_step_is_one(name):
    bench = Bench("tiny", CPU)
    bench.optimiser.param_groups[0]["lr"] = 0.1
    before = [p.detach().clone() for p in bench.nets["auto"].parameters()]
    bench.training_step(name, None)
    after = list(bench.nets["auto"].parameters())
    assert all(p.grad is None for p in after)
    assert sum(not torch.equal(p, q) for p, q in zip(before, after, strict=True)) > 0.9 * len(after)


def test_the_plain_one_upcasts_and_reads_the_official_names():
    config = NETS["tiny"][0]
    net = Plain(**config)
    assert list(net.state_dict()) != [] and set(net.state_dict()) == set(
        UViT(**config).state_dict()
    )
    dtypes = []
    original = torch.nn.functional.scaled_dot_product_attention

    def watched(q, k, v):
        dtypes.extend(x.dtype for x in (q, k, v))
        return original(q, k, v)

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
        net(torch.zeros(2, 3, 8, 8), torch.zeros(2))
    assert set(dtypes) == {torch.float32} and len(dtypes) == 3 * 3


def test_operations_are_two_for_each_multiply_add():
    tokens, width = 17, 32  # three blocks, one skip layer, and the two ends
    adds = tokens * (12 * 3 + 2) * width**2 + 2 * 3 * tokens**2 * width
    ends = 2 * 16 * width * 12 + 64 * 27 * 3
    assert Bench("tiny", CPU, batch=5).operations() == 2 * 5 * (adds + ends)


def test_ratios_are_printed_as_json_and_as_a_table(capsys):
    main(["--net", "tiny", "--rounds", "2", "--device", "cpu", "--json"])
    results = json.loads(capsys.readouterr().out)
    assert (results["device"], results["threads"], results["batch"]) == ("cpu", 1, 2)
    works = {(row["dtype"], row["work"]) for row in results["results"]}
    assert works == {(d, w) for d in ("fp32", "bf16") for w in ("forward", "training_step")}
    for row in results["results"]:
        assert set(row["times as fast"]) == {"plain", *FORMS, "auto to explicit"}
        assert row["times as fast"]["plain"] == {"ratio": 1, "low": 1, "high": 1}
        for spread in row["times as fast"].values():
            assert 0 < spread["low"] <= spread["ratio"] <= spread["high"]
        assert row["ms"]["plain"] > 0 and "share of peak" not in row
    lines = table(results).splitlines()
    assert len(lines) == 2 + 4 * 5
    assert f"{results['results'][0]['times as fast']['sdpa']['ratio']:.3f}" in lines[4]


@pytest.mark.slow
def test_ours_is_held_to_its_speed(capsys):
    """In bfloat16 on a CPU, and nowhere slower than the explicit form."""
    main(["--device", "cpu", "--rounds", "5", "--json"])
    for row in json.loads(capsys.readouterr().out)["results"]:
        fast = row["times as fast"]
        assert fast["auto to explicit"]["ratio"] > 0.95, row
        if (row["dtype"], row["work"]) == ("bf16", "training_step"):
            # Measured 1.16 to 1.21 while others used the machine: their share of it moves the ratio.
            assert fast["auto"]["ratio"] > 1.1, row
