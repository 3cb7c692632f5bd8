"""Make a network that takes its guidance scale as an input from one that does not."""

from torch import nn

from halfstep.diffusion.denoiser import freeze_alike
from halfstep.errors import ConfigError
from halfstep.models import build_like, recipe
from halfstep.models.guidance_embedding import check_features
from halfstep.models.lora import LoraNet
from halfstep.rng import fork_rng


def with_guidance(net: nn.Module, *, width: int = 256, seed: int = 0) -> nn.Module:
    """A copy of a conditional network that also reads `Cond.guidance_scale` (Meng et al. 2023, section 3.1).

    Its outputs are the network's to the bit at any scale, float [B], as the new layers end in zeros. It
    is what `build` makes from the config with `guidance_embed_dim`, so that it can be saved.

    Args:
        net: made by `build`; your own function takes an argument `guidance_embed_dim`, the number of
            features. A LoRA is returned itself: it holds one scale.
        width: number of Fourier features of w = scale - 1: even.
        seed: of the new weights.

    Raises:
        ConfigError: a network that takes a scale already, was not made by `build`, or cannot be extended.
    """
    check_features(width)
    if isinstance(net, LoraNet):  # it is trained at one scale, and has no input for another
        net.holds_scale = True
        return net
    return extended(net, "guidance_embed_dim", width, "takes its guidance scale as an input", seed)


def extended(net: nn.Module, option: str, width: int, already: str, seed: int) -> nn.Module:
    """A copy of a network with the layers that this option of its config adds, and its weights elsewhere.

    already  what the network does that has the option, for an error
    """
    name, config = recipe(net)
    if config.get(option):
        raise ConfigError(f"this network {already} already: give the one it was made from")
    weight = next(iter(net.parameters()))
    with fork_rng(seed):
        new = build_like(net, {**config, option: width}).to(weight.device, weight.dtype)
    missing, unexpected = new.load_state_dict(net.state_dict(), strict=False)
    if unexpected or not missing:
        raise ConfigError(
            f"the net '{name}' with {option}={width} does not extend itself: its weights "
            f"{'lack ' + unexpected[0] if unexpected else 'are the same'}; let its argument {option} add "
            "layers"
        )
    freeze_alike(new, net)
    new.train(net.training)
    return new
