"""Small networks, and what is done to them."""

import torch

from halfstep.batch import Batch, Cond
from halfstep.models import build

UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "layers_per_block": 2,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}


@torch.no_grad()
def nothing(net, pair):
    """Make the two blocks of a pair identities: residual branches of zeros, a skip layer of [1, 0]."""
    model = net.model
    half = len(model.in_blocks)
    for block in (model.in_blocks[pair], model.out_blocks[half - 1 - pair]):
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
        if block.skip_linear is not None:
            width = block.skip_linear.out_features
            block.skip_linear.weight.copy_(torch.eye(width, 2 * width))
            block.skip_linear.bias.zero_()


TINY = {
    "uvit": dict(img_size=8, patch_size=2, in_chans=3, embed_dim=16, depth=2, num_heads=2),
    "unet": dict(
        sample_size=8,
        in_channels=3,
        block_out_channels=[8, 16],
        down_block_types=["DownBlock2D", "AttnDownBlock2D"],
        up_block_types=["AttnUpBlock2D", "UpBlock2D"],
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    ),
    "dit": dict(
        sample_size=8,
        in_channels=3,
        patch_size=2,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
    ),
    "unet-condition": dict(
        sample_size=8,
        in_channels=3,
        block_out_channels=[8, 16],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=2,
    ),
    "mlp": dict(dim=2, width=16, depth=1),
}


CODEC = dict(
    in_channels=3, out_channels=3, latent_channels=4, block_out_channels=[4, 4, 4, 4], norm_num_groups=2,
    layers_per_block=1, down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
)  # fmt: skip


ROWS = 4


def data(name, num_classes):
    shape = (ROWS, 2) if name == "mlp" else (ROWS, 3, 8, 8)
    label = torch.arange(ROWS) % num_classes if num_classes else None
    encoder_hidden_states = torch.randn(ROWS, 7, 12) if name == "unet-condition" else None
    return Batch(
        torch.randn(shape),
        Cond(label, encoder_hidden_states) if num_classes or name == "unet-condition" else None,
    )


def tiny(name, num_classes):
    return build(name, TINY[name] | ({"num_classes": num_classes} if num_classes else {}))
