"""Networks: U-ViT against the official one, and every backbone through the one call."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from halfstep.batch import Batch, Cond
from halfstep.denoiser import Denoiser
from halfstep.errors import ConfigError
from halfstep.methods.progressive import Halve
from halfstep.nets import Adapter, build, Classifier, fitting, NETS, recipe, UViT
from halfstep.nets.sinusoid import sinusoid
from halfstep.noise import Draw
from halfstep.prediction import V
from halfstep.schedules import Cosine
from halfstep.timegrids import uniform

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
}
# Parameters of the published configurations: (arguments, tensors, parameters).
PUBLISHED = {
    "cifar10 S/2": ((32, 2, 3, 512, 12, 8, -1, True), 164, 44_255_328),
    "celeba64 S/4": ((64, 4, 3, 512, 12, 8, -1, True), 164, 44_292_228),
    "imagenet64 M/4": ((64, 4, 3, 768, 16, 12, 1000, True), 213, 130_940_292),
    "imagenet64 L/4": ((64, 4, 3, 1024, 20, 16, 1000, True), 261, 286_827_652),
    "imagenet256 L/2": ((32, 2, 4, 1024, 20, 16, 1001, True), 261, 286_763_172),
    "imagenet256 H/2": ((32, 2, 4, 1152, 28, 16, 1001, False), 355, 500_832_016),
    "imagenet512 L/4": ((64, 4, 4, 1024, 20, 16, 1001, True), 261, 286_861_524),
    "imagenet512 H/4": ((64, 4, 4, 1152, 28, 16, 1001, False), 355, 500_942_656),
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
    """(net, x, timesteps, labels) of the probe."""
    net = set_weights(UViT(**{**arguments, **more})).to(dtype).eval()
    shape = 2, arguments["in_chans"], arguments["img_size"], arguments["img_size"]
    x = wave(2 * shape[1] * shape[2] ** 2, 2.0).to(torch.float32).reshape(shape).to(dtype)
    y = torch.tensor([0, 10])[rows] if "num_classes" in arguments else None
    return net, x[rows], torch.tensor([0.0, 417.25], dtype=dtype)[rows], y


def numbers(text):
    return torch.tensor([float(word) for word in text.split()], dtype=torch.float64)


def error(out, case):
    """Largest difference from the official output where it was written down."""
    first = out[0].flatten()[:12].double() - numbers(case["first"])
    last = out[1].flatten()[-12:].double() - numbers(case["last"])
    return torch.cat([first, last]).abs().max().item()


cases = pytest.mark.parametrize("case", PROBES.values(), ids=PROBES.keys())


# U-ViT against the official implementation


@cases
@torch.no_grad()
def test_uvit_puts_out_what_the_official_one_does(case):
    net, x, t, y = probe(case["arguments"])
    out = net(x, t, y)
    assert out.shape == x.shape
    assert error(out, case) < 1e-5
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
    expected |= {f"{name}.{kind}" for name in ends for kind in ("weight", "bias")} | {"pos_embed"}
    expected |= {"label_emb.weight"} if "num_classes" in case["arguments"] else set()
    assert names == expected
    assert len(names) == case["tensors"]
    assert sum(p.numel() for p in net.parameters()) == case["parameters"]


@pytest.mark.parametrize("arguments, tensors, parameters", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_published_configurations_have_the_published_size(arguments, tensors, parameters):
    names = ["img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads"]
    with torch.device("meta"):
        net = UViT(**dict(zip([*names, "num_classes", "conv"], arguments, strict=True)))
    assert len(net.state_dict()) == tensors
    assert sum(p.numel() for p in net.parameters()) == parameters


def first_in_first_out(net):
    made = []
    for block in net.in_blocks:
        block.register_forward_hook(lambda module, inputs, out: made.append(out))
    for k, block in enumerate(net.out_blocks):
        block.register_forward_pre_hook(lambda module, inputs, k=k: (inputs[0], made[k]))


def skip_before_main(net):
    for block in net.out_blocks:
        block.skip_linear.weight.copy_(block.skip_linear.weight.roll(net.width, 1))


def channel_runs_slowest(net):
    pixels = net.patch**2

    def moved(name):
        weights = getattr(net.decoder_pred, name)
        rows = weights.reshape(-1, pixels, *weights.shape[1:]).transpose(0, 1)
        weights.copy_(rows.reshape(weights.shape))

    moved("weight"), moved("bias")


def sines_first(net):
    net.time_embed.register_forward_pre_hook(
        lambda module, inputs: inputs[0].roll(net.width // 2, 1)
    )


@cases
@pytest.mark.parametrize(
    "mistake", [first_in_first_out, skip_before_main, channel_runs_slowest, sines_first]
)
@torch.no_grad()
def test_the_probe_notices_a_mistake(case, mistake):
    """Each of these is a mistake that an implementation could make: none fits within 1e-5."""
    net, x, t, y = probe(case["arguments"])
    mistake(net)
    assert error(net(x, t, y), case) > 1.5e-5


@cases
@torch.no_grad()
def test_what_the_probe_hardly_notices(case):
    net, x, t, y = probe(case["arguments"])
    norms = [module for module in net.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 11 and all(norm.eps == 1e-5 for norm in norms)
    scale = (net.width // case["arguments"]["num_heads"]) ** -0.5
    same, *_ = probe(case["arguments"], qk_scale=scale)
    torch.testing.assert_close(same(x, t, y), net(x, t, y), rtol=0, atol=1e-6)
    other, *_ = probe(case["arguments"], qk_scale=2 * scale)
    assert (other(x, t, y) - net(x, t, y)).abs().max() > 1e-4


@torch.no_grad()
def test_skips_are_last_in_first_out():
    """Each out-block gets the output of the in-block that mirrors it."""
    net, x, t, y = probe(SMALL | {"depth": 6})
    made, given = [], []
    for block in net.in_blocks:
        block.register_forward_hook(lambda module, inputs, out: made.append(out))
    for block in net.out_blocks:
        block.register_forward_hook(lambda module, inputs, out: given.append(inputs[1]))
    net(x, t, y)
    assert [any(g is m for m in made) for g in given] == [True] * 3
    assert all(g is m for g, m in zip(given, reversed(made), strict=True))


@torch.no_grad()
def test_without_skips_nothing_is_merged():
    net, x, t, y = probe(SMALL, skip=False)
    assert not any("skip_linear" in name for name in net.state_dict())
    want = torch.cat([sinusoid(t, 32)[:, None], net.patch_embed(x)], 1) + net.pos_embed
    for block in (*net.in_blocks, net.mid_block, *net.out_blocks):
        want = block(want)
    want = net._image(net.decoder_pred(net.norm(want))[:, 1:])
    torch.testing.assert_close(net(x, t, y), want, rtol=0, atol=1e-6)


def test_sinusoid_is_cosines_then_sines_in_float32():
    t = torch.tensor([0.0, 3.0, 999.5], dtype=torch.float64)
    i = torch.arange(4, dtype=torch.float64)
    angle = t[:, None] * 10000 ** (-i / 4)
    got = sinusoid(t, 9)
    want = torch.cat([angle.cos(), angle.sin(), torch.zeros(3, 1, dtype=torch.float64)], 1)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-4)
    torch.testing.assert_close(sinusoid(torch.tensor([3]), 9)[0], got[1], rtol=0, atol=0)


# What the official one cannot do


@cases
@torch.no_grad()
def test_uvit_in_float64_agrees_with_float32(case):
    net, x, t, y = probe(case["arguments"], torch.float64)
    out = net(x, t, y)
    assert out.dtype == torch.float64
    assert error(out, case) < 1e-5


@cases
@torch.no_grad()
def test_uvit_in_bfloat16(case):
    net, x, t, y = probe(case["arguments"], torch.bfloat16)
    out = net(x, t.float(), y)
    assert out.dtype == torch.bfloat16
    assert error(out.float(), case) < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        net, x, t, y = probe(case["arguments"])
        assert error(net(x, t, y).float(), case) < 0.1


@cases
@torch.no_grad()
def test_a_batch_of_one_is_a_row_of_the_batch(case):
    net, x, t, y = probe(case["arguments"])
    whole = net(x, t, y)
    net, x, t, y = probe(case["arguments"], rows=slice(1, 2))
    torch.testing.assert_close(net(x, t, y), whole[1:], rtol=0, atol=1e-5)


@cases
def test_gradient_checkpointing_gives_the_same_gradients(case):
    gradients = []
    for use in (False, True):
        net, x, t, y = probe(case["arguments"], use_checkpoint=use)
        net.train()(x, t, y).square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(g is not None for g in gradients[0])
    for plain, saved in zip(*gradients, strict=True):
        torch.testing.assert_close(saved, plain, rtol=0, atol=1e-6)


def test_uvit_of_an_oblong_image_and_of_other_channels_out():
    """The last patch of the last row is read from that patch: no side stands for the other."""
    net = UViT((4, 6), 2, 3, 16, 2, 2, conv=False, out_chans=5).double()
    x = torch.randn(5, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    t = torch.rand(5, dtype=torch.float64) * 1000
    assert net(x, t).shape == (5, 5, 4, 6)
    # With no attention and no skips a patch sees itself alone.
    for block in (*net.in_blocks, net.mid_block, *net.out_blocks):
        nn.init.zeros_(block.attn.proj.weight)
    (gradient,) = torch.autograd.grad(net(x, t)[2, 1, 3, 4], x)
    seen = gradient.abs().sum(1) > 0
    want = torch.zeros(5, 4, 6, dtype=torch.bool)
    want[2, 2:4, 4:6] = True
    assert torch.equal(seen, want)


def test_uvit_initialisation_is_the_official_one():
    torch.manual_seed(0)
    net = UViT(16, 2, 3, 128, 2, 4, num_classes=50)
    linear = net.mid_block.mlp.fc1
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not linear.bias.any() and not net.decoder_pred.bias.any()
    assert net.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert net.label_emb.weight.std().item() == pytest.approx(1.0, rel=0.05)
    assert net.patch_embed.proj.bias.abs().max() > 0


def test_uvit_config_rebuilds_it():
    net = UViT(**LABELLED, qk_scale=0.25)
    again = UViT(**json.loads(json.dumps(net.config)))
    assert again.config == net.config
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in net.state_dict().items()
    }
    assert (again.config["num_classes"], again.config["qk_scale"]) == (11, 0.25)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"depth": 5}, "depth=4 .* or depth=6"),
        ({"img_size": 9}, "9 x 9 cannot be cut into patches of 2 x 2"),
        ({"img_size": (8, 7)}, "8 x 7 cannot"),
        ({"num_heads": 5}, "embed_dim 32 cannot be split among 5 heads"),
    ],
)
def test_uvit_refuses_to_be_built(change, says):
    with pytest.raises(ConfigError, match=says):
        UViT(**SMALL | change)


def test_uvit_refuses_other_inputs():
    x, t, y = torch.zeros(5, 3, 8, 8), torch.zeros(5), torch.zeros(5, dtype=torch.int64)
    net, labelled = UViT(**SMALL), UViT(**SMALL, num_classes=3)
    for wrong in (x[..., :6, :6], x[:, :2], x[0], x[..., None]):
        with pytest.raises(ConfigError, match=r"built for images of shape \[3, 8, 8\]"):
            net(wrong, t)
    with pytest.raises(ConfigError, match=r"expected shape \[5\], got \[\]"):
        net(x, t[0])
    with pytest.raises(ConfigError, match="has no classes and got labels"):
        net(x, t, y)
    with pytest.raises(ConfigError, match="has 3 classes and got no labels"):
        labelled(x, t)
    with pytest.raises(ConfigError, match="one label per sample"):
        labelled(x, t, y[:1])


@cases
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own, in inductor
def test_uvit_is_one_graph(case, backend):
    gradients = []
    for compiled in (False, True):
        net, x, t, y = probe(case["arguments"], use_checkpoint=True)
        if compiled:
            torch.compiler.reset()
            net.compile(fullgraph=True, backend=backend)
        out = net(x, t, y)
        assert error(out.detach(), case) < 1e-5
        out.square().mean().backward()
        gradients.append(net.pos_embed.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


# Every backbone through the one call

TINY = {
    "uvit": dict(img_size=8, patch_size=2, in_chans=3, embed_dim=16, depth=2, num_heads=2),
    "unet": dict(
        sample_size=8,
        in_channels=3,
        block_out_channels=[8, 16],
        down_block_types=["DownBlock2D", "AttnDownBlock2D"],
        up_block_types=["AttnUpBlock2D", "UpBlock2D"],
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    ),
    "dit": dict(
        sample_size=8,
        in_channels=3,
        patch_size=2,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
    ),
    "unet-condition": dict(
        sample_size=8,
        in_channels=3,
        block_out_channels=[8, 16],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=2,
    ),
    "mlp": dict(dim=2, width=16, depth=1),
}
ROWS = 4


def data(name, classes):
    shape = (ROWS, 2) if name == "mlp" else (ROWS, 3, 8, 8)
    label = torch.arange(ROWS) % classes if classes else None
    context = torch.randn(ROWS, 7, 12) if name == "unet-condition" else None
    return Batch(
        torch.randn(shape), Cond(label, context) if classes or name == "unet-condition" else None
    )


backbones = pytest.mark.parametrize("name", TINY)
labels = pytest.mark.parametrize("classes", [None, 3], ids=["no labels", "labels"])


def tiny(name, classes):
    return build(name, TINY[name] | ({"num_classes": classes} if classes else {}))


def test_every_net_is_tried():
    assert set(TINY) == set(NETS)


@backbones
@labels
def test_a_backbone_is_distilled_for_one_update(name, classes):
    """One update of the halving changes the student and nothing of the teacher."""
    torch.manual_seed(0)
    teacher = Denoiser(tiny(name, classes), Cosine(), V())
    with torch.no_grad():  # a DiT begins as zero, which any student matches
        for p in teacher.parameters():
            p.add_(0.02 * torch.randn_like(p))
    student, batch = teacher.twin(), data(name, classes)
    before = [p.clone() for p in teacher.freeze().parameters()]
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3)
    draw = Draw.all(torch.Generator().manual_seed(0), ROWS)
    loss = Halve(teacher, uniform(4))(student, batch, draw)
    assert loss.shape == (ROWS,) and bool(loss.isfinite().all())
    loss.mean().backward()
    optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    moved = [not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True)]
    assert sum(moved) > 0.8 * len(moved)
    assert {key.split(".")[0] for key in teacher.net.state_dict()} == {"model"}


@backbones
@torch.no_grad()
def test_labels_and_times_are_heard_and_rows_do_not_mix(name):
    torch.manual_seed(0)
    net, batch = tiny(name, 3), data(name, 3)
    for p in net.parameters():
        p.add_(0.05 * torch.randn_like(p))
    t = torch.full((ROWS,), 300.0)
    out = net(batch.x0, t, batch.cond)
    changed = batch.cond.label.clone()
    changed[1] = (changed[1] + 1) % 3
    later = t.clone()
    later[2] = 700.0
    other = net(batch.x0, later, Cond(changed, batch.cond.context))
    difference = (out - other).flatten(1).abs().amax(1)
    assert difference[1] > 1e-4 and difference[2] > 1e-4
    assert difference[[0, 3]].max() < 1e-6


@torch.no_grad()
def test_dit_does_not_drop_labels_by_itself():
    net = tiny("dit", 3).train()
    for p in net.parameters():
        p.add_(0.1 * torch.randn_like(p))
    x, t, label = torch.randn(1, 3, 8, 8).expand(400, -1, -1, -1), torch.zeros(400), torch.ones(400)
    out = net(x, t, Cond(label.long()))
    assert (out - out[:1]).abs().max() < 1e-5
    assert (
        net.model.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight.shape[0]
        == 3
    )


@torch.no_grad()
def test_text_states_are_heard():
    net, batch = tiny("unet-condition", None), data("unet-condition", None)
    t = torch.full((ROWS,), 300.0)
    out, other = net(batch.x0, t, batch.cond), net(batch.x0, t, Cond(None, -batch.cond.context))
    assert (out - other).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["unet", "dit", "unet-condition"])
@torch.no_grad()
def test_out_channels_follow_in_channels(name):
    batch, t = data(name, None), torch.zeros(ROWS)
    assert tiny(name, None)(batch.x0, t, batch.cond).shape == (ROWS, 3, 8, 8)
    twice = build(name, TINY[name] | {"out_channels": 6})
    assert twice(batch.x0, t, batch.cond).shape == (ROWS, 6, 8, 8)


@backbones
def test_conditions_that_a_net_does_not_read_are_refused(name):
    batch, t = data(name, 3), torch.zeros(ROWS)
    context = batch.cond.context
    with pytest.raises(ConfigError, match="takes no labels and got some"):
        tiny(name, None)(batch.x0, t, batch.cond)
    with pytest.raises(ConfigError, match="3 classes and got no labels"):
        tiny(name, 3)(batch.x0, t, Cond(None, context))
    with pytest.raises(ConfigError, match="reads no guidance"):
        tiny(name, 3)(batch.x0, t, Cond(batch.cond.label, context, torch.ones(ROWS)))
    if context is None:
        with pytest.raises(ConfigError, match="reads no context"):
            tiny(name, 3)(batch.x0, t, Cond(batch.cond.label, torch.ones(ROWS, 7, 12)))
    else:
        with pytest.raises(ConfigError, match="reads text states"):
            tiny(name, None)(batch.x0, t)


def test_importing_the_nets_imports_no_diffusers():
    code = "import sys, halfstep.nets; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


# build


@backbones
def test_a_recipe_rebuilds_the_net(name):
    net = tiny(name, 3)
    again = build(*json.loads(json.dumps(recipe(net))))
    again.load_state_dict(net.state_dict())
    assert recipe(again) == recipe(net)
    kind, config = recipe(net)
    assert kind == name
    assert {key: config[key] for key in TINY[name]} == TINY[name] and config["num_classes"] == 3


@pytest.mark.parametrize("name", ["uvit", "mlp"])
def test_a_recipe_of_our_own_nets_keeps_the_defaults_it_was_built_with(name):
    net = tiny(name, None)
    assert recipe(net)[1] == net.model.config
    assert set(TINY[name]) < set(recipe(net)[1])


@pytest.mark.parametrize("name", ["uvit", "unet", "dit", "unet-condition"])
def test_fitting_is_what_the_data_decides(name):
    config = TINY[name] | fitting(name, (3, 8, 8), outputs=2, num_classes=3)
    batch = data(name, 3)
    assert build(name, config)(batch.x0, torch.zeros(ROWS), batch.cond).shape == (ROWS, 6, 8, 8)


def test_fitting_refuses_data_of_another_kind():
    assert fitting("mlp", (5,), outputs=2) == {"dim": 5, "out_dim": 10}
    assert fitting("mine.nets:small", (3, 4, 6), num_classes=2) == {"num_classes": 2}
    assert fitting("uvit", (3, 4, 6))["img_size"] == [4, 6]
    with pytest.raises(ConfigError, match="is for points"):
        fitting("mlp", (3, 8, 8))
    with pytest.raises(ConfigError, match="is for images"):
        fitting("unet", (2,))
    with pytest.raises(ConfigError, match="square"):
        fitting("dit", (3, 4, 6))


@pytest.mark.parametrize(
    "name, config, says",
    [
        ("uvti", {}, "no net 'uvti': perhaps you meant 'uvit'"),
        ("uvit", {"embed_dimm": 8}, "'embed_dimm': perhaps you meant 'embed_dim'"),
        ("mlp", {"widt": 8}, "'widt': perhaps you meant 'width'"),
        ("unet", {"block_out_chanels": [8]}, "perhaps you meant 'block_out_channels'"),
        ("unet", {"num_class_embeds": 3}, "'num_class_embeds'"),
        ("dit", {"num_layer": 2}, "perhaps you meant 'num_layers'"),
        ("dit", {"num_embeds_ada_norm": 2}, "'num_embeds_ada_norm'"),
        ("unet-condition", {"sample_sise": 8}, "perhaps you meant 'sample_size'"),
        ("unet", TINY["unet"] | {"norm_num_groups": 3}, "diffusers cannot build the net 'unet'"),
        ("mlp", {"width": torch.zeros(1)}, "'width' .* is a Tensor, which JSON cannot hold"),
        ("no_such_package:net", {}, "no module 'no_such_package'"),
        ("tests.test_nets:lineer", {}, "'lineer': perhaps you meant 'linear'"),
        ("tests.test_nets:linear", {"wide": 3, "sied": 1}, "'sied': perhaps you meant 'side'"),
        ("tests.test_nets:linear", {}, "needs wide in its config"),
        ("tests.test_nets:no_net", {}, "returned int"),
    ],
)
def test_build_refuses(name, config, says):
    with pytest.raises(ConfigError, match=says):
        build(name, config)


class Linear(Adapter):
    """What a user writes."""

    def forward(self, x, t, cond=None):
        return self.model(x) + t[:, None]


def linear(wide, side=1.0):
    return Linear(nn.Linear(wide, wide))


def no_net():
    return 3


def test_a_users_function_is_a_net():
    net = build("tests.test_nets:linear", {"wide": 3, "side": 2.0})
    assert net(torch.zeros(5, 3), torch.ones(5)).shape == (5, 3)
    assert recipe(net) == ("tests.test_nets:linear", {"wide": 3, "side": 2.0})
    with pytest.raises(ConfigError, match="not made by"):
        recipe(nn.Linear(2, 2))


def test_a_twin_keeps_its_recipe():
    denoiser = Denoiser(tiny("mlp", None), Cosine(), V())
    assert recipe(denoiser.twin().net) == recipe(denoiser.net)


# The small ones


def test_the_mlp_learns_two_points():
    """Data of two points, one a class: pure noise is denoised to the point asked for."""
    torch.manual_seed(0)
    points = torch.tensor([[0.8, -0.3], [-0.5, 0.6]])
    net = build("mlp", {"dim": 2, "width": 32, "depth": 2, "num_classes": 2})
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(200):
        label, t = torch.randint(2, (128,)), torch.rand(128)
        x = (1 - t[:, None]) * points[label] + t[:, None] * torch.randn(128, 2)
        loss = (net(x, 1000 * t, Cond(label)) - points[label]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    label = torch.arange(64) % 2
    out = net(torch.randn(64, 2), torch.full((64,), 1000.0), Cond(label))
    assert (out - points[label]).abs().mean() < 0.05


@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (5, 3, 9, 14), (5, 3, 64, 64)])
@torch.no_grad()
def test_classifier(shape):
    net = Classifier(channels=shape[1], classes=7, size=min(shape[2:]))
    assert 40_000 < sum(p.numel() for p in net.parameters()) < 200_000
    x = torch.randn(shape)
    logits, features = net(x), net.features(x)
    assert logits.shape == (5, 7) and features.shape == (5, 32)
    torch.testing.assert_close(net.head(features), logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(net.features(x[2:3]), features[2:3], rtol=0, atol=1e-5)
    net.unit_features(x)
    torch.testing.assert_close(net(x), logits, rtol=0, atol=1e-5)
    assert net.features(x).var(0).mean().item() == pytest.approx(1, abs=1e-5)
    assert Classifier(**net.config).state_dict().keys() == net.state_dict().keys()


def test_classifier_refuses_other_images():
    with pytest.raises(ConfigError, match="channels=3"):
        Classifier(channels=1)(torch.zeros(5, 3, 8, 8))
    with pytest.raises(ConfigError, match="7 x 9 are too small"):
        Classifier(channels=3)(torch.zeros(5, 3, 7, 9))
