"""Stable Diffusion's networks by their original names: diffusers' reader gives back every tensor."""

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)

from halfstep.errors import ConfigError
from halfstep.pipeline.to_comfyui.latent_diffusion import (
    original_clip,
    original_open_clip,
    original_unet,
    original_vae,
)
from tests.support.families import clip_text, vae


def same(again, state):
    return again.keys() == state.keys() and all(torch.equal(again[k], state[k]) for k in state)


def unet(**options):
    import diffusers

    config = {
        "block_out_channels": [8, 16, 16],
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    }
    return diffusers.UNet2DConditionModel(**{**config, **options})


SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
    "transformer_layers_per_block": [1, 2, 3],
    "use_linear_projection": True,
}
SD1 = {
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}


@pytest.mark.parametrize("options", [{}, SD1, SDXL, {"layers_per_block": 1}])
def test_a_unet(options):
    net = unet(**options)
    state, config = net.state_dict(), dict(net.config)
    tensors = original_unet(state, config)
    assert len(tensors) == len(state)
    assert same(convert_ldm_unet_checkpoint(dict(tensors), config), state)


def test_the_places_of_the_original_code():
    """Names of Stable Diffusion 1.5's file, of a network with its four levels."""
    four = {
        "block_out_channels": [8] * 4,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }
    net = unet(**four)
    names = original_unet(net.state_dict(), dict(net.config))
    for name in (
        "time_embed.2.weight",
        "input_blocks.3.0.op.weight",
        "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight",
        "input_blocks.11.0.out_layers.3.bias",
        "middle_block.2.emb_layers.1.weight",
        "output_blocks.2.1.conv.weight",
        "output_blocks.5.2.conv.bias",
        "output_blocks.11.0.skip_connection.weight",
        "out.2.weight",
    ):
        assert f"model.diffusion_model.{name}" in names


@pytest.mark.parametrize(
    "options",
    [{"layers_per_block": (1, 2, 1)}, {"time_cond_proj_dim": 8}, {"class_embed_type": "identity"}],
)
def test_what_the_original_names_cannot_hold_is_refused(options):
    net = unet(**options)
    if "class_embed_type" in options:  # it has no tensors
        original_unet(net.state_dict(), dict(net.config))
        return
    with pytest.raises(ConfigError, match="original names"):
        original_unet(net.state_dict(), dict(net.config))


def test_an_autoencoder():
    net = vae(block_out_channels=[8, 16, 16], down_block_types=["DownEncoderBlock2D"] * 3,
              up_block_types=["UpDecoderBlock2D"] * 3)  # fmt: skip
    state = net.state_dict()
    tensors = original_vae(state, 3)
    assert tensors["first_stage_model.decoder.mid.attn_1.q.weight"].shape == (16, 16, 1, 1)
    assert same(convert_ldm_vae_checkpoint(dict(tensors), dict(net.config)), state)


def test_text_encoders():
    plain, projected = clip_text(), clip_text(16, projected=True)
    names = original_clip(plain.state_dict(), "cond_stage_model.transformer.")
    assert "cond_stage_model.transformer.text_model.final_layer_norm.bias" in names
    prefix = "conditioner.embedders.1.model."
    tensors = original_open_clip(projected.state_dict(), prefix)
    assert tensors[f"{prefix}transformer.resblocks.0.attn.in_proj_bias"].shape == (48,)
    again = convert_open_clip_checkpoint(projected, dict(tensors), prefix=prefix)
    assert same(again, projected.state_dict())
