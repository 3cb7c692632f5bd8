"""A network at one guidance scale is the network that takes it, at that scale."""

import pytest
import torch

from halfstep.batch import Cond
from halfstep.errors import ConfigError
from halfstep.models import build
from halfstep.models.fixed_scale import at_scale
from tests.support.diffusers_networks import CONDITIONS, SMALL


def named(name, **options):
    config = {k: v for k, v in SMALL[name].items()}
    net = "unet-condition" if name.startswith("UNet") else name.partition("-")[0]
    torch.manual_seed(0)
    made = build(net, {**config, **options}).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return made


def inputs(name):
    torch.manual_seed(1)
    states, added, _ = CONDITIONS[name](2)
    return lambda scale: Cond(None, states, torch.full((2,), scale) if scale else None, added=added)


@pytest.mark.parametrize("name", ["UNet2DConditionModel-SDXL", "SD3Transformer2DModel"])
def test_it_answers_alike_at_its_scale_alone(name):
    net, cond = named(name, guidance_embed_dim=8), inputs(name)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fixed = at_scale(net, 2.5)
    x, t = torch.randn(2, net.model.config.in_channels, 8, 8), torch.tensor([500.0, 20.0])
    with torch.no_grad():
        ours, theirs = fixed(x, t, cond(None)), net(x, t, cond(2.5))
        other = net(x, t, cond(1.0))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (ours - other).abs().max() > 1e-3
    assert "guidance_scale" not in fixed.reads
    assert "cond_proj" not in " ".join(fixed.state_dict())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_a_network_without_such_an_input_is_refused():
    with pytest.raises(ConfigError, match="guidance_scale"):
        at_scale(named("SD3Transformer2DModel"), 2.0)
