"""Resize a trained network to images of another size."""

from collections.abc import Sequence

from torch import nn

from halfstep.diffusion.denoiser import freeze_alike
from halfstep.errors import ConfigError
from halfstep.models import copy_recipe, recipe
from halfstep.models.adapters import UViTNet
from halfstep.models.diffusers_net import DiffusersNet


def resized(net: nn.Module, size: Sequence[int]) -> nn.Module:
    """The network for images of (H, W): a copy of a U-ViT with an interpolated position embedding.

    A network of diffusers is returned as it is, except a DiT; any other network is refused.
    """
    if isinstance(net, DiffusersNet) and type(net.model).__name__ != "DiTTransformer2DModel":
        return net
    from halfstep.models.uvit.model import UViT  # here, as it imports diffusers

    if not isinstance(net, UViTNet) or not isinstance(net.model, UViT):
        raise ConfigError(
            f"a {type(net).__name__} cannot be given another image size: leave the size out, or use a "
            "U-ViT or a U-Net"
        )
    height, width = size
    new = UViTNet(net.model.resized((height, width)), net.num_classes)
    freeze_alike(new, net)
    if hasattr(net, "recipe"):  # so that it can be saved
        side = height if height == width else [height, width]
        copy_recipe(new, net, {**recipe(net)[1], "img_size": side})
    return new
