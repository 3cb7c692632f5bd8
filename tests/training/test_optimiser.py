"""AdamW alone, and Muon for the matrices of linear layers beside it."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from halfstep.errors import ConfigError
from halfstep.methods import Progressive
from halfstep.models import build
from halfstep.training import TrainingConfig
from halfstep.training.checkpoint import State
from halfstep.training.optimiser import Optimiser
from halfstep.training.update import step
from tests.support.runs import At, bits, Crash, crash, halve, job, teacher

MUON = TrainingConfig(learning_rate=0.01, optimiser="muon", betas=(0.8, 0.95), weight_decay=0.3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    """A matrix, its bias, an embedding, a norm and a convolution: only the matrix is Muon's."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(4, 6)
        self.norm = nn.LayerNorm(6)
        self.linear = nn.Linear(6, 3)
        self.conv = nn.Conv1d(1, 2, 3)
        for k, p in enumerate(self.parameters()):
            p.data = torch.randn(p.shape, generator=seeded(k), dtype=torch.float64)

    def forward(self, labels):
        x = self.linear(self.norm(self.embed(labels)))
        return self.conv(x[:, None]).square().mean()


def trained(net, optimiser, updates=3):
    for _ in range(updates):
        net(torch.tensor([0, 1, 3])).backward()
        for group in optimiser.param_groups:
            group["lr"] = MUON.learning_rate
        optimiser.step()
        optimiser.zero_grad()
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def test_only_matrices_of_linear_layers_are_turned():
    optimiser = Optimiser(Net(), MUON, fused=True)
    adamw, muon = optimiser._parts
    turned = [tuple(p.shape) for group in muon.param_groups for p in group["params"]]
    assert turned == [(3, 6)]
    rest = [tuple(p.shape) for group in adamw.param_groups for p in group["params"]]
    assert sorted(rest) == sorted([(4, 6), (6,), (6,), (3,), (2, 1, 3), (2,)])


def test_the_rest_moves_as_adamw_moves_it():
    ours, plain = Net(), Net()
    weights = trained(ours, Optimiser(ours, MUON, fused=True), updates=1)
    adamw = torch.optim.AdamW(plain.parameters(), MUON.learning_rate, MUON.betas, weight_decay=0.3)
    want = trained(plain, adamw, updates=1)
    for name in weights:
        if name != "linear.weight":
            torch.testing.assert_close(weights[name], want[name], rtol=1e-12, atol=1e-14)
    assert (weights["linear.weight"] - want["linear.weight"]).abs().max() > 1e-4


def test_a_matrix_moves_by_an_orthogonal_matrix_of_adamws_size():
    """U V' of the gradient U S V', 0.2 sqrt(max(shape)) long: torch gets there in bfloat16, roughly."""
    net = Net()
    before = net.linear.weight.detach().clone()
    net.linear.weight.grad = torch.randn(3, 6, generator=seeded(7), dtype=torch.float64)
    u, _, v = torch.linalg.svd(net.linear.weight.grad, full_matrices=False)
    optimiser = Optimiser(net, MUON, fused=True)
    optimiser.step()
    moved = (
        net.linear.weight.detach() - before * (1 - MUON.learning_rate * 0.3)
    ) / -MUON.learning_rate
    want = 0.2 * math.sqrt(6) * u @ v
    assert float((moved * want).sum() / moved.norm() / want.norm()) > 0.97
    sizes = torch.linalg.svdvals(moved) / (0.2 * math.sqrt(6))
    assert ((sizes > 0.6) & (sizes < 1.3)).all()


def test_adamw_alone_is_torchs():
    ours, plain = Net(), Net()
    settings = TrainingConfig(learning_rate=0.01, betas=(0.8, 0.95), weight_decay=0.3)
    weights = trained(ours, Optimiser(ours, settings, fused=True))
    adamw = torch.optim.AdamW(plain.parameters(), 0.01, (0.8, 0.95), weight_decay=0.3)
    want = trained(plain, adamw)
    for name in weights:
        torch.testing.assert_close(weights[name], want[name], rtol=1e-12, atol=1e-14)


def test_a_network_of_matrices_alone_needs_no_adamw():
    net = nn.Linear(5, 3, bias=False)
    optimiser = Optimiser(net, MUON, fused=True)
    before = net.weight.detach().clone()
    F.mse_loss(net(torch.randn(4, 5, generator=seeded())), torch.zeros(4, 3)).backward()
    assert torch.isfinite(step(net, State(net, optimiser, None, None), MUON, 0.01))
    assert (net.weight - before).abs().max() > 1e-4


def test_a_network_without_matrices_is_refused():
    with pytest.raises(ConfigError, match="this network has none: write adamw"):
        Optimiser(nn.Conv2d(1, 2, 3), MUON, fused=True)


def test_frozen_parameters_are_left_out():
    net = Net()
    net.linear.weight.requires_grad_(False)
    with pytest.raises(ConfigError, match="has none"):
        Optimiser(net, MUON, fused=True)
    net.linear.weight.requires_grad_(True)
    net.embed.weight.requires_grad_(False)
    shapes = [
        tuple(p.shape)
        for group in Optimiser(net, MUON, fused=True).param_groups
        for p in group["params"]
    ]
    assert (4, 6) not in shapes and len(shapes) == 6


def test_a_shared_matrix_is_turned_once():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    optimiser = Optimiser(net, MUON, fused=True)
    assert [len(group["params"]) for group in optimiser.param_groups] == [1]


def test_what_is_loaded_goes_on_where_it_was_saved():
    one, two = Net(), Net()
    first = Optimiser(one, MUON, fused=True)
    trained(one, first, 2)
    second = Optimiser(two, MUON, fused=True)
    two.load_state_dict(one.state_dict())
    named = dict(zip(one.parameters(), two.parameters(), strict=True))
    second.load(
        {
            named[p]: {name: value.clone() for name, value in moments.items()}
            for p, moments in first.state.items()
        }
    )
    left, right = trained(one, first, 2), trained(two, second, 2)
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("update", [3, 9])
def test_a_run_that_died_ends_in_the_same_bits(tmp_path, update):
    method = Progressive(start=4, stop=2, updates=(12,))
    options = {"method": method, "optimiser": "muon", "save_every": 4}
    halve(tmp_path / "whole", **options)
    with pytest.raises(Crash):
        halve(tmp_path / "cut", job=job(callback=At("0002-steps", update, crash)), **options)
    halve(tmp_path / "cut", **options)
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")


def test_another_optimiser_is_another_run(tmp_path):
    halve(tmp_path / "r", optimiser="muon")
    with pytest.raises(ConfigError, match="optimiser = muon, now it is adamw"):
        halve(tmp_path / "r")


def test_uvit_is_nearly_all_matrices():
    net = build("uvit", {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 64, "depth": 4,
                         "num_heads": 4})  # fmt: skip
    _, muon = Optimiser(net, MUON, fused=True)._parts
    turned = sum(p.numel() for group in muon.param_groups for p in group["params"])
    assert turned / sum(p.numel() for p in net.parameters()) > 0.97


def test_the_toys_teacher_can_be_halved_with_it(tmp_path):
    student = halve(tmp_path / "r", pipeline=teacher(), optimiser="muon")
    assert all(p.isfinite().all() for p in student.denoiser.parameters())
