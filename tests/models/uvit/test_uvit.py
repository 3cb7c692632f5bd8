"""The U-ViT against the official one: outputs, parameters, sizes, and mistakes made on purpose."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from halfstep.models import UViT
from halfstep.models.time_embedding import sinusoid
from tests.support.uvit import cases, error, LABELLED, probe, PROBES, SMALL, wave

# Arguments, tensors, parameters and 10^9 multiply-adds of the published configurations.
PUBLISHED = {
    "cifar10 S/2": ((32, 2, 3, 512, 12, 8, -1, True, None), 164, 44_255_328, 12.20),
    "celeba64 S/4": ((64, 4, 3, 512, 12, 8, -1, True, None), 164, 44_292_228, 12.21),
    "imagenet64 M/4": ((64, 4, 3, 768, 16, 12, 1000, True, None), 213, 130_940_292, 35.24),
    "imagenet64 L/4": ((64, 4, 3, 1024, 20, 16, 1000, True, None), 261, 286_827_652, 76.47),
    "imagenet256 L/2": ((32, 2, 4, 1024, 20, 16, 1001, True, None), 261, 286_763_172, 76.46),
    "imagenet256 H/2": ((32, 2, 4, 1152, 28, 16, 1001, False, None), 355, 500_832_016, 133.20),
    "imagenet512 L/4": ((64, 4, 4, 1024, 20, 16, 1001, True, None), 261, 286_861_524, 76.5),
    "imagenet512 H/4": ((64, 4, 4, 1152, 28, 16, 1001, False, None), 355, 500_942_656, 133.2),
    "mscoco S/2": ((32, 2, 4, 512, 12, 8, -1, True, 768), 166, 44_692_644, 16.20),
    "mscoco S/2 Deep": ((32, 2, 4, 512, 16, 8, -1, True, 768), 214, 58_345_636, 21.21),
}


@cases
@pytest.mark.parametrize("attention", ["auto", "sdpa", "explicit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.no_grad()
def test_uvit_puts_out_what_the_official_one_does(case, attention, dtype):
    net, inputs = probe(case["arguments"], dtype, attention=attention)
    out = net(*inputs)
    assert out.shape == inputs[0].shape and out.dtype == dtype
    assert error(out, case) < (1e-5 if dtype is torch.float32 else 1.5e-6)
    assert out.double().sum().item() == pytest.approx(case["sum"], abs=1e-3)
    assert out.double().square().sum().item() == pytest.approx(case["squares"], abs=1e-3)


@cases
def test_uvit_has_the_official_parameters(case):
    net = UViT(**case["arguments"])
    names, depth = set(net.state_dict()), case["arguments"]["depth"]
    bias = ["attn.qkv.bias"] if case["arguments"].get("qkv_bias") else []
    inner = [f"{layer}.{kind}" for layer in ("norm1", "norm2") for kind in ("weight", "bias")]
    inner += [
        f"{x}.{kind}" for x in ("attn.proj", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")
    ]
    inner += ["attn.qkv.weight", *bias]
    expected = {f"mid_block.{name}" for name in inner}
    for k in range(depth // 2):
        expected |= {f"in_blocks.{k}.{name}" for name in inner}
        expected |= {f"out_blocks.{k}.{name}" for name in inner}
        expected |= {f"out_blocks.{k}.skip_linear.{kind}" for kind in ("weight", "bias")}
    ends = ["patch_embed.proj", "norm", "decoder_pred"]
    ends += ["final_layer"] if case["arguments"].get("conv", True) else []
    ends += ["time_embed.0", "time_embed.2"] if case["arguments"].get("mlp_time_embed") else []
    ends += ["context_embed"] if "clip_dim" in case["arguments"] else []
    expected |= {f"{name}.{kind}" for name in ends for kind in ("weight", "bias")} | {"pos_embed"}
    expected |= {"label_emb.weight"} if "num_classes" in case["arguments"] else set()
    assert names == expected
    assert len(names) == case["tensors"]
    assert sum(p.numel() for p in net.parameters()) == case["parameters"]


@pytest.mark.parametrize(
    "arguments, tensors, parameters, gmac", PUBLISHED.values(), ids=PUBLISHED.keys()
)
def test_published_configurations_have_the_published_size(arguments, tensors, parameters, gmac):
    names = ["img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads"]
    names += ["num_classes", "conv", "clip_dim"]
    with torch.device("meta"):
        net = UViT(**dict(zip(names, arguments, strict=True)))
        x, t = torch.zeros(1, *net.shape), torch.zeros(1)
        y = torch.zeros(1, dtype=torch.int64) if net.num_classes > 0 else None
        encoder_hidden_states = None if arguments[-1] is None else torch.zeros(1, 77, arguments[-1])
    assert len(net.state_dict()) == tensors
    assert sum(p.numel() for p in net.parameters()) == parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x, t, y, encoder_hidden_states)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, rel=0.01)


# Mistakes that an implementation could make


def layer_norm_eps_1e6(net):
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6


def tanh_gelu(net):
    def mistaken(module, inputs, out):
        return module.fc2(nn.functional.gelu(module.fc1(inputs[0]), approximate="tanh"))

    for block in (*net.in_blocks, net.mid_block, *net.out_blocks):
        block.mlp.register_forward_hook(mistaken)


def t_off_by_one(net):
    net.register_forward_pre_hook(lambda module, inputs: (inputs[0], inputs[1] + 1, *inputs[2:]))


def sines_first(net):
    net.time_embed.register_forward_pre_hook(
        lambda module, inputs: inputs[0].roll(net.width // 2, 1)
    )


def frequency_shift_1(net):
    times = []
    net.register_forward_pre_hook(lambda module, inputs: times.append(inputs[1]))

    def mistaken(module, inputs):
        half = net.width // 2
        angle = times[-1].float()[:, None] * 10000 ** (-torch.arange(half) / (half - 1))
        return torch.cat([angle.cos(), angle.sin()], 1).to(inputs[0].dtype)

    net.time_embed.register_forward_pre_hook(mistaken)


def extra_tokens_reversed(net):
    """Time before label, and text before time."""

    def mistaken(module, inputs):
        tokens = inputs[0] - net.pos_embed
        extras, patches = tokens[:, : net.extras], tokens[:, net.extras :]
        return torch.cat([extras.roll(-1, 1), patches], 1) + net.pos_embed

    net.in_blocks[0].register_forward_pre_hook(mistaken)


def first_in_first_out(net):
    made = []
    for block in net.in_blocks:
        block.register_forward_hook(lambda module, inputs, out: made.append(out))
    for k, block in enumerate(net.out_blocks):
        block.register_forward_pre_hook(lambda module, inputs, k=k: (inputs[0], made[k]))


def skip_before_main(net):
    for block in net.out_blocks:
        block.skip_linear.weight.copy_(block.skip_linear.weight.roll(net.width, 1))


def qkv_head_major(net):
    for block in (*net.in_blocks, net.mid_block, *net.out_blocks):
        for p in block.attn.qkv.parameters():
            rows = p.unflatten(0, (block.attn.heads, 3, -1)).transpose(0, 1)
            p.copy_(rows.reshape(p.shape))


def channel_runs_slowest(net):
    for p in net.decoder_pred.parameters():
        p.copy_(p.unflatten(0, (-1, net.patch**2)).transpose(0, 1).reshape(p.shape))


def no_final_convolution(net):
    net.final_layer = nn.Identity()


def in_blocks_are_identities(net):
    for block in net.in_blocks:
        block.register_forward_hook(lambda module, inputs, out: inputs[0])


def residual_around_the_skip(net):
    for block in net.out_blocks:
        block.skip_linear.register_forward_hook(
            lambda module, inputs, out: out + inputs[0][..., : net.width]
        )


def no_position_on_the_extra_tokens(net):
    net.pos_embed[:, : net.extras] = 0


MISTAKES = [
    layer_norm_eps_1e6,
    tanh_gelu,
    t_off_by_one,
    sines_first,
    frequency_shift_1,
    extra_tokens_reversed,
    first_in_first_out,
    skip_before_main,
    qkv_head_major,
    channel_runs_slowest,
    no_final_convolution,
    in_blocks_are_identities,
    residual_around_the_skip,
    no_position_on_the_extra_tokens,
]


@pytest.mark.parametrize("mistake", MISTAKES)
@torch.no_grad()
def test_the_probe_notices_a_mistake(mistake):
    """In float64, where only the official one's own rounding is left."""
    errors = []
    for case in PROBES.values():
        net, inputs = probe(case["arguments"], torch.float64)
        mistake(net)
        errors.append(error(net(*inputs), case))
    # The epsilon moves these small networks least: the float64 test above is held to 1.5e-6.
    assert max(errors) > (5e-6 if mistake is layer_norm_eps_1e6 else 1e-5)


