"""Make a network that is told where its step ends from one that is not."""

from torch import nn

from halfstep.errors import ConfigError
from halfstep.models.end_time_embedding import check_end_features
from halfstep.models.lora import LoraNet
from halfstep.models.with_guidance import extended


def with_end_time(net: nn.Module, *, width: int = 256, seed: int = 0) -> nn.Module:
    """A copy of a network that also reads `Cond.t_end`, the time where a step ends (Frans et al. 2024).

    Its outputs are the network's to the bit at any end, as the new layers end in zeros. It is what `build`
    makes from the config with `t_end_embed_dim`, so that it can be saved; a guidance scale that the network
    takes stays an input.

    Args:
        net: made by `build`; your own function takes an argument `t_end_embed_dim`, the number of features,
            and its network has a tuple `reads` with "t_end" in it.
        width: number of sines and cosines of the time: even.
        seed: of the new weights.

    Raises:
        ConfigError: a LoRA, whose adapter has no layer for a new input; a network that reads the end already,
            was not made by `build`, or cannot be extended.
    """
    check_end_features(width)
    if isinstance(net, LoraNet):
        raise ConfigError(
            "a LoRA changes layers that its base has, and a network that is told where its step ends needs "
            "new ones: leave lora out (command line: --lora-rank)"
        )
    new = extended(net, "t_end_embed_dim", width, "is told where its step ends", seed)
    if "t_end" not in getattr(new, "reads", ()):
        raise ConfigError(
            f"the {type(new).__name__} built with t_end_embed_dim={width} does not read t_end: let its "
            "attribute reads, a tuple of names, have 't_end' (docs/how-to/own-network.md)"
        )
    return new
