"""Tiny autoencoders of diffusers, with random weights, and what its pipelines do with each."""

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLQwenImage, AutoencoderTiny

KL = dict(
    block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
)  # fmt: skip
DC = dict(
    latent_channels=4, attention_head_dim=4, encoder_block_out_channels=(8, 8, 16),
    decoder_block_out_channels=(8, 8, 16), encoder_layers_per_block=(0, 1, 1),
    decoder_layers_per_block=(1, 1, 1), encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
    decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
    encoder_qkv_multiscales=((), (), (3,)), decoder_qkv_multiscales=((), (), (3,)),
    scaling_factor=0.41407,
)  # fmt: skip
QWEN = dict(
    base_dim=4, z_dim=3, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
    latents_mean=[-0.7, 0.1, 0.9], latents_std=[2.8, 1.4, 0.3],
)  # fmt: skip
TINY = dict(
    encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
    num_decoder_blocks=(1, 1), latent_channels=3,
)  # fmt: skip
SDXL = dict(
    scaling_factor=0.5, latents_mean=[-1.6, 0.1, 1.3, 0.4], latents_std=[8.4, 5.9, 0.2, 1.0]
)
SD3 = dict(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609)


def _per_channel(values, latents):
    return torch.tensor(values, dtype=latents.dtype)[:, None, None]


def scaled(vae, latents):
    """What StableDiffusionPipeline and SanaPipeline decode."""
    return vae.decode(latents / vae.config.scaling_factor).sample


def shifted(vae, latents):
    """What StableDiffusion3Pipeline and FluxPipeline decode."""
    return vae.decode((latents / vae.config.scaling_factor) + vae.config.shift_factor).sample


def of_channels(vae, latents):
    """What StableDiffusionXLPipeline decodes."""
    mean = _per_channel(vae.config.latents_mean, latents)
    std = _per_channel(vae.config.latents_std, latents)
    return vae.decode(latents * std / vae.config.scaling_factor + mean).sample


def of_frames(vae, latents):
    """What QwenImagePipeline decodes, and the frame that it takes."""
    mean = _per_channel(vae.config.latents_mean, latents)[:, None]
    std = 1 / _per_channel(vae.config.latents_std, latents)[:, None]
    return vae.decode(latents.unsqueeze(2) / std + mean).sample[:, :, 0]


AUTOENCODERS = {
    "sd": (AutoencoderKL, KL, scaled),
    "sdxl": (AutoencoderKL, KL | SDXL, of_channels),
    "sd3": (
        AutoencoderKL,
        KL | SD3 | dict(use_quant_conv=False, use_post_quant_conv=False),
        shifted,
    ),
    "dc": (AutoencoderDC, DC, scaled),
    "qwen": (AutoencoderKLQwenImage, QWEN, of_frames),
    "tiny": (AutoencoderTiny, TINY, scaled),
}
"""By name: the class, its config, and how its pipeline decodes latents."""


def autoencoder(name, seed=0, **more):
    """The model, every weight of it random."""
    torch.manual_seed(seed)
    kind, config, _ = AUTOENCODERS[name]
    model = kind(**config | more).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape) / 20)
    return model