@torch.no_grad()
def test_skips_are_last_in_first_out():
    """Each out-block gets the output of the in-block that mirrors it."""
    net, inputs = probe(SMALL | {"depth": 6})
    made, given = [], []
    for block in net.in_blocks:
        block.register_forward_hook(lambda module, inputs, out: made.append(out))
    for block in net.out_blocks:
        block.register_forward_hook(lambda module, inputs, out: given.append(inputs[1]))
    net(*inputs)
    assert [any(g is m for m in made) for g in given] == [True] * 3
    assert all(g is m for g, m in zip(given, reversed(made), strict=True))


@torch.no_grad()
def test_blocks_run_in_order_and_each_changes_its_input():
    net, inputs = probe(SMALL | {"depth": 6})
    ran = []
    names = {block: name for name, block in net.named_modules()}
    for block in (*net.out_blocks, net.mid_block, *net.in_blocks):
        block.register_forward_hook(lambda block, inputs, out: ran.append((block, inputs[0], out)))
    net(*inputs)
    assert [names[block] for block, _, _ in ran] == [
        *(f"in_blocks.{k}" for k in range(3)),
        "mid_block",
        *(f"out_blocks.{k}" for k in range(3)),
    ]
    assert all((out - given).abs().max() > 0.01 for _, given, out in ran)
    assert all(ran[k][2] is ran[k + 1][1] for k in range(6))


