"""The default network of a teacher, from the shape and number of its data, and the learning rate for it.

docs/how-to/own-data.md has the table.
"""

from collections.abc import Sequence
from math import gcd

from torch import nn

from halfstep.config import JsonObject
from halfstep.config.validate import Count, is_valid
from halfstep.errors import ConfigError
from halfstep.models import recipe

WIDTHS = {64: (4, 4), 128: (6, 4), 256: (8, 4), 512: (12, 8), 768: (12, 12)}
"""Widths of the U-ViT with depth and heads; 512 is the U-ViT-S of Bao et al. (2023)."""
ENOUGH = {64: 2_000, 128: 20_000, 256: 200_000}
"""For a width the number of samples from which on it is too small."""
TOKENS = 256
"""The most patches of an image, as in Bao et al. (2023)."""
MOST_TOKENS = 1024
"""Patches beyond which no default network is offered."""
RATE, RATES = 0.064, (2e-4, 1e-3)
"""A learning rate times the width; the rate of U-ViT-S (Bao et al. 2023), and the one of the digits."""


def completed(config: JsonObject, shape: Sequence[int], n: int) -> JsonObject:
    """A U-ViT's config with the sizes that it leaves out: depth and heads follow from its width.

    Values that are no sizes are left to the network, which refuses them.
    """
    if len(shape) != 3 or {"patch_size", "embed_dim", "depth", "num_heads"} <= config.keys():
        return config
    patch = config["patch_size"] if "patch_size" in config else patch_size(shape[1], shape[2])
    values = shape[0] * patch**2 if is_valid(patch, Count) else 1
    width = config["embed_dim"] if "embed_dim" in config else _width(n, values)
    nearest, whole = min(WIDTHS), width if is_valid(width, Count) else 1
    for known in WIDTHS:
        nearest = known if known <= whole else nearest
    depth, most = WIDTHS[nearest]
    heads = next(count for count in range(most, 0, -1) if whole % count == 0)
    sizes = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads}
    return {**sizes, **config}


def patch_size(height: int, width: int) -> int:
    """The smallest patch from 2 on that divides both sides and leaves at most 256 patches, at least 16.

    Where there is no such patch, the smallest that divides them and leaves at most 1,024.
    """
    side = gcd(height, width)
    divisors = [p for p in range(1, side + 1) if side % p == 0]
    patches = {p: (height // p) * (width // p) for p in divisors}
    fitting = [p for p in divisors if p > 1 and 16 <= patches[p] <= TOKENS]
    for p in fitting or divisors:
        if patches[p] <= MOST_TOKENS and (fitting or patches[p] >= 16 or p == 1):
            return p
    size = max(16, (min(height, width) + 8) // 16 * 16)
    raise ConfigError(
        f"images of {height} x {width} have no patch that divides them into 16 to {MOST_TOKENS:,}: add "
        f"--size {size}, or name one (--net-config patch_size {side})"
    )


def _width(n: int, values: int) -> int:
    """The width for n samples, but wide enough to hold the values of a patch."""
    by_number = next((width for width, most in ENOUGH.items() if n < most), 512)
    return next((width for width in WIDTHS if width >= max(by_number, values)), max(WIDTHS))


def default_learning_rate(net: nn.Module) -> float:
    """0.064 / width of a U-ViT, from 2e-4 to 1e-3; 3e-4 for any other network.

    AdamW's best rate falls as 1 / width (Yang et al. 2021, "Tensor Programs V", table 3).
    """
    name, config = recipe(net)
    if name != "uvit":
        return 3e-4
    least, most = RATES
    width: int = config.get("embed_dim", 768)
    return min(max(RATE / width, least), most)
