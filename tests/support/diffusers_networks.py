"""Tiny networks of diffusers, and the conditions that each of them reads."""

import torch

TOKENS, WIDTH, POOLED = 5, 12, 6
SMALL = {
    "UNet2DConditionModel-SDXL": {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": [1, 2],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "transformer_layers_per_block": [1, 1],
        "use_linear_projection": True,
        "projection_class_embeddings_input_dim": 6 * 8 + POOLED,
    },
    "PixArtTransformer2DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "cross_attention_dim": 16,
        "sample_size": 8,
        "patch_size": 2,
        "caption_channels": WIDTH,
        "norm_num_groups": 4,
    },
    "PixArtTransformer2DModel-sized": {
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "cross_attention_dim": 48,
        "sample_size": 8,
        "patch_size": 2,
        "caption_channels": WIDTH,
        "use_additional_conditions": True,
        "norm_num_groups": 4,
    },
    "SD3Transformer2DModel": {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "caption_projection_dim": 16,
        "pooled_projection_dim": POOLED,
        "pos_embed_max_size": 8,
    },
    "FluxTransformer2DModel": {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "pooled_projection_dim": POOLED,
        "axes_dims_rope": [4, 4, 8],
    },
    "SanaTransformer2DModel": {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 1,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": WIDTH,
        "sample_size": 8,
    },
    "QwenImageTransformer2DModel": {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "axes_dims_rope": [4, 6, 6],
    },
}
"""Configs by class; what follows a hyphen tells two of one class apart."""


def _states(n):
    return torch.randn(n, TOKENS, WIDTH)


def _mask(n):
    mask = torch.ones(n, TOKENS, dtype=torch.int64)
    mask[-1, 3:] = 0
    return mask


def _sdxl(n):
    states, pooled = _states(n), torch.randn(n, POOLED)
    ids = torch.tensor([[8.0, 8, 0, 0, 8, 8]] * n)
    added = {"text_embeds": pooled, "time_ids": ids}
    theirs = {"sample": True, "encoder_hidden_states": states, "added_cond_kwargs": added}
    return states, added, theirs


def _masked(n):
    states, mask = _states(n), _mask(n)
    theirs = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    return states, {"encoder_attention_mask": mask}, theirs


def _sized(n):
    states, added, theirs = _masked(n)
    sizes = {"resolution": torch.tensor([[64.0, 64.0]] * n), "aspect_ratio": torch.ones(n, 1)}
    return states, {**added, **sizes}, {**theirs, "added_cond_kwargs": sizes}


def _pooled(n):
    states, pooled = _states(n), torch.randn(n, POOLED)
    added = {"pooled_projections": pooled}
    return states, added, {"encoder_hidden_states": states, **added}


def _flux(n):
    from diffusers import FluxPipeline

    states, added, theirs = _pooled(n)
    ids = FluxPipeline._prepare_latent_image_ids(n, 4, 4, "cpu", torch.float32)
    return states, added, {**theirs, "img_ids": ids, "txt_ids": torch.zeros(TOKENS, 3)}


def _qwen(n):
    states, mask = _states(n), _mask(n)
    theirs = {"encoder_hidden_states": states, "encoder_hidden_states_mask": mask}
    return states, {"encoder_hidden_states_mask": mask}, {**theirs, "img_shapes": [[(1, 4, 4)]] * n}


CONDITIONS = {
    "UNet2DConditionModel-SDXL": _sdxl,
    "PixArtTransformer2DModel": _masked,
    "PixArtTransformer2DModel-sized": _sized,
    "SD3Transformer2DModel": _pooled,
    "FluxTransformer2DModel": _flux,
    "SanaTransformer2DModel": _masked,
    "QwenImageTransformer2DModel": _qwen,
}
"""Text states, added tensors and the arguments of the network's own forward, for n samples."""