@torch.no_grad()
def test_without_skips_nothing_is_merged():
    net, (x, t, *_) = probe(SMALL, skip=False)
    assert not any("skip_linear" in name for name in net.state_dict())
    want = torch.cat([sinusoid(t, 32)[:, None], net.patch_embed(x)], 1) + net.pos_embed
    for block in (*net.in_blocks, net.mid_block, *net.out_blocks):
        want = block(want)
    want = net._image(net.decoder_pred(net.norm(want))[:, 1:])
    torch.testing.assert_close(net(x, t), want, rtol=0, atol=1e-6)


def test_sinusoid_is_cosines_then_sines_in_float32():
    t = torch.tensor([0.0, 3.0, 999.5], dtype=torch.float64)
    i = torch.arange(4, dtype=torch.float64)
    angle = t[:, None] * 10000 ** (-i / 4)
    got = sinusoid(t, 9)
    want = torch.cat([angle.cos(), angle.sin(), torch.zeros(3, 1, dtype=torch.float64)], 1)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-4)
    torch.testing.assert_close(sinusoid(torch.tensor([3]), 9)[0], got[1], rtol=0, atol=0)


def test_sinusoid_is_that_of_diffusers_without_a_shift():
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([0.0, 417.25, 998.7, 1000.0])
    want = get_timestep_embedding(t, 22, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.equal(sinusoid(t, 22), want)


def test_uvit_initialisation_is_the_official_one():
    torch.manual_seed(0)
    net = UViT(16, 2, 3, 128, 2, 4, num_classes=50)
    linear = net.mid_block.mlp.fc1
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not linear.bias.any() and not net.decoder_pred.bias.any()
    assert net.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert net.label_emb.weight.std().item() == pytest.approx(1.0, rel=0.05)
    assert net.patch_embed.proj.bias.abs().max() > 0
    assert all(norm.eps == 1e-5 for norm in net.modules() if isinstance(norm, nn.LayerNorm))


@pytest.mark.parametrize("scale", [None, 0.21])
@pytest.mark.parametrize("attention", ["auto", "sdpa", "explicit"])
@torch.no_grad()
def test_qk_scale_and_qkv_bias_are_honoured_on_every_path(attention, scale):
    """Against softmax attention written out by hand, head after head."""
    net, _ = probe(LABELLED, torch.float64, qk_scale=scale, attention=attention)
    layer, x = net.mid_block.attn, wave(5 * 7 * 48, 1.0).reshape(5, 7, 48)
    mixed = torch.empty_like(x)
    for head in range(3):
        q, k, v = (
            x @ layer.qkv.weight[rows].T + layer.qkv.bias[rows]
            for rows in (slice(48 * n + 16 * head, 48 * n + 16 * head + 16) for n in range(3))
        )
        logits = torch.einsum("bid,bjd->bij", q, k) * (0.25 if scale is None else scale)
        weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
        mixed[:, :, 16 * head : 16 * head + 16] = weights @ v
    torch.testing.assert_close(layer(x), layer.proj(mixed), rtol=0, atol=1e-12)
