"""The U-ViT as a model of diffusers, and what the official one cannot do."""

import copy
import pickle
import sys
import types

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from halfstep.batch import Cond
from halfstep.errors import ConfigError
from halfstep.models import build, infer_config, recipe, UViT, UViTNet
from halfstep.models.uvit.attention import FORMS
from tests.support.uvit import cases, error, LABELLED, probe, PROBES, SMALL, TEXT, wave


def public(config):
    return {key: value for key, value in config.items() if not key.startswith("_")}


def filled(net):
    """Weights far from their initial ones: a test that moves one sees it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return net


# Files


@cases
@torch.no_grad()
def test_save_and_load_gives_the_same_bits(case, tmp_path):
    net, inputs = probe(case["arguments"], qk_scale=0.25)
    net.save_pretrained(tmp_path)
    for more in ({}, {"low_cpu_mem_usage": False}):
        again = UViT.from_pretrained(tmp_path, **more)
        assert public(again.config).items() >= public(net.config).items()
        assert not again.training and torch.equal(again(*inputs), net(*inputs))
    half = UViT.from_pretrained(tmp_path, dtype=torch.bfloat16)
    out = half(inputs[0].bfloat16(), *inputs[1:])
    assert torch.equal(out, net.bfloat16()(inputs[0].bfloat16(), *inputs[1:]))
    assert {p.dtype for p in half.parameters()} == {out.dtype} == {torch.bfloat16}


@torch.no_grad()
def test_another_attention_is_chosen_as_the_file_is_read(tmp_path):
    net, inputs = probe(SMALL, attention="explicit")
    net.save_pretrained(tmp_path)
    again = UViT.from_pretrained(tmp_path, attention="sdpa")
    assert again.config.attention == "sdpa" and again.mid_block.attn.mix is FORMS["sdpa"]
    torch.testing.assert_close(again(*inputs), net(*inputs), rtol=0, atol=1e-6)


@torch.no_grad()
def test_an_official_state_dict_loads_strictly(tmp_path):
    net, inputs = probe(LABELLED)
    torch.save(net.state_dict(), tmp_path / "nnet_ema.pth")
    with torch.device("meta"):
        again = UViT(**LABELLED)
    state = torch.load(tmp_path / "nnet_ema.pth", weights_only=True)
    again.load_state_dict(state, strict=True, assign=True)
    assert torch.equal(again.eval()(*inputs), net(*inputs))


def test_the_config_rebuilds_it_and_copies_are_copies():
    net = UViT(**LABELLED, qk_scale=0.25, use_checkpoint=True)
    for again in (
        UViT(**net.config),
        UViT.from_config(net.config),
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
    ):
        assert public(again.config) == public(net.config)
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in net.state_dict().items()
        }
        assert again.config.num_classes == 11 and again.config["qk_scale"] == 0.25
        assert again.gradient_checkpointing


# Calls


@torch.no_grad()
def test_times_may_be_one_for_all():
    net, (x, *_) = probe(SMALL)
    filled(net)
    assert net(x[:0], 417.0).shape == (0, 3, 8, 8)
    want = net(x, torch.tensor([417.0, 417.0]))
    for t in (417, 417.0, torch.tensor(417), torch.tensor(417.0, dtype=torch.float64)):
        assert torch.equal(net(x, t), want)
    assert (net(x, torch.tensor([417.0, 3.0]))[1] - want[1]).abs().max() > 1e-3


@torch.no_grad()
def test_return_dict_gives_what_diffusers_reads():
    net, inputs = probe(TEXT)
    out = net(*inputs, return_dict=True)
    assert torch.equal(out.sample, net(*inputs))
    assert out[0] is out["sample"] is out.to_tuple()[0] is out.sample


@cases
@torch.no_grad()
def test_uvit_in_bfloat16(case):
    net, (x, *more) = probe(case["arguments"], torch.bfloat16)
    out = net(x, *more)
    assert out.dtype == torch.bfloat16
    assert error(out.float(), case) < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        net, inputs = probe(case["arguments"])
        assert error(net(*inputs).float(), case) < 0.1


@cases
@torch.no_grad()
def test_a_batch_of_one_is_a_row_of_the_batch(case):
    net, inputs = probe(case["arguments"])
    whole = net(*inputs)
    net, inputs = probe(case["arguments"], rows=slice(1, 2))
    torch.testing.assert_close(net(*inputs), whole[1:], rtol=0, atol=1e-5)


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
    affected = gradient.abs().sum(1) > 0
    want = torch.zeros(5, 4, 6, dtype=torch.bool)
    want[2, 2:4, 4:6] = True
    assert torch.equal(affected, want)


# Attention


class Seen(TorchFunctionMode):
    """The dtypes that attention's own functions were called with."""

    def __init__(self):
        super().__init__()
        self.calls = set()

    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in ("scaled_dot_product_attention", "softmax", "baddbmm", "bmm"):
            self.calls |= {(name, arg.dtype) for arg in args if isinstance(arg, torch.Tensor)}
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("attention", ["auto", "sdpa", "explicit"])
@torch.no_grad()
def test_nothing_is_cast_up_and_auto_is_explicit_in_bfloat16_alone(attention, autocast):
    net, (x, *more) = probe(SMALL, attention=attention)
    if not autocast:
        net, x = net.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Seen() as recorder:
        net(x, *more)
    fused = {("scaled_dot_product_attention", torch.bfloat16)}
    assert (recorder.calls == fused) == (attention == "sdpa")
    assert {dtype for _, dtype in recorder.calls} == {torch.bfloat16}
    for dtype in (torch.float32, torch.float64):
        net, inputs = probe(SMALL, dtype, attention=attention)
        with Seen() as recorder:
            net(*inputs)
        fused = {("scaled_dot_product_attention", dtype)}
        assert (recorder.calls == fused) == (attention != "explicit")


