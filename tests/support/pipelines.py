"""Pipelines of small networks of every kind."""

import torch

from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.models import build
from halfstep.pipeline import Pipeline

UVIT = {
    "img_size": [4, 6],
    "patch_size": 2,
    "in_chans": 3,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 2,
}
BLOCKS = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
}
NETS = {
    "mlp": ({"dim": 5, "width": 16, "depth": 1}, (5,)),
    "uvit": (UVIT, (3, 4, 6)),
    "unet": ({"in_channels": 3, "sample_size": [4, 6], **BLOCKS}, (3, 4, 6)),
    "dit": (
        {"sample_size": 6, "patch_size": 2, "in_channels": 3, "num_layers": 1,
         "num_attention_heads": 2, "attention_head_dim": 6, "norm_num_groups": 3},
        (3, 6, 6),
    ),
}  # fmt: skip


def shaken(net):
    """Away from the zeros that some networks start from."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def pipeline(name="uvit", *, schedule=None, reads=None, class_names=(), null=None, **more):
    config, shape = NETS[name]
    reads = reads or V()
    config = dict(config)
    if class_names:
        config["num_classes"] = len(class_names) + (null is not None)
    if reads.outputs == 2:
        config |= {"mlp": {"out_dim": 10}, "uvit": {"out_chans": 6}}[name]
    denoiser = Denoiser(shaken(build(name, config)), schedule or Cosine(), reads)
    return Pipeline(denoiser.freeze(), shape, class_names=class_names, null=null, **more)
