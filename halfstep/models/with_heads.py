"""Widen the last layer of a network to a bank of heads, and fuse heads into last layers again."""

from collections.abc import Callable, Mapping

import torch
from torch import nn, Tensor

from halfstep.diffusion.denoiser import freeze_alike
from halfstep.errors import ConfigError
from halfstep.models import build_like, recipe
from halfstep.models.head_bank import check_heads, HeadBank, OPTION
from halfstep.rng import fork_rng


def with_heads(net: nn.Module, heads: int) -> nn.Module:
    """A copy of a network whose last layer is a bank of heads, each a copy of that layer (Shaul et al. 2026).

    With any convex combination of heads, `Cond.heads`, its outputs are the network's to rounding. It is what
    `build` makes from the config with `output_heads`, so that it can be saved.

    Args:
        net: made by `build`; your own function takes an argument `output_heads`, which puts a `HeadBank` in
            place of its last layer.
        heads: their number, the steps of a fine grid.

    Raises:
        ConfigError: a network that has a bank already, was not made by `build`, or cannot be extended.
    """
    check_heads(heads)
    if recipe(net)[1].get(OPTION):
        raise ConfigError(
            "this network has a bank of heads already: give the teacher that it was distilled from"
        )
    state = net.state_dict()
    return _built(net, heads, lambda name, new: _widened(state, name, new, heads))


def fused_heads(net: nn.Module, weights: Tensor) -> nn.Module:
    """A copy of a network with a bank of heads whose heads are combined into fewer, exactly.

    Each new head is W = sum_k w_k W_k of weights and biases, summed in float64. With one it is a plain last
    layer: the copy is a network as its teacher was.

    Args:
        net: a network with a bank of heads.
        weights: float [M, N], the convex combination of the N heads for each of M new ones.

    Raises:
        ConfigError: a network without a bank, or weights of another shape.
    """
    heads = recipe(net)[1].get(OPTION, 0)
    if not heads or weights.ndim != 2 or weights.shape[1] != heads:
        raise ConfigError(
            f"this network has {heads or 'no'} heads and would be fused by weights of shape "
            f"{list(weights.shape)}: give [M, {heads or 'N'}] of a network with a bank of heads"
        )
    state, bank = net.state_dict(), _bank_names(net)
    combined = len(weights) if len(weights) > 1 else 0

    def fused(name: str, new: Tensor) -> Tensor:
        value: Tensor = state[name]
        if name not in bank:
            return value
        wide: Tensor = weights.to(value.device, torch.float64) @ value.double().flatten(1)
        return wide.to(value.dtype).reshape(new.shape)

    return _built(net, combined, fused)


def _built(net: nn.Module, heads: int, value_of: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A network of the same recipe with this number of heads, and these values by name."""
    name, config = recipe(net)
    config = {key: value for key, value in config.items() if key != OPTION}
    weight = next(iter(net.parameters()))
    with fork_rng(0):
        new = build_like(net, {**config, OPTION: heads} if heads else config)
    new = new.to(weight.device, weight.dtype)
    state = new.state_dict()
    if (heads and not _bank_names(new)) or state.keys() != net.state_dict().keys():
        raise ConfigError(
            f"the net '{name}' with {OPTION}={heads} does not extend itself: let its argument {OPTION} put a "
            "HeadBank of halfstep.models.head_bank in place of its last layer, and change nothing else"
        )
    new.load_state_dict({key: value_of(key, value) for key, value in state.items()})
    freeze_alike(new, net)
    new.train(net.training)
    return new


def _widened(state: Mapping[str, Tensor], name: str, new: Tensor, heads: int) -> Tensor:
    value = state[name]
    return value.expand_as(new) if new.shape == (heads, *value.shape) else value


def _bank_names(net: nn.Module) -> set[str]:
    """The names of the tensors of a network's bank."""
    banks = [(path, part) for path, part in net.named_modules() if isinstance(part, HeadBank)]
    return {f"{path}.{name}" for path, part in banks for name, _ in part.named_parameters()}