@torch.no_grad()
def test_xformers_gets_what_it_documents(monkeypatch):
    """Its kernels are not here: a stand-in with its signature and its layout [B, N, heads, d]."""
    ops = types.ModuleType("xformers.ops")

    def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None):
        assert query.shape == (2, 11, 3, 16)
        weights = torch.einsum("bihd,bjhd->bhij", query, key) * (scale or 16**-0.5)
        return torch.einsum("bhij,bjhd->bihd", weights.softmax(-1), value)

    ops.memory_efficient_attention = memory_efficient_attention
    xformers = types.ModuleType("xformers")
    xformers.__spec__ = types.SimpleNamespace(name="xformers")
    monkeypatch.setitem(sys.modules, "xformers", xformers)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    for scale in (None, 0.21):
        net, inputs = probe(LABELLED, qk_scale=scale, attention="xformers")
        same, _ = probe(LABELLED, qk_scale=scale, attention="sdpa")
        torch.testing.assert_close(net(*inputs), same(*inputs), rtol=0, atol=1e-5)


# Gradient checkpointing and compilation


def trained(net, inputs):
    """Gradients of a loss, and which attentions ran, in order."""
    runs = []
    for name, module in net.named_modules():
        if name.endswith("attn"):
            module.register_forward_hook(lambda module, inputs, out, name=name: runs.append(name))
    net.train()(*inputs).square().mean().backward()
    return [p.grad for p in net.parameters()], runs


@cases
@pytest.mark.parametrize("how", ["use_checkpoint", "enable", "own function"])
def test_gradient_checkpointing_gives_the_same_gradients(case, how):
    net, inputs = probe(case["arguments"])
    plain, runs = trained(net, inputs)
    assert len(runs) == len(set(runs)) and all(g is not None for g in plain)
    net, _ = probe(case["arguments"], use_checkpoint=how == "use_checkpoint")
    blocks = []
    if how == "enable":
        net.enable_gradient_checkpointing()
    elif how == "own function":
        net.enable_gradient_checkpointing(lambda block, *a: (blocks.append(block), block(*a))[1])
    assert net.is_gradient_checkpointing
    saved, twice = trained(net, inputs)
    if how == "own function":
        assert blocks == [*net.in_blocks, net.mid_block, *net.out_blocks]
    else:  # forwards, and backwards once more, block by block
        assert twice == runs + runs[::-1]
    for p, q in zip(plain, saved, strict=True):
        torch.testing.assert_close(q, p, rtol=0, atol=1e-6)
    net.disable_gradient_checkpointing()
    with torch.no_grad():
        assert error(net(*inputs), case) < 1e-5
    assert not net.is_gradient_checkpointing


