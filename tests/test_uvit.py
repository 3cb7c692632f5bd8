"""The U-ViT against the official one: outputs, parameters, sizes, and mistakes made on purpose."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from halfstep.nets import UViT
from halfstep.nets.sinusoid import sinusoid

SMALL = dict(img_size=8, patch_size=2, in_chans=3, embed_dim=32, depth=4, num_heads=4)
LABELLED = dict(
    img_size=12,
    patch_size=4,
    in_chans=4,
    embed_dim=48,
    depth=4,
    num_heads=3,
    num_classes=11,
    mlp_time_embed=True,
    qkv_bias=True,
    conv=False,
)
TEXT = SMALL | dict(in_chans=4, depth=2, num_heads=2, clip_dim=24, num_clip_token=7)

# What the official U-ViT (baofff/U-ViT ce55170, MIT; 'math' attention, float32, CPU) puts out for
# the weights, inputs and times of `probe` below: measured by running it, not by running this one.
PROBES = {
    "unconditional": dict(
        arguments=SMALL,
        parameters=68_704,
        tensors=68,
        first="0.025068 0.098654 0.050164 0.099375 0.046122 0.108049 "
        "0.054011 0.105823 0.214797 0.17591 0.21415 0.172487",
        last="-0.191573 -0.210563 -0.190254 -0.211261 -0.172314 -0.093227 "
        "-0.143875 -0.097567 -0.148317 -0.093854 -0.147704 -0.096231",
        sum=-9.747,
        squares=11.0899,
    ),
    "labels, time MLP, qkv bias, no final convolution": dict(
        arguments=LABELLED,
        parameters=176_752,
        tensors=76,
        first="-0.356385 0.43657 -0.362216 0.157105 -0.354856 0.446199 "
        "-0.380335 0.178694 -0.286162 0.411216 -0.388755 0.228185",
        last="-0.276934 0.434209 -0.43768 0.289602 -0.214815 0.397726 "
        "-0.436943 0.324814 -0.18502 0.368685 -0.416702 0.318982",
        sum=2.8058,
        squares=196.4784,
    ),
    "text": dict(
        arguments=TEXT,
        parameters=42_756,
        tensors=46,
        first="-0.183401 -0.197312 -0.184285 -0.181299 -0.196819 -0.216188 "
        "-0.20001 -0.157583 -0.107095 -0.130527 -0.149935 -0.13513",
        last="-0.097697 -0.108462 -0.118327 -0.083325 0.014016 0.003386 "
        "0.00545 0.017532 -0.000797 0.02577 0.029463 -0.005013",
        sum=-51.2321,
        squares=7.0967,
    ),
}
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


def wave(n, phase, factor=1.0):
    """factor sin(0.7390851 (j + 1) + phase) for j < n, in float64."""
    j = torch.arange(1, n + 1, dtype=torch.float64)
    return factor * torch.sin(0.7390851 * j + phase)


def set_weights(net):
    """Every parameter by the probe's formula, in the sorted order of the names."""
    state = net.state_dict()
    for k, name in enumerate(sorted(state)):
        values = wave(state[name].numel(), 0.61803399 * (k + 1), 0.15)
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
            values = values + 1
        state[name].copy_(values.float().reshape(state[name].shape))
    return net


def probe(arguments, dtype=torch.float32, rows=slice(0, 2), **more):
    """The net, and its inputs (x, timesteps, labels, text states), of the probe."""
    net = set_weights(UViT(**{**arguments, **more})).to(dtype).eval()
    shape = 2, arguments["in_chans"], arguments["img_size"], arguments["img_size"]
    x = wave(math.prod(shape), 2.0).float().reshape(shape).to(dtype)
    t = torch.tensor([0.0, 417.25], dtype=torch.float64)
    y = torch.tensor([0, 10])[rows] if "num_classes" in arguments else None
    context = None
    if "clip_dim" in arguments:
        shape = 2, arguments["num_clip_token"], arguments["clip_dim"]
        context = wave(math.prod(shape), 3.0, 0.5).float().reshape(shape)[rows]
    return net, (x[rows], t[rows], y, context)


def numbers(text):
    return torch.tensor([float(word) for word in text.split()], dtype=torch.float64)


def error(out, case):
    """Largest difference from the official output where it was written down."""
    first = out[0].flatten()[:12].double() - numbers(case["first"])
    last = out[1].flatten()[-12:].double() - numbers(case["last"])
    return torch.cat([first, last]).abs().max().item()


cases = pytest.mark.parametrize("case", PROBES.values(), ids=PROBES.keys())


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
        context = None if arguments[-1] is None else torch.zeros(1, 77, arguments[-1])
    assert len(net.state_dict()) == tensors
    assert sum(p.numel() for p in net.parameters()) == parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x, t, y, context)
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
