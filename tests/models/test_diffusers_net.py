"""The networks of diffusers through one adapter: each answers what its own forward answers."""

import pytest
import torch

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import Velocity
from halfstep.diffusion.schedules import RectifiedFlow
from halfstep.errors import ConfigError
from halfstep.models import build, recipe
from halfstep.models.diffusers_net import pack, unpack
from halfstep.models.network_inputs import INPUTS, inputs_of
from halfstep.models.with_guidance import with_guidance
from tests.support.diffusers_networks import CONDITIONS, SMALL

families = pytest.mark.parametrize("name", SMALL)
ROWS, SIDE = 2, 8


def net_name(name):
    return "unet-condition" if name.startswith("UNet") else name.partition("-")[0]


def is_packed(name):
    return INPUTS[name.partition("-")[0]].packed


def noisy(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return module.eval()


def condition(name):
    """A condition with all that the network reads, and the same as arguments of its forward."""
    torch.manual_seed(1)
    states, added, theirs = CONDITIONS[name](ROWS)
    return Cond(encoder_hidden_states=states, added=added), theirs


def channels(name):
    config = SMALL[name]
    return config["in_channels"] // 4 if is_packed(name) else config["in_channels"]


@families
@torch.no_grad()
def test_a_network_answers_what_its_own_forward_answers(name):
    net = noisy(build(net_name(name), SMALL[name]))
    cond, theirs = condition(name)
    x, t = torch.randn(ROWS, channels(name), SIDE, SIDE), torch.tensor([0.3, 0.7])
    sample = pack(x, 2) if is_packed(name) else x
    keys = {"sample": sample} if "sample" in theirs else {"hidden_states": sample}
    theirs = {key: value for key, value in theirs.items() if key != "sample"}
    expected = net.model(**keys, timestep=t, **theirs, return_dict=False)[0]
    if is_packed(name):
        expected = unpack(expected, 2, x.shape[-2:])
    out = net(x, t, cond)
    assert torch.equal(out, expected) and out.abs().max() > 1e-3
    again = build(*recipe(net))
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(x, t, cond), out)


@families
def test_a_condition_that_is_missing_or_not_read_is_named(name):
    net = build(net_name(name), SMALL[name])
    x, t = torch.randn(ROWS, channels(name), SIDE, SIDE), torch.tensor([0.3, 0.7])
    cond, _ = condition(name)
    for missing in cond.added:
        fewer = {key: value for key, value in cond.added.items() if key != missing}
        with pytest.raises(ConfigError, match=missing):
            net(x, t, Cond(encoder_hidden_states=cond.encoder_hidden_states, added=fewer))
    with pytest.raises(ConfigError, match="text states"):
        net(x, t, Cond(added=cond.added))
    with pytest.raises(ConfigError, match="strange"):
        net(
            x,
            t,
            Cond(
                encoder_hidden_states=cond.encoder_hidden_states, added={**cond.added, "strange": x}
            ),
        )


@families
@torch.no_grad()
def test_a_guidance_scale_is_added_where_no_argument_takes_it(name):
    """The copy answers the same at first, and then reads its scale row by row."""
    net = noisy(build(net_name(name), SMALL[name]))
    cond, _ = condition(name)
    x, t = torch.randn(ROWS, channels(name), SIDE, SIDE), torch.tensor([0.3, 0.7])
    if "guidance_scale" in net.reads:
        return
    scaled = with_guidance(net, width=8).eval()

    def at(*scales):
        states = cond.encoder_hidden_states
        return Cond(cond.label, states, torch.tensor(scales), cond.added)

    assert torch.equal(scaled(x, t, at(1.0, 4.0)), net(x, t, cond))
    noisy(scaled)
    one, other = scaled(x, t, at(1.0, 4.0)), scaled(x, t, at(1.0, 2.0))
    assert torch.equal(one[0], other[0]) and (one[1] - other[1]).abs().max() > 1e-5


