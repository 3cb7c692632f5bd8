"""Validate the configuration of a U-ViT."""

from halfstep.config.validate import is_valid
from halfstep.errors import ConfigError


def refuse_sides(
    height: int, width: int, patch: int, embed_dim: int, depth: int, heads: int
) -> None:
    """`ConfigError` for patches, depths and heads that do not divide evenly."""
    sizes = {"patch_size": patch, "embed_dim": embed_dim, "depth": depth, "num_heads": heads}
    for name, value in {"img_size": height, **sizes}.items():
        if not is_valid(value, int) or value < 1:
            raise ConfigError(
                f"{name} is a whole number from 1, got {value!r}: write for example 4"
            )
    if height % patch or width % patch:
        side = max(round(height / patch), 1) * patch
        raise ConfigError(
            f"img_size {height} x {width} cannot be cut into patches of {patch} x {patch}: add "
            f"--size {side}, or choose a patch_size that divides it (--net-config patch_size "
            f"{_divisor(height, width, patch)})"
        )
    if depth % 2:
        raise ConfigError(
            f"depth {depth} is odd, and a U-ViT has as many blocks before its middle block as "
            f"after it: write depth={depth - 1} ({depth} blocks in all) or depth={depth + 1} "
            f"({depth + 2} blocks)"
        )
    if embed_dim % heads:
        raise ConfigError(
            f"embed_dim {embed_dim} cannot be split among {heads} heads: choose num_heads that "
            "divides it"
        )


def _divisor(height: int, width: int, patch: int) -> int:
    """The largest patch that divides both sides and is smaller."""
    return next(p for p in range(min(patch, height, width), 0, -1) if not (height % p or width % p))


def refuse_conditions(num_classes: int, clip_dim: int | None, num_clip_token: int) -> None:
    """`ConfigError` for texts and labels together, and for text states of size 0."""
    if clip_dim is not None and num_classes > 0:
        raise ConfigError(
            f"got clip_dim={clip_dim} and num_classes={num_classes}, and a U-ViT reads texts or labels: "
            "leave one of the two out"
        )
    if clip_dim is not None and (clip_dim < 1 or num_clip_token < 1):
        raise ConfigError(
            f"clip_dim={clip_dim} and num_clip_token={num_clip_token} are the width and number of "
            "a sample's text states: write 1 or more for both"
        )
