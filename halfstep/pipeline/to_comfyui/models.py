"""The models that ComfyUI tells apart by their tensors, and what it takes for granted of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from halfstep.config import NetConfig
from halfstep.diffusion.denoiser import NetTime
from halfstep.errors import ConfigError

LEVEL = NetTime("t", 1000.0, -1.0)
"""The number of a level of a table."""


@dataclass(frozen=True)
class ComfyModel:
    """A model that ComfyUI knows.

    name      for people
    network   the class of the network in diffusers
    config    the options of the network that ComfyUI takes for granted or knows it by; a number stands for
              the first of a list
    scale     factor on its latents
    shift     subtracted from the autoencoder's latents before
    time      the network's time input
    encoders  prefixes of the text encoders in the file, by diffusers' component; empty for a file of the
              diffusion model alone.  A prefix that ends in "model." is of OpenCLIP's names
    markers   empty tensors in the file say whether it predicts v
    levels    entries of the table of flow matching
    loaders   the text encoders and the autoencoder that a file of the diffusion model alone needs
    """

    name: str
    network: str
    config: Mapping[str, Any]
    scale: float
    shift: float = 0.0
    time: NetTime = LEVEL
    encoders: Mapping[str, str] = field(default_factory=dict)
    markers: bool = False
    levels: int = 1000
    loaders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_UNET, _SD3, _FLUX = "UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel"
_WIDE = {"block_out_channels": 320, "in_channels": 4, "out_channels": 4}
_SD3_LOADERS = {
    "TripleCLIPLoader": ("clip_l.safetensors", "clip_g.safetensors", "t5xxl_fp16.safetensors"),
    "VAELoader": ("sd3_vae.safetensors",),
}
_SD3_CONFIG = {"attention_head_dim": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 2048}

MODELS: tuple[ComfyModel, ...] = (
    ComfyModel(
        "Stable Diffusion 1",
        _UNET,
        {
            **_WIDE,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
            "use_linear_projection": False,
        },
        0.18215,
        encoders={"text_encoder": "cond_stage_model.transformer."},
    ),
    ComfyModel(
        "Stable Diffusion 2",
        _UNET,
        {
            **_WIDE,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        0.18215,
        encoders={"text_encoder": "cond_stage_model.model."},
    ),
    ComfyModel(
        "Stable Diffusion XL",
        _UNET,
        {
            **_WIDE,
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "projection_class_embeddings_input_dim": 2816,
            "transformer_layers_per_block": (1, 2, 10),
        },
        0.13025,
        encoders={
            "text_encoder": "conditioner.embedders.0.transformer.",
            "text_encoder_2": "conditioner.embedders.1.model.",
        },
        markers=True,
    ),
    *(
        ComfyModel(
            name,
            _SD3,
            {**_SD3_CONFIG, "num_layers": depth, "num_attention_heads": depth},
            1.5305,
            0.0609,
            time=NetTime("sigma", 1000.0),
            loaders=_SD3_LOADERS,
        )
        for name, depth in (("Stable Diffusion 3", 24), ("Stable Diffusion 3.5 Large", 38))
    ),
    ComfyModel(
        "Flux",
        _FLUX,
        {
            "in_channels": 64,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "axes_dims_rope": (16, 56, 56),
        },
        0.3611,
        0.1159,
        time=NetTime("sigma", 1.0),
        levels=10_000,
        loaders={
            "DualCLIPLoader": ("t5xxl_fp16.safetensors", "clip_l.safetensors"),
            "VAELoader": ("ae.safetensors",),
        },
    ),
)


def model_of(network: str, config: NetConfig) -> ComfyModel:
    """ComfyUI's model of a network of diffusers; `ConfigError` for one that it does not know.

    network  the class
    config   the network's config
    """
    known = [model for model in MODELS if model.network == network]
    if not known:
        classes = ", ".join(dict.fromkeys(model.network for model in MODELS))
        raise ConfigError(
            f"halfstep writes no file of a {network} for ComfyUI, only of {classes}: write "
            "format='diffusers'"
        )
    differing = [_differing(model, config) for model in known]
    for model, options in zip(known, differing, strict=True):
        if not options:
            return model
    nearest = min(range(len(known)), key=lambda k: len(differing[k]))
    model, name = known[nearest], differing[nearest][0]
    raise ConfigError(
        f"ComfyUI knows a {model.name} by {name} = {model.config[name]}, and this network has "
        f"{config.get(name)}: write format='diffusers'"
    )


def _differing(model: ComfyModel, config: NetConfig) -> list[str]:
    """The options in which the network differs from ComfyUI's model."""
    return [name for name, expected in model.config.items() if not _is(config.get(name), expected)]


def _is(value: Any, expected: Any) -> bool:
    if isinstance(value, list | tuple):
        value = tuple(value) if isinstance(expected, tuple) else value[0]
    return bool(value == expected)
