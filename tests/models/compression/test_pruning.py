"""Shallower U-ViTs, U-Nets of fewer layers, and the features that they are compared in."""

import pytest
import torch

from halfstep.batch import Cond
from halfstep.errors import ConfigError
from halfstep.models import build, recipe
from halfstep.models.compression.block_pruning import (
    best_pairs,
    evenly_spaced,
    matching_blocks,
    pair_scores,
    pairs_of,
    shallower,
)
from halfstep.models.compression.blocks import blocks_of, comparable, extras_of, widths_of
from halfstep.models.compression.unet_transfer import teacher_name, transfer_weights
from halfstep.models.hooks import capture_outputs
from tests.support.networks import nothing, UNET

UVIT = {
    "img_size": [4, 6],
    "patch_size": 2,
    "in_chans": 2,
    "embed_dim": 8,
    "num_heads": 2,
    "num_classes": 3,
}


def uvit(depth=8, **changes):
    torch.manual_seed(depth)
    return build("uvit", {**UVIT, "depth": depth, **changes}).double()


def unet(**changes):
    torch.manual_seed(3)
    return build("unet", {**UNET, **changes}).double()


def output(net, n=3):
    """The network's answer to noise, times and labels that are the same for all."""
    x = torch.randn(n, 2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t, label = torch.linspace(1, 900, n, dtype=torch.float64), torch.arange(n) % 3
    guidance_scale = torch.linspace(1, 3, n) if recipe(net)[1].get("guidance_embed_dim") else None
    with torch.no_grad():
        return net(x, t, Cond(label, guidance_scale=guidance_scale))


@pytest.mark.parametrize("gone", [(0,), (3,), (1, 2), (0, 3), (0, 1, 2)])
@pytest.mark.parametrize("guidance_embed_dim", [0, 6])
def test_pairs_that_do_nothing_can_go_and_nothing_changes(gone, guidance_embed_dim):
    net = uvit(guidance_embed_dim=guidance_embed_dim)
    before = output(net)
    for pair in gone:
        nothing(net, pair)
    small = shallower(net, [k for k in range(4) if k not in gone])
    assert (output(net) - before).abs().max() > 1e-5  # they did something
    assert (output(small) - output(net)).abs().max() < 1e-12
    assert recipe(small)[1]["depth"] == 8 - 2 * len(gone)


def test_all_pairs_are_the_network_itself_and_its_own_copy():
    net = uvit()
    same = shallower(net, range(4))
    assert torch.equal(output(same), output(net))
    with torch.no_grad():
        same.model.mid_block.mlp.fc2.weight.zero_()
    assert not torch.equal(output(same), output(net))
    assert all(p.requires_grad for p in same.parameters())


def test_whose_weights_are_whose():
    net, small = uvit(), shallower(uvit(), [3, 1])
    theirs, ours = net.state_dict(), small.state_dict()
    for j, old in ((0, 1), (1, 3)):
        for name in ("attn.qkv.weight", "mlp.fc1.bias", "norm2.weight"):
            assert torch.equal(
                ours[f"model.in_blocks.{j}.{name}"], theirs[f"model.in_blocks.{old}.{name}"]
            )
    # out-block n - 1 - i reads the skip of in-block i: the first of them that of in-block 3
    for j, old in ((0, 0), (1, 2)):
        name = "skip_linear.weight"
        assert torch.equal(
            ours[f"model.out_blocks.{j}.{name}"], theirs[f"model.out_blocks.{old}.{name}"]
        )
    assert torch.equal(ours["model.pos_embed"], theirs["model.pos_embed"])


def test_patterns_and_partners():
    assert [evenly_spaced(n, k) for n, k in ((4, 2), (6, 3), (5, 2), (2, 1), (3, 3))] == [
        (0, 2), (0, 2, 4), (0, 2), (0,), (0, 1, 2),
    ]  # fmt: skip
    # of in-blocks 0 1, middle 2, out-blocks 3 4: without pair 1 the first stands for in-block 1 too, the
    # middle one for itself and out-block 3, the last for itself
    assert matching_blocks((0,), 2) == [1, 3, 4]
    assert matching_blocks((1,), 2) == [1, 2, 4]
    assert matching_blocks((0, 1, 2), 3) == list(range(7))
    assert matching_blocks((0, 2), 4) == [1, 3, 5, 7, 8]


def test_the_worth_of_a_pair_is_what_its_absence_costs():
    net = uvit()
    nothing(net, 2)
    wanted = output(net)
    worth = pair_scores(net, lambda other: float((output(other) - wanted).square().mean()))
    assert len(worth) == 4 and abs(worth[2]) < 1e-20 and min(worth[:2] + worth[3:]) > 1e-8
    assert 2 not in best_pairs(worth, 3)
    assert best_pairs([0.3, 0.1, 0.5, 0.2], 2) == (0, 2)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: shallower(uvit(), [4]), "0 (outermost) to 3, each once"),
        (lambda: shallower(uvit(), [1, 1]), "write for example keep=(0, 2)"),
        (lambda: shallower(uvit(), []), "got none"),
        (lambda: pairs_of(unet()), "this net is 'unet'"),
        (lambda: pair_scores(uvit(depth=2), lambda net: 0.0), "make it narrower instead"),
    ],
)
def test_refusals(ask, words):
    with pytest.raises(ConfigError) as error:
        ask()
    assert words in str(error.value)


