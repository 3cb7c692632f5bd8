"""The guidance scale as an input of every network: features, a start that changes nothing, refusals."""

import json
import math

import pytest
import torch
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import (
    LatentConsistencyModelPipeline,
)
from torch import nn

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.errors import ConfigError
from halfstep.models import Adapter, build, recipe
from halfstep.models.diffusers_net import pack
from halfstep.models.guidance_embedding import adding, guidance_features, GuidanceEmbedding
from halfstep.models.with_guidance import with_guidance
from tests.support.networks import data, ROWS, TINY, tiny

backbones = pytest.mark.parametrize("name", TINY)
TIMES = torch.tensor([10.0, 300.0, 300.0, 999.0])
SCALES = torch.tensor([1.0, 1.3, 4.0, 5.0])


def shaken(net):
    """Away from the zeros that some networks start from."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def with_guidance_scale(cond, scale=SCALES):
    return Cond(cond.label, cond.encoder_hidden_states, scale)


# --- features -----------------------------------------------------------------------------------------


def test_features_of_the_specification():
    """distillation-checks.md 45."""
    w = torch.tensor([1.0, 0.0], dtype=torch.float64)
    expected = [
        [0.826879541, 0.65031686, 0.834463208, 0.099833417],
        [0.562379076, -0.759663071, -0.551063658, 0.995004165],
        [0.0, 0.0, 0.0, 0.0],
        [1.0, 1.0, 1.0, 1.0],
    ]
    actual = guidance_features(w, 8)
    assert actual.dtype == torch.float64
    expected = torch.tensor(expected, dtype=torch.float64).reshape(2, 8)
    torch.testing.assert_close(actual, expected, rtol=0, atol=6e-10)


@pytest.mark.parametrize("width", [4, 14, 256])
def test_features_are_those_of_diffusers(width):
    w = torch.linspace(0, 14, 37, dtype=torch.float64)
    pipeline = LatentConsistencyModelPipeline
    expected_features = pipeline.get_guidance_scale_embedding(None, w, width, torch.float64)
    # Their frequencies are rounded to float32, and angles reach 14,000.
    torch.testing.assert_close(guidance_features(w, width), expected_features, rtol=0, atol=1e-3)


def test_features_are_never_of_less_than_float32():
    for dtype in (torch.bfloat16, torch.float16):
        assert guidance_features(torch.ones(3, dtype=dtype), 6).dtype == torch.float32
    assert guidance_features(torch.ones(3), 6).shape == (3, 6)


def test_the_embedding_reads_the_scale_minus_one_and_begins_at_zero():
    embedding = GuidanceEmbedding(6, 5)
    assert embedding(SCALES).eq(0).all() and embedding(SCALES).shape == (ROWS, 5)
    shaken(embedding)
    hidden = embedding.enter(guidance_features(SCALES - 1, 6))
    expected = embedding.leave(hidden * torch.sigmoid(hidden))
    torch.testing.assert_close(embedding(SCALES), expected)
    assert (embedding(SCALES)[0] - embedding(SCALES)[1]).abs().max() > 1e-3


@pytest.mark.parametrize("features", [2, 3, 7, -4])
def test_features_that_cannot_be(features):
    with pytest.raises(ConfigError, match=f"got {features}.*even"):
        GuidanceEmbedding(features, 5)
    with pytest.raises(ConfigError, match="even number"):
        with_guidance(tiny("mlp", 3), width=features)


def test_adding_lasts_as_long_as_it_is_asked_for():
    net, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), torch.ones(2, 3)
    plain = net(x)
    with adding(torch.full((2, 3), 0.5), [net[1]]):
        torch.testing.assert_close(net(x), plain + 0.5)
    assert torch.equal(net(x), plain)
    with adding(None, [net[1]]):
        assert torch.equal(net(x), plain)
    with pytest.raises(ZeroDivisionError), adding(torch.ones(2, 3), [net[1]]):
        1 / 0  # noqa: B018
    assert torch.equal(net(x), plain)


# --- every backbone -----------------------------------------------------------------------------------


@backbones
@torch.no_grad()
def test_it_begins_as_the_conditional_network_to_the_bit(name):
    torch.manual_seed(0)
    net, batch = shaken(tiny(name, 3)), data(name, 3)
    expected = net(batch.x0, TIMES, batch.cond)
    guided = with_guidance(net, width=12)
    for scale in (SCALES, SCALES.double(), SCALES.flip(0)):
        assert torch.equal(
            guided(batch.x0, TIMES, with_guidance_scale(batch.cond, scale)), expected
        )
    shaken(guided)
    assert torch.equal(net(batch.x0, TIMES, batch.cond), expected)  # they share nothing


@backbones
@torch.no_grad()
def test_scales_are_heard_and_rows_do_not_mix(name):
    torch.manual_seed(0)
    net, batch = shaken(with_guidance(tiny(name, 3), width=12)), data(name, 3)
    out = net(batch.x0, TIMES, with_guidance_scale(batch.cond))
    scale = SCALES.clone()
    scale[2] += 0.7
    difference = (
        (out - net(batch.x0, TIMES, with_guidance_scale(batch.cond, scale)))
        .flatten(1)
        .abs()
        .amax(1)
    )
    assert difference[2] > 1e-4 and difference[[0, 1, 3]].max() < 1e-6


@backbones
def test_every_new_weight_learns(name):
    """After two updates: the first moves the last layer from zero, the second what lies before it."""
    torch.manual_seed(0)
    old, batch = shaken(tiny(name, 3)), data(name, 3)
    net = with_guidance(old, width=12)
    new = net.state_dict().keys() - old.state_dict().keys()
    assert len(new) == (1 if name == "unet-condition" else 4)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert sum(bool(before[key].any()) for key in new) == (0 if len(new) == 1 else 2)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        net(batch.x0, TIMES, with_guidance_scale(batch.cond)).square().mean().backward()
        optimiser.step()
    assert all(not torch.equal(before[key], net.state_dict()[key]) for key in new)


@backbones
def test_a_recipe_rebuilds_it(name):
    net = shaken(with_guidance(tiny(name, 3), width=12))
    again = build(*json.loads(json.dumps(recipe(net))))
    again.load_state_dict(net.state_dict())
    assert recipe(again) == recipe(net) and recipe(net)[1]["guidance_embed_dim"] == 12
    batch = data(name, 3)
    out = [n.eval()(batch.x0, TIMES, with_guidance_scale(batch.cond)) for n in (net, again)]
    assert torch.equal(*out)
    assert "guidance_embed_dim" not in recipe(tiny(name, 3))[1]


@backbones
def test_a_network_of_scales_refuses_to_do_without(name):
    net, batch = with_guidance(tiny(name, 3), width=12), data(name, 3)
    with pytest.raises(ConfigError, match=r"Cond\(guidance_scale="):
        net(batch.x0, TIMES, batch.cond)
    with pytest.raises(ConfigError, match="already"):
        with_guidance(net)


def test_the_uvit_alone_refuses_too():
    batch = data("uvit", 3)
    plain = tiny("uvit", 3).model
    with pytest.raises(ConfigError, match="no guidance scale"):
        plain(batch.x0, TIMES, batch.cond.label, guidance_scale=SCALES)
    guided = with_guidance(tiny("uvit", 3), width=12).model
    with pytest.raises(ConfigError, match="as an input"):
        guided(batch.x0, TIMES, batch.cond.label)


def test_the_copy_is_where_and_as_the_network_is():
    net = tiny("mlp", 3).double().eval()
    guided = with_guidance(net, width=12)
    assert {p.dtype for p in guided.parameters()} == {torch.float64}
    assert not guided.training and with_guidance(net.train(), width=12).training


def test_new_weights_depend_on_the_seed_alone():
    net, states = tiny("mlp", 3), []
    for state, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(state)
        before = torch.random.get_rng_state()
        states.append(with_guidance(net, width=12, seed=seed).state_dict())
        assert torch.equal(torch.random.get_rng_state(), before)
    same = [all(torch.equal(states[0][k], other[k]) for k in other) for other in states[1:]]
    assert same == [True, False]


def test_a_uvit_adds_it_to_the_time_token_alone():
    """With any scale, the label's token and the patches enter the first block as they were."""
    net, batch, inputs = shaken(with_guidance(tiny("uvit", 3), width=12)), data("uvit", 3), []
    net.model.in_blocks[0].register_forward_pre_hook(
        lambda module, arguments: inputs.append(arguments[0])
    )
    with torch.no_grad():
        net(batch.x0, TIMES, with_guidance_scale(batch.cond))
        net(batch.x0, TIMES, with_guidance_scale(batch.cond, SCALES + 1))
        added = [net.model.guidance_embed(scale) for scale in (SCALES, SCALES + 1)]
    difference = inputs[1] - inputs[0]
    torch.testing.assert_close(difference[:, 1], added[1] - added[0], rtol=0, atol=1e-5)
    assert difference[:, [0, *range(2, difference.shape[1])]].eq(0).all()


