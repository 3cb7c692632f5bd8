"""AdamW with moments in 8 bits: AdamW's steps, a quarter of its moments, the same bits after a crash."""

import pytest
import torch
from torch import nn

from halfstep import storage
from halfstep.errors import ConfigError
from halfstep.methods import Progressive
from halfstep.training import optimiser as optimisers, TrainingConfig
from halfstep.training.checkpoint import State
from halfstep.training.optimiser import has_8_bits, Optimiser
from tests.support.runs import At, bits, Crash, crash, halve, job, teacher

SETTINGS = TrainingConfig(learning_rate=0.01, weight_decay=0.3, optimiser="adamw-8bit")
ADAMW = TrainingConfig(learning_rate=0.01, weight_decay=0.3)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))


def trained(net, settings, updates, optimiser=None):
    optimiser = optimiser or Optimiser(net, settings, fused=True)
    generator = torch.Generator().manual_seed(1)
    for update in range(updates):
        x = torch.randn(8, 64, generator=generator)
        (net(x) - x[:, :3]).square().mean().backward()
        optimiser.set_rate(0.01 / (1 + update))
        optimiser.step()
        optimiser.zero_grad()
    return optimiser


def test_the_steps_are_those_of_adamw():
    """The first to rounding, since a step is taken before its moments are stored; later ones closely."""
    for updates, tolerance in ((1, 1e-6), (10, 3e-3)):
        one, two = network(), network()
        trained(one, SETTINGS, updates)
        trained(two, ADAMW, updates)
        for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)
    assert not mine.equal(theirs)


def test_moments_take_a_byte_a_value_and_a_scale_a_block():
    net = network()
    state = trained(net, SETTINGS, 1).state
    wide = net[0].weight
    assert [has_8_bits(p) for p in net.parameters()] == [True, False, False, False]
    assert has_8_bits(torch.empty(4096)) and not has_8_bits(torch.empty(4095))
    assert not has_8_bits(torch.empty(4097))
    for moment in ("exp_avg", "exp_avg_sq"):
        stored = state[wide][moment]
        assert stored.codes.nbytes == 4096 and stored.scale.nbytes == 4 * 4096 // 256
        assert type(state[net[0].bias][moment]) is torch.Tensor


def test_a_checkpoint_holds_the_state_to_the_bit(tmp_path):
    net = network()
    state = State(net, trained(net, SETTINGS, 3), None, None, 3)
    storage.save(tmp_path / "c", state.tensors(), {})
    names = storage.load(tmp_path / "c")[0]
    assert (
        names["exp_avg.0.weight.codes"].dtype == torch.uint8
        and "exp_avg.0.weight.qmap" not in names
    )
    other = network()
    again = State(other, Optimiser(other, SETTINGS, fused=True), None, None)
    with storage.opened(tmp_path / "c") as (tensors, _):
        again.load(tensors, {"update": 3, "seconds": 0.0}, "it")
    trained(net, SETTINGS, 2, state.optimiser)
    trained(other, SETTINGS, 2, again.optimiser)
    assert all(a.equal(b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_a_run_that_died_ends_in_the_same_bits(tmp_path):
    options = {
        "method": Progressive(start=4, stop=2, updates=(6,)), "optimiser": "adamw-8bit",
        "save_every": 2, "width": 64,
    }  # fmt: skip
    halve(tmp_path / "whole", **options)
    with pytest.raises(Crash):
        halve(tmp_path / "cut", job=job(callback=At("0002-steps", 3, crash)), **options)
    halve(tmp_path / "cut", **options)
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")


def test_without_torchao_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(optimisers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'halfstep\[int8\]'"):
        halve(tmp_path / "r", optimiser="adamw-8bit", width=64)


def test_a_network_of_small_parameters_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no parameter of this network is so large"):
        halve(tmp_path / "r", optimiser="adamw-8bit", pipeline=teacher(8))
