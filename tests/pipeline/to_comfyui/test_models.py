"""The published models are those that ComfyUI knows."""

import pytest

from halfstep.errors import ConfigError
from halfstep.pipeline.to_comfyui.models import model_of

UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "use_linear_projection": False,
}
XL = {
    **UNET,
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
}
SD1 = {**UNET, "cross_attention_dim": 768, "attention_head_dim": 8}
SD2 = {
    **UNET,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}


@pytest.mark.parametrize(
    ("config", "name"),
    [(SD1, "Stable Diffusion 1"), (SD2, "Stable Diffusion 2"), (XL, "Stable Diffusion XL")],
)
def test_the_configs_of_published_unets(config, name):
    assert model_of("UNet2DConditionModel", config).name == name


def test_the_defaults_of_diffusers_transformers():
    import torch
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        flux = FluxTransformer2DModel(num_layers=1, num_single_layers=1)
    assert model_of("FluxTransformer2DModel", dict(flux.config)).name == "Flux"
    config = {"attention_head_dim": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 2048}
    for depth, name in ((24, "Stable Diffusion 3"), (38, "Stable Diffusion 3.5 Large")):
        sizes = {**config, "num_layers": depth, "num_attention_heads": depth}
        assert model_of("SD3Transformer2DModel", sizes).name == name


def test_others_are_refused():
    with pytest.raises(
        ConfigError, match=r"Stable Diffusion 1 by block_out_channels = 320, .* \[192"
    ):
        model_of("UNet2DConditionModel", {**SD1, "block_out_channels": [192, 320]})
    with pytest.raises(ConfigError, match=r"Stable Diffusion 2 by attention_head_dim"):
        model_of("UNet2DConditionModel", {**SD2, "attention_head_dim": 8})
    with pytest.raises(ConfigError, match="SanaTransformer2DModel for ComfyUI"):
        model_of("SanaTransformer2DModel", {})