@torch.no_grad()
def test_an_embedded_guidance_scale_is_the_condition():
    net = noisy(
        build(
            "FluxTransformer2DModel", {**SMALL["FluxTransformer2DModel"], "guidance_embeds": True}
        )
    )
    (cond, theirs), x, t = (
        condition("FluxTransformer2DModel"),
        torch.randn(ROWS, 4, SIDE, SIDE),
        torch.tensor([0.3, 0.7]),
    )
    with pytest.raises(ConfigError, match="guidance"):
        net(x, t, cond)
    scales = torch.tensor([1.0, 3.5])
    out = net(x, t, Cond(None, cond.encoder_hidden_states, scales, cond.added))
    expected = net.model(
        hidden_states=pack(x, 2), timestep=t, guidance=scales, **theirs, return_dict=False
    )[0]
    assert torch.equal(out, unpack(expected, 2, x.shape[-2:]))


def test_patches_are_packed_as_diffusers_packs_them():
    from diffusers import FluxPipeline, QwenImagePipeline

    x = torch.randn(2, 3, 6, 4)
    packed = FluxPipeline._pack_latents(x, 2, 3, 6, 4)
    assert torch.equal(pack(x, 2), packed) and torch.equal(unpack(packed, 2, x.shape[-2:]), x)
    assert torch.equal(packed, QwenImagePipeline._pack_latents(x[:, :, None], 2, 3, 6, 4))
    with pytest.raises(ConfigError, match="divide"):
        pack(torch.randn(1, 3, 5, 4), 2)


@pytest.mark.parametrize("name", ["PixArtTransformer2DModel", "SanaTransformer2DModel"])
@torch.no_grad()
def test_learned_variances_are_cut_off_where_the_config_says_so(name):
    config = {**SMALL[name], "out_channels": 2 * SMALL[name]["in_channels"]}
    net = noisy(build(name, {**config, "learned_sigma": True}))
    (cond, theirs), x, t = (
        condition(name),
        torch.randn(ROWS, channels(name), SIDE, SIDE),
        torch.tensor([0.3, 0.7]),
    )
    both = net.model(x, timestep=t, **theirs, return_dict=False)[0]
    assert torch.equal(net(x, t, cond), both[:, : channels(name)])
    with pytest.raises(ConfigError, match="variances"):
        Denoiser(build(name, config), RectifiedFlow(), Velocity())
    Denoiser(net, RectifiedFlow(), Velocity())


@torch.no_grad()
def test_a_class_that_nobody_foresaw_is_a_mapping():
    """AuraFlow reads text states alone; the mapping is saved with the config."""
    inputs = {"conditions": {"encoder_hidden_states": "encoder_hidden_states"}}
    config = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "caption_projection_dim": 16,
        "pos_embed_max_size": 64,
    }
    with pytest.raises(ConfigError, match="inputs"):
        build("AuraFlowTransformer2DModel", config)
    net = noisy(build("AuraFlowTransformer2DModel", {**config, "inputs": inputs}))
    x, t, states = (
        torch.randn(ROWS, 4, SIDE, SIDE),
        torch.tensor([0.3, 0.7]),
        torch.randn(ROWS, 5, 12),
    )
    out = net(x, t, Cond(encoder_hidden_states=states))
    assert torch.equal(out, net.model(x, states, t, return_dict=False)[0])
    assert recipe(net)[1]["inputs"] == inputs and build(*recipe(net)).inputs == net.inputs


@pytest.mark.parametrize(
    "inputs, word",
    [
        ({"sampl": "x"}, "sample"),
        ({"packed": -1}, "packed"),
        ("hidden_states", "mapping"),
        ({"conditions": ["a"]}, "conditions"),
    ],
)
def test_a_wrong_mapping_is_a_sentence(inputs, word):
    with pytest.raises(ConfigError, match=word):
        inputs_of("AuraFlowTransformer2DModel", {"inputs": inputs})
