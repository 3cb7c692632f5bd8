"""Refuse impossible sizes of a network before it is built."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import nn

from halfstep.capacity import refuse_too_large
from halfstep.config import NetConfig
from halfstep.config.validate import is_valid, numbers, shown
from halfstep.errors import ConfigError, HalfstepError, unknown

N = TypeVar("N", bound=nn.Module)
MAY_BE_ZERO = frozenset(
    {
        "guidance_embed_dim",
        "output_heads",
        "t_end_embed_dim",
        "outputs",
        "freq_shift",
        "downsample_padding",
        "qk_scale",
        "dual_attention_layers",
        "num_single_layers",
        "inputs",
        "encoder_layers_per_block",
        "decoder_layers_per_block",
        "latent_shift",
    }
)
"""Whole numbers that are not sizes, like all options with `dropout` or `eps` in their names."""
LAYERS = (
    "depth", "layers_per_block", "num_layers", "transformer_layers_per_block",
    "encoder_layers_per_block", "decoder_layers_per_block", "num_res_blocks",
    "num_encoder_blocks", "num_decoder_blocks",
)  # fmt: skip
MOST_LAYERS = 1_000


def build_within_limits(name: str, make: Callable[..., N], config: NetConfig) -> N:
    """Build one of halfstep's networks; any error of its config becomes a `ConfigError`.

    It is first built on the meta device, which draws nothing, to find its size.
    """
    refuse_sizes(name, config)
    try:
        with torch.device("meta"):
            size = sum(p.numel() * p.element_size() for p in make(**config).parameters())
        refuse_too_large(f"the weights of '{name}'", (size,), "choose smaller sizes", size=1)
        return make(**config)
    except HalfstepError:
        raise
    except Exception as error:  # torch, numpy and Python raise many kinds for impossible sizes
        options = ", ".join(f"{key} = {value}" for key, value in config.items())
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"'{name}' cannot be built from {options}: {reason}") from error


def refuse_sizes(name: str, config: NetConfig) -> None:
    """`ConfigError` for a number that is not finite, a size below 1, and too many layers."""
    for key, value in config.items():
        for number in numbers(value):
            if not is_valid(number, float):
                raise ConfigError(
                    f"{key} of '{name}' is a finite number, got {shown(number)}: write another"
                )
            if number <= 0 and not _is_no_size(name, key, number):
                raise ConfigError(
                    f"{key} of '{name}' is a size, and must be above 0, got {number}: write for example 4"
                )
            if key in LAYERS and number > MOST_LAYERS:
                raise ConfigError(
                    f"{key} of '{name}' is a number of layers, at most {MOST_LAYERS:,}, got {number:,}: "
                    "write fewer"
                )


def _is_no_size(name: str, key: str, number: float) -> bool:
    """Whether a number may be 0: a share, an offset, or the number of labels."""
    if name == "uvit" and key == "num_classes":
        return number >= -1
    return number == 0 and (key in MAY_BE_ZERO or "dropout" in key or "eps" in key)


def refuse_unknown(name: str, config: Iterable[str], known: Iterable[str]) -> None:
    """`ConfigError` for a config with keys that the named net does not have."""
    for key in config:
        if key not in (names := set(known)):
            raise unknown(f"option of the net '{name}' called", key, names)