def test_a_dit_with_checkpointing_is_refused():
    """What is computed again in the backward pass would not hear the scale."""
    net, batch = with_guidance(tiny("dit", 3), width=12), data("dit", 3)
    net.model.enable_gradient_checkpointing()
    with pytest.raises(ConfigError, match="checkpointing"):
        net(batch.x0, TIMES, with_guidance_scale(batch.cond))


@pytest.mark.parametrize("name", ["uvit", "unet"])
def test_gradients_under_checkpointing_are_the_same(name):
    torch.manual_seed(0)
    net, batch = shaken(with_guidance(tiny(name, 3), width=12)), data(name, 3)
    grads = []
    for _ in range(2):
        net.zero_grad()
        net(batch.x0, TIMES, with_guidance_scale(batch.cond)).square().mean().backward()
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
        net.model.enable_gradient_checkpointing()
    assert len(grads[0]) == len(grads[1])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_unet_condition_takes_features_of_w_where_diffusers_has_them():
    net, batch = with_guidance(tiny("unet-condition", None), width=12), data("unet-condition", None)
    assert net.model.config.time_cond_proj_dim == 12
    shaken(net).eval()
    features = guidance_features(SCALES - 1, 12)
    with torch.no_grad():
        expected = net.model(
            batch.x0, TIMES, batch.cond.encoder_hidden_states, timestep_cond=features
        )[0]
        assert torch.equal(net(batch.x0, TIMES, with_guidance_scale(batch.cond)), expected)
    with pytest.raises(ConfigError, match="time_cond_proj_dim"):
        build(
            "unet-condition",
            TINY["unet-condition"] | {"guidance_embed_dim": 8, "time_cond_proj_dim": 12},
        )