@pytest.mark.parametrize(
    "name, backend, checkpointed",
    [
        pytest.param(name, backend, checkpointed, marks=pytest.mark.slow)
        for name in PROBES
        for backend in ("aot_eager", "inductor")
        for checkpointed in (False, True)
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own, in inductor
def test_uvit_is_one_graph(name, backend, checkpointed):
    case = PROBES[name]
    net, inputs = probe(case["arguments"], use_checkpoint=checkpointed)
    plain, _ = probe(case["arguments"])
    torch.compiler.reset()
    net.compile(fullgraph=True, backend=backend)
    with torch.no_grad():
        assert error(net(*inputs), case) < 1e-5
    net.train()(*inputs).square().mean().backward()
    plain.train()(*inputs).square().mean().backward()
    for p, q in zip(plain.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "autocast", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["autocast", "weights"]
)
@torch.no_grad()
def test_uvit_is_one_graph_in_bfloat16(autocast):
    net, (x, *more) = probe(TEXT)
    if not autocast:
        net, x = net.bfloat16(), x.bfloat16()
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out, want = compiled(x, *more), net(x, *more)
    torch.testing.assert_close(out, want, rtol=0, atol=0.02)


@torch.no_grad()
def test_diffusers_compiles_its_blocks():
    net, inputs = probe(TEXT)
    want = net(*inputs)
    torch.compiler.reset()
    net.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(net(*inputs), want, rtol=0, atol=1e-6)
    assert {type(block).__name__ for block in net.in_blocks} == set(UViT._no_split_modules)


# Another size


def surface(grid, interior):
    """A different parabola a dimension over the unit square, on the centres of a grid [h w, 5].

    interior  how far from the border in old cells, for each side, or None for all
    """
    (h, w), (old_h, old_w) = grid, interior or (0, 0)
    u = ((torch.arange(h, dtype=torch.float64) + 0.5) / h)[:, None].expand(h, w)
    v = ((torch.arange(w, dtype=torch.float64) + 0.5) / w)[None].expand(h, w)
    inside = torch.ones(h, w, dtype=torch.bool)
    if interior:
        inside = (2.5 / old_h < u) & (u < 1 - 2.5 / old_h)
        inside &= (2.5 / old_w < v) & (v < 1 - 2.5 / old_w)
    planes = torch.stack([torch.ones_like(u), u, v, u * v, u**2 - 3 * v**2], -1)
    return planes.flatten(0, 1), inside.flatten()


@pytest.mark.parametrize("arguments", [SMALL, TEXT, LABELLED | {"conv": True}])
@pytest.mark.parametrize("size, grid", [((24, 26), (12, 13)), ((9 * 2, 34), (9, 17))])
def test_another_size_carries_a_parabola_over(arguments, size, grid):
    arguments = arguments | {"patch_size": 2, "img_size": (16, 20), "embed_dim": 48}
    net = filled(UViT(**arguments)).double()
    planes, _ = surface((8, 10), None)
    with torch.no_grad():
        net.pos_embed[0, net.extras :, :5] = planes
    other = net.resized(size)
    want, inside = surface(grid, (8, 10))
    assert 10 < inside.sum() < len(inside)
    got = other.pos_embed[0, net.extras :, :5]
    torch.testing.assert_close(got[inside], want[inside], rtol=0, atol=1e-9)
    assert torch.equal(other.pos_embed[:, : net.extras], net.pos_embed[:, : net.extras])
    assert (got[:, 0] - 1).abs().max() < 1e-9
    x = wave(net.shape[0] * size[0] * size[1], 1.0).reshape(1, -1, *size)
    encoder_hidden_states = None if net.context_embed is None else torch.zeros(1, 7, 24)
    y = None if net.label_emb is None else torch.tensor([3])
    assert other(x, 5, y, encoder_hidden_states).shape == x.shape


def test_a_smaller_size_averages():
    """Where four cells become one, neighbours of alternating sign cancel."""
    net = filled(UViT(**SMALL | {"img_size": 32})).double()
    sign = (-1.0) ** (torch.arange(16)[:, None] + torch.arange(16))
    with torch.no_grad():
        net.pos_embed[0, 1:] = sign.flatten()[:, None]
    assert net.resized(16).pos_embed[0, 1:].abs().max() < 0.1


def test_the_same_size_is_the_same_to_the_bit():
    net = filled(UViT(**LABELLED, use_checkpoint=True)).eval()
    other = net.resized((12, 12))
    assert all(map(torch.equal, net.state_dict().values(), other.state_dict().values()))
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in other.parameters()}
    assert not other.training and other.gradient_checkpointing
    assert net.train().resized(12).training


@torch.no_grad()
def test_a_resized_network_is_saved_with_its_size(tmp_path):
    net = filled(UViT(**SMALL)).bfloat16().eval()
    other = net.resized([6, 12])
    assert public(other.config) == public(net.config) | {"img_size": [6, 12]}
    assert {p.dtype for p in other.parameters()} == {torch.bfloat16}
    other.save_pretrained(tmp_path)
    again = UViT.from_pretrained(tmp_path, dtype=torch.bfloat16)
    x = torch.ones(2, 3, 6, 12, dtype=torch.bfloat16)
    assert torch.equal(again(x, 3), other(x, 3))
    assert net.shape == (3, 8, 8) and net.config.img_size == 8
    with pytest.raises(ConfigError, match="9 x 8 cannot be cut"):
        net.resized((9, 8))


# Text


@torch.no_grad()
def test_the_adapter_passes_text_on():
    net = build("uvit", TEXT)
    x, t = wave(5 * 4 * 64, 1.0).float().reshape(5, 4, 8, 8), torch.full((5,), 300.0)
    encoder_hidden_states = wave(5 * 7 * 24, 2.0).float().reshape(5, 7, 24)
    filled(net)
    out = net(x, t, Cond(encoder_hidden_states=encoder_hidden_states))
    assert torch.equal(out, net.model(x, t, None, encoder_hidden_states))
    other = encoder_hidden_states.clone()
    other[2, 6] += 1  # the last state of one row is read, by that row
    changed = (net(x, t, Cond(encoder_hidden_states=other)) - out).flatten(1).abs().amax(1)
    assert changed[2] > 1e-4 and changed[[0, 1, 3, 4]].max() < 1e-6
    for cond in (None, Cond()):
        with pytest.raises(ConfigError, match="reads text states: give cond=Cond"):
            net(x, t, cond)
    with pytest.raises(ConfigError, match="takes no labels and got some"):
        net(x, t, Cond(torch.zeros(5, dtype=torch.int64), encoder_hidden_states))
    with pytest.raises(ConfigError, match="reads no encoder_hidden_states"):
        build("uvit", SMALL)(x[:, :3], t, Cond(encoder_hidden_states=encoder_hidden_states))
    assert (net.reads, UViTNet.reads) == (("label", "encoder_hidden_states"), ("label",))
    again = build(*recipe(net))
    assert {
        **recipe(again)[1],
        "attention": "auto",
        "guidance_embed_dim": 0,
        "t_end_embed_dim": 0,
        "output_heads": 0,
    } == public(net.model.config) | TEXT


def test_fitting_gives_the_sides_of_text():
    text = {"clip_dim": 768, "num_clip_token": 77}
    assert infer_config("uvit", (4, 6, 6), text_shape=(77, 768)) == text | {
        "img_size": 6,
        "in_chans": 4,
        "out_chans": 4,
    }
    assert (
        infer_config("unet-condition", (4, 6, 6), text_shape=(77, 768))["cross_attention_dim"]
        == 768
    )
    assert infer_config("mine.nets:small", (4, 6, 6), text_shape=(7, 12)) == {"text_shape": [7, 12]}
    for name, shape in (("unet", (4, 6, 6)), ("dit", (4, 6, 6)), ("mlp", (2,))):
        with pytest.raises(ConfigError, match=f"'{name}' reads no texts.*choose 'uvit'"):
            infer_config(name, shape, text_shape=(7, 12))


# Refusals


@pytest.mark.parametrize(
    "change, says",
    [
        ({"depth": 5}, "depth=4 .* or depth=6"),
        ({"img_size": 9}, "9 x 9 cannot be cut into patches of 2 x 2"),
        ({"img_size": (8, 7)}, "8 x 7 cannot"),
        ({"num_heads": 5}, "embed_dim 32 cannot be split among 5 heads"),
        ({"clip_dim": 24, "num_classes": 3}, "clip_dim=24 and num_classes=3.*leave one"),
        ({"clip_dim": 0}, "clip_dim=0 and num_clip_token=77.*write 1 or more"),
        ({"clip_dim": 24, "num_clip_token": 0}, "num_clip_token=0.*write 1 or more"),
        (
            {"attention": "flash"},
            "no attention 'flash': choose from auto, explicit, sdpa, xformers",
        ),
        ({"attention": "xformers"}, "package xformers"),
    ],
)
def test_uvit_refuses_to_be_built(change, says):
    with pytest.raises(ConfigError, match=says):
        UViT(**SMALL | change)


def test_uvit_refuses_other_inputs():
    x, t, y = torch.zeros(5, 3, 8, 8), torch.zeros(5), torch.zeros(5, dtype=torch.int64)
    net, labelled = UViT(**SMALL), UViT(**SMALL, num_classes=3)
    for wrong in (x[..., :6, :6], x[:, :2], x[0], x[..., None]):
        with pytest.raises(ConfigError, match="resized"):
            net(wrong, t)
    for wrong in (t[:1], t[:, None], t[:4]):
        with pytest.raises(ConfigError, match=rf"shape \[5\], got \[{wrong.shape[0]}"):
            net(x, wrong)
    with pytest.raises(ConfigError, match="got labels"):
        net(x, t, y)
    with pytest.raises(ConfigError, match="no labels"):
        labelled(x, t)
    with pytest.raises(ConfigError, match="one label per sample"):
        labelled(x, t, y[:1])
    text = UViT(**SMALL, clip_dim=6, num_clip_token=7)
    with pytest.raises(ConfigError, match="reads no text"):
        net(x, t, None, torch.zeros(5, 7, 6))
    with pytest.raises(ConfigError, match=r"got shape None"):
        text(x, t)
    with pytest.raises(ConfigError, match=r"\[5, 7, 6\] and got shape \[5, 6, 7\]"):
        text(x, t, None, torch.zeros(5, 6, 7))
    with pytest.raises(ConfigError, match="got labels"):
        text(x, t, y, torch.zeros(5, 7, 6))
