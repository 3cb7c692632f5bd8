"""Transformers by their original names: diffusers' reader gives back every tensor."""

import pytest
import torch
from diffusers.loaders import single_file_utils

from halfstep.errors import ConfigError
from halfstep.pipeline.to_comfyui.transformers import original_transformer, READERS
from tests.support.families import network

SD3, FLUX = READERS


def read(tensors, name):
    return getattr(single_file_utils, READERS[name][0])(dict(tensors))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3},
        {"num_layers": 3, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
    ],
)
def test_stable_diffusion_3(options):
    net = network(SD3, **options)
    state = net.state_dict()
    tensors = original_transformer(state, SD3, dict(net.config))
    assert all(name.startswith("model.diffusion_model.") for name in tensors)
    again = read(tensors, SD3)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


@pytest.mark.parametrize("guidance", [False, True])
def test_flux(guidance):
    """Of the width that diffusers' reader takes for granted, and one column a tensor."""
    import diffusers

    options = {"num_layers": 2, "num_single_layers": 3, "guidance_embeds": guidance}
    with torch.device("meta"):
        net = diffusers.FluxTransformer2DModel(**options)
    state = {
        name: torch.randn(len(value), *[1] * (value.ndim - 1))
        for name, value in net.state_dict().items()
    }
    tensors = original_transformer(state, FLUX, dict(net.config))
    linear = tensors["model.diffusion_model.single_blocks.2.linear1.weight"]
    prefix = "single_transformer_blocks.2."
    parts = "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"
    assert torch.equal(linear, torch.cat([state[f"{prefix}{part}.weight"] for part in parts]))
    again = read(tensors, FLUX)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_a_tensor_that_diffusers_does_not_read_is_refused():
    net = network(SD3)
    state = {**net.state_dict(), "adapter.weight": torch.zeros(2)}
    with pytest.raises(ConfigError, match=r"adapter\.weight"):
        original_transformer(state, SD3, dict(net.config))