# --- U-Nets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "levels", "layers", "old"),
    [
        ("conv_in.weight", (2, 2), (1, 2), "conv_in.weight"),
        (
            "down_blocks.1.resnets.0.conv1.bias",
            (2, 2),
            (1, 2),
            "down_blocks.1.resnets.0.conv1.bias",
        ),
        ("up_blocks.0.resnets.0.conv1.bias", (2, 2), (1, 2), "up_blocks.0.resnets.0.conv1.bias"),
        ("up_blocks.0.resnets.1.conv1.bias", (2, 2), (1, 2), "up_blocks.0.resnets.2.conv1.bias"),
        (
            "up_blocks.1.attentions.2.to_q.bias",
            (2, 2),
            (2, 4),
            "up_blocks.1.attentions.4.to_q.bias",
        ),
        (
            "up_blocks.1.attentions.1.to_q.bias",
            (2, 2),
            (2, 4),
            "up_blocks.1.attentions.1.to_q.bias",
        ),
        (
            "down_blocks.0.resnets.1.conv1.bias",
            (1, 3),
            (2, 2),
            "down_blocks.0.resnets.1.conv1.bias",
        ),
        ("up_blocks.0.resnets.2.conv1.bias", (1, 3), (2, 2), "up_blocks.2.resnets.2.conv1.bias"),
        (
            "up_blocks.0.upsamplers.0.conv.bias",
            (2, 3),
            (2, 2),
            "up_blocks.1.upsamplers.0.conv.bias",
        ),
        ("up_blocks.0.resnets.0.conv1.bias", (3, 2), (2, 2), None),
    ],
)
def test_the_map_of_a_unet(key, levels, layers, old):
    assert teacher_name(key, levels=levels, layers=layers) == old


def test_a_unet_carries_all_into_itself_and_most_into_fewer_layers():
    net = unet()
    same = build("unet", UNET).double()
    assert len(transfer_weights(same, net)) == len(net.state_dict())
    x, t = (
        torch.randn(2, 1, 8, 8, dtype=torch.float64),
        torch.tensor([3.0, 800.0], dtype=torch.float64),
    )
    assert torch.equal(same(x, t), net(x, t))
    small = build("unet", {**UNET, "layers_per_block": 1}).double()
    carried = transfer_weights(small, net)
    assert sorted(carried) == sorted(small.state_dict())  # every layer has one of the same shape
    theirs, ours = net.state_dict(), small.state_dict()
    name = "resnets.{}.conv_shortcut.weight"
    for level in (0, 1):
        assert torch.equal(
            ours[f"model.up_blocks.{level}.{name.format(1)}"],
            theirs[f"model.up_blocks.{level}.{name.format(2)}"],
        )


def test_a_narrower_unet_starts_fresh_where_shapes_differ():
    small = build("unet", {**UNET, "block_out_channels": [8, 8]}).double()
    before = {name: value.clone() for name, value in small.state_dict().items()}
    carried = set(transfer_weights(small, unet()))
    assert (
        "model.conv_in.weight" in carried
        and "model.down_blocks.1.resnets.0.conv1.weight" not in carried
    )
    # never a bias without its weight
    assert "model.down_blocks.1.resnets.0.conv1.bias" not in carried
    for name, value in small.state_dict().items():
        assert name in carried or torch.equal(value, before[name])


# --- features -----------------------------------------------------------------------------------------


def test_blocks_in_the_order_they_run():
    net = uvit(depth=4)
    model = net.model
    assert blocks_of(net) == [*model.in_blocks, model.mid_block, *model.out_blocks]
    assert extras_of(net) == 2 and extras_of(unet()) == 0  # time and label
    assert len(blocks_of(unet())) == 5
    assert blocks_of(build("mlp", {"dim": 2, "width": 4, "depth": 1})) == []


def test_who_can_be_compared():
    assert comparable(uvit(), uvit(depth=4)) and comparable(uvit(), uvit(embed_dim=4))
    assert not comparable(uvit(), uvit(num_classes=0))
    assert comparable(unet(), unet(layers_per_block=1))
    assert comparable(unet(), unet(block_out_channels=[8, 8])) and not comparable(unet(), uvit())
    assert not comparable(unet(), unet(sample_size=4))


def test_widths_are_those_that_blocks_put_out():
    for net, x in (
        (uvit(embed_dim=4), (1, 2, 4, 6)),
        (unet(block_out_channels=[4, 8]), (1, 1, 8, 8)),
    ):
        cond = Cond(torch.zeros(1, dtype=torch.int64)) if x[1] == 2 else None
        with torch.no_grad(), capture_outputs(blocks_of(net)) as captured:
            net.double()(torch.zeros(x, dtype=torch.float64), torch.ones(1), cond)
        outs = [out[0] if isinstance(out, tuple) else out for out in captured]
        assert widths_of(net) == [out.shape[2 if out.ndim == 3 else 1] for out in outs]


def test_features_are_seen_once_also_where_blocks_run_again():
    net = uvit(depth=4).train()
    blocks = blocks_of(net)
    with capture_outputs(blocks) as captured:
        output(net)
    assert [list(x.shape) for x in captured] == [[3, 8, 8]] * 5
    net.model.gradient_checkpointing = True
    x = torch.randn(3, 2, 4, 6, dtype=torch.float64)
    with capture_outputs(blocks) as again:
        net(x, torch.ones(3), Cond(torch.zeros(3, dtype=torch.int64)))
    sum(one.square().sum() for one in again).backward()
    assert blocks[0].mlp.fc1.weight.grad is not None and not any(b._forward_hooks for b in blocks)
