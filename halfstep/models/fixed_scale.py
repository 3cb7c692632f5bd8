"""A network that takes its guidance scale as an input, at one scale: the scale becomes a bias."""

import copy
from typing import Any, cast

import torch
from torch import nn, Tensor

from halfstep.errors import ConfigError
from halfstep.models.diffusers_net import DiffusersNet
from halfstep.models.guidance_embedding import guidance_features


@torch.no_grad()
def at_scale(net: DiffusersNet, scale: float) -> DiffusersNet:
    """A copy of a network of diffusers without its input for the guidance scale: exact for this scale.

    The projected features of a scale (Meng et al. 2023) are added before a linear layer of the time's
    embedding, as W (h + P f) + b = W h + (b + W P f), or, embedded, after its last one.  Sums are in float64.

    scale  the guidance scale; the copy's outputs are the network's at it

    Raises `ConfigError` for a network whose own forward takes the scale (Flux with guidance_embeds).
    """
    if net.takes_scale or not net.guidance_embed_dim:
        raise ConfigError(
            "the scale of this network is no input that halfstep added: leave guidance_scale out"
        )
    scales = torch.tensor([scale], dtype=torch.float64)
    model = cast(Any, copy.deepcopy(net.model))
    fixed = DiffusersNet(model, net.inputs, net.num_classes, learned_sigma=net.learned_sigma)
    fixed.outputs = net.outputs
    if net.guidance is None:
        embedding = model.time_embedding
        features = guidance_features(scales - 1, net.guidance_embed_dim)[0]
        projected = embedding.cond_proj.weight.double() @ features.to(
            embedding.cond_proj.weight.device
        )
        _add_to_bias(embedding.linear_1, embedding.linear_1.weight.double() @ projected)
        embedding.cond_proj = None
        model.register_to_config(time_cond_proj_dim=None)
    else:
        added = copy.deepcopy(net.guidance).double()(scales.to(net.guidance.enter.weight.device))[0]
        for embedding in fixed.time_embeddings():
            last = [module for module in embedding.modules() if isinstance(module, nn.Linear)][-1]
            _add_to_bias(last, added)
    return fixed.train(net.training)


def _add_to_bias(linear: nn.Linear, value: Tensor) -> None:
    linear.bias.copy_(linear.bias.double() + value)