# --- networks of one's own ----------------------------------------------------------------------------


class Own(Adapter):
    reads = ("label", "guidance_scale")

    def forward(self, x, t, cond=None):
        out = self.model(x) + t[:, None]
        return out if self.scales is None else out + self.scales(self.scale(cond, x))


def own_network(wide, guidance_embed_dim=0):
    net = Own(nn.Linear(wide, wide))
    net.scales = GuidanceEmbedding(guidance_embed_dim, wide) if guidance_embed_dim else None
    return net


def deaf(wide, guidance_embed_dim=0):
    return Adapter(nn.Linear(wide, wide))


def other(wide, guidance_embed_dim=0):
    return Adapter(
        nn.Sequential(nn.Linear(wide, wide)) if guidance_embed_dim else nn.Linear(wide, wide)
    )


def test_a_network_of_ones_own_with_an_argument_guidance():
    net = build("tests.diffusion.test_guidance:own_network", {"wide": 3})
    guided, x = with_guidance(net, width=4), torch.randn(ROWS, 3)
    assert torch.equal(guided(x, TIMES, Cond(guidance_scale=SCALES)), net(x, TIMES))
    assert recipe(guided) == (
        "tests.diffusion.test_guidance:own_network",
        {"wide": 3, "guidance_embed_dim": 4},
    )


@pytest.mark.parametrize(
    "name, says",
    [
        (
            "tests.models.test_build:linear",
            "no option of the net 'tests.models.test_build:linear' called 'guidance_embed_dim'",
        ),
        (
            "tests.diffusion.test_guidance:deaf",
            "its weights are the same; let its argument guidance_embed_dim add layers",
        ),
        ("tests.diffusion.test_guidance:other", "its weights lack model"),
    ],
)
def test_networks_that_cannot_be_told(name, says):
    with pytest.raises(ConfigError, match=says):
        with_guidance(build(name, {"wide": 3}), width=4)
    with pytest.raises(ConfigError, match="not made by"):
        with_guidance(nn.Linear(2, 2))


def test_no_feature_is_a_stranger_to_its_neighbours():
    """The slowest turns once in 2 pi / 0.1 of w: scales that lie near are near for some features."""
    slow = guidance_features(torch.tensor([3.0, 3.1]), 256)[:, 127]
    assert abs(slow[0] - math.sin(0.3)) < 1e-4 and abs(slow[1] - slow[0]) < 0.01


@pytest.mark.parametrize("side", [1, 2])
def test_the_norm_of_the_conditional_output_is_kept_on_each_patch(side):
    """As Qwen-Image's pipeline scales: token by token, where a token is a patch of side x side pixels."""
    torch.manual_seed(0)
    net, schedule = tiny("unet", 3), Cosine()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    denoiser = Denoiser(net.eval(), schedule, V())
    x, t, cond = torch.randn(2, 3, 8, 8), torch.full((2,), 0.5), Cond(torch.tensor([0, 1]))
    with torch.no_grad():
        kept = V().encode(Guided(denoiser, 4.0, 2, norm=side)(x, t, cond), denoiser.level(t, x))
        plain = V().encode(Guided(denoiser, 4.0, 2)(x, t, cond), denoiser.level(t, x))
        conditional = V().encode(denoiser(x, t, cond), denoiser.level(t, x))

    def tokens(v):
        return pack(v, side)

    lengths = tokens(conditional).norm(dim=-1, keepdim=True)
    expected = tokens(plain) * lengths / tokens(plain).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(tokens(kept), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(kept, plain, atol=1e-2)
