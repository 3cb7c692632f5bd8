"""Banks of heads: combinations of last layers, networks that have them, and fusing them again."""

import pytest
import torch
from torch import nn

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.schedules import Cosine
from halfstep.errors import ConfigError
from halfstep.models import build, recipe
from halfstep.models.head_bank import HeadBank
from halfstep.models.with_heads import fused_heads, with_heads
from tests.support.denoisers import named, READS, seeded
from tests.support.networks import TINY

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "tokens": (lambda: nn.Linear(6, 4), (5, 6)),
    "without bias": (lambda: nn.Linear(6, 4, bias=False), (5, 6)),
    "convolution": (lambda: nn.Conv2d(3, 2, 3, padding=1), (3, 7, 6)),
    "strides": (lambda: nn.Conv2d(3, 2, 3, stride=2, padding=2, dilation=2), (3, 7, 6)),
}


@torch.no_grad()
def untied(bank):
    """Give every head weights of its own."""
    for p in bank.parameters():
        p.copy_(torch.randn(p.shape, generator=seeded(3)))
    return bank


def convex(*shape):
    weights = torch.rand(shape, generator=seeded(5))
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rows", [1, 4])
def test_a_combination_is_the_layer_with_combined_weights(name, rows):
    make, shape = LAYERS[name]
    bank, h = untied(HeadBank(make(), 3)), torch.randn(rows, *shape, generator=seeded())
    heads = convex(rows, 2, 3)
    out = bank(h, heads).unflatten(0, (2, rows))
    for row in range(rows):
        for m in range(2):
            layer, parts = make(), []
            for k in range(3):
                with torch.no_grad():
                    for p, values in zip(layer.parameters(), bank.parameters(), strict=True):
                        p.copy_(values[k])
                parts.append(layer(h[row : row + 1])[0])
            expected = sum(w * part for w, part in zip(heads[row, m], parts, strict=True))
            torch.testing.assert_close(out[m, row], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bank(h, heads[:, 0]), out[0])


def test_one_head_alone_is_its_layer_and_alone_gets_a_gradient():
    bank, h = untied(HeadBank(nn.Linear(6, 4), 3)), torch.randn(5, 6, generator=seeded())
    one = torch.eye(3)[[1]].expand(5, 3)
    out = bank(h, one)
    torch.testing.assert_close(out, h @ bank.weight[1].T + bank.bias[1])
    out.sum().backward()
    assert [bool(g.any()) for g in bank.weight.grad] == [False, True, False]


@pytest.mark.parametrize("name", [n for n in TINY if n != "unet-condition"])
def test_a_widened_network_is_the_network_until_it_is_trained(name):
    net = build(name, TINY[name]).eval()
    wide = with_heads(net, 5)
    x, t = inputs(name)
    out = wide(x, t, Cond(heads=convex(3, 2, 5)))
    torch.testing.assert_close(
        out, net(x, t, None).repeat(2, *[1] * (x.ndim - 1)), rtol=1e-5, atol=1e-6
    )
    assert recipe(wide) == (name, {**recipe(net)[1], "output_heads": 5})
    assert recipe(build(*recipe(wide))) == recipe(wide)


def inputs(name):
    config = TINY[name]
    channels = config.get("in_chans", config.get("in_channels"))
    shape = (config.get("dim", 2),) if name == "mlp" else (channels, 8, 8)
    return torch.randn(3, *shape, generator=seeded()), torch.full((3,), 400.0)


@pytest.mark.parametrize("name", [n for n in TINY if n != "unet-condition"])
def test_fused_heads_are_the_combination(name):
    """Blocks of 2 and of 3 heads become a bank of two; all five together one plain last layer."""
    wide = with_heads(build(name, TINY[name]).eval(), 5)
    for part in wide.modules():
        if isinstance(part, HeadBank):
            untied(part)
    x, t = inputs(name)
    blocks = torch.zeros(2, 5)
    blocks[0, :2], blocks[1, 2:] = convex(2), convex(3)
    apart = wide(x, t, Cond(heads=blocks.expand(3, 2, 5)))
    two = fused_heads(wide, blocks)
    together = two(x, t, Cond(heads=torch.eye(2).expand(3, 2, 2)))
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    one = fused_heads(wide, convex(1, 5))
    assert recipe(one) == (name, recipe(build(name, TINY[name]))[1])
    expected = wide(x, t, Cond(heads=convex(1, 5).expand(3, 5)))
    torch.testing.assert_close(one(x, t, None), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reads", READS, ids=named)
def test_a_denoiser_decodes_every_combination_at_its_own_sample(reads):
    torch.manual_seed(0)
    net = build(
        "mlp", {"dim": 2, "width": 16, "out_dim": 2 * reads.outputs, "output_heads": 4}
    ).double()
    untied(net.model.leave)
    denoiser = Denoiser(net, Cosine(), reads)
    x, t = torch.randn(3, 2, generator=seeded()).double(), torch.tensor([0.9, 0.5, 0.2]).double()
    heads = convex(3, 2, 4).double()
    both = denoiser(x, t, Cond(heads=heads))
    each = [denoiser(x, t, Cond(heads=heads[:, m])) for m in range(2)]
    torch.testing.assert_close(both.x0, torch.cat([p.x0 for p in each]))
    torch.testing.assert_close(both.eps, torch.cat([p.eps for p in each]))
    # Decoding is affine, so that combining outputs is combining predictions.
    alone = [denoiser(x, t, Cond(heads=torch.eye(4)[[k]].expand(3, 4).double())) for k in range(4)]
    for m in range(2):
        mean = sum(heads[:, m, k, None] * alone[k].x0 for k in range(4))
        torch.testing.assert_close(each[m].x0, mean)


def test_refusals():
    uvit = build("uvit", TINY["uvit"])
    x, t = inputs("uvit")
    with pytest.raises(ConfigError, match="reads no heads"):
        uvit(x, t, Cond(heads=convex(3, 5)))
    wide = with_heads(uvit, 5)
    with pytest.raises(ConfigError, match="got no weights"):
        wide(x, t, None)
    with pytest.raises(ConfigError, match=r"\[B, 5\]"):
        wide(x, t, Cond(heads=convex(3, 4)))
    with pytest.raises(ConfigError, match="already"):
        with_heads(wide, 5)
    with pytest.raises(ConfigError, match="no heads"):
        fused_heads(uvit, convex(1, 5))
    with pytest.raises(ConfigError, match="1024"):
        with_heads(uvit, 2000)
    with pytest.raises(ConfigError, match="groups"):
        HeadBank(nn.Conv2d(4, 4, 3, groups=2), 2)
    sana = dict(
        in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
        caption_channels=8, sample_size=8, patch_size=1,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="last layer of a Sana"):
        with_heads(build("SanaTransformer2DModel", sana), 4)


def test_frozen_parameters_and_the_mode_stay():
    net = build("mlp", TINY["mlp"]).eval()
    net.model.leave.weight.requires_grad_(False)
    wide = with_heads(net, 3)
    assert not wide.model.leave.weight.requires_grad and wide.model.leave.bias.requires_grad
    assert not wide.training


def test_a_network_of_ones_own(monkeypatch):
    class Mine(nn.Module):
        reads = ("label", "heads")

        def __init__(self, output_heads=0):
            super().__init__()
            layer = nn.Linear(2, 2)
            self.last = HeadBank(layer, output_heads) if output_heads else layer

        def forward(self, x, t, cond=None):
            return self.last(x, cond.heads) if isinstance(self.last, HeadBank) else self.last(x)

    import tests.support.user_networks as module

    monkeypatch.setattr(module, "headed", Mine, raising=False)
    monkeypatch.setattr(module, "plain", lambda output_heads=0: nn.Linear(2, 2), raising=False)
    net = build("tests.support.user_networks:headed", {})
    wide = with_heads(net, 3)
    x, t = torch.randn(4, 2), torch.ones(4)
    torch.testing.assert_close(wide(x, t, Cond(heads=convex(4, 3))), net(x, t))
    assert torch.equal(fused_heads(wide, torch.eye(3)[:1])(x, t), net(x, t))
    with pytest.raises(ConfigError, match="does not extend itself"):
        with_heads(build("tests.support.user_networks:plain", {}), 3)


def test_conditions_slice_join_and_keep_their_heads():
    a, b = (
        Cond(label=torch.tensor([1, 2]), heads=convex(2, 3)),
        Cond(label=torch.tensor([0]), heads=convex(1, 3)),
    )
    both = a.cat(b)
    assert torch.equal(both.heads, torch.cat([a.heads, b.heads])) and torch.equal(
        both[2:].heads, b.heads
    )
    assert torch.equal(a.dropped(9).heads, a.heads) and a.dropped(9).label.tolist() == [9, 9]
