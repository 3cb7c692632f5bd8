"""Shallower U-ViTs: remove some of the pairs of blocks of a trained network.

The long skips are a stack: in-block i passes its output to out-block n - 1 - i, where n = depth / 2.
Those two are pair i.  Removing a whole pair keeps the other skips aligned.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from halfstep.diffusion.denoiser import freeze_alike
from halfstep.errors import ConfigError
from halfstep.models import build_like, recipe


def pairs_of(net: nn.Module) -> int:
    """The number of pairs of blocks of a U-ViT, half its depth."""
    name, config = recipe(net)
    if name != "uvit":
        raise ConfigError(
            f"only a U-ViT has pairs of blocks, and this net is '{name}': say what its student is built "
            "with in student (command line: --student layers_per_block 1)"
        )
    return int(config["depth"]) // 2


def evenly_spaced(pairs: int, count: int) -> tuple[int, ...]:
    """`count` of the pairs 0 (outermost) to pairs - 1, evenly spaced, beginning with the outermost."""
    return tuple(k * pairs // count for k in range(count))


def checked_pairs(keep: Sequence[int], pairs: int) -> tuple[int, ...]:
    """The pairs in order; `ConfigError` unless they exist and differ."""
    if not keep or sorted(set(keep)) != sorted(keep) or not 0 <= min(keep) <= max(keep) < pairs:
        example = evenly_spaced(pairs, max(1, pairs // 2))
        raise ConfigError(
            f"keep names pairs of blocks, 0 (outermost) to {pairs - 1}, each once and at least one, got "
            f"{' '.join(map(str, keep)) or 'none'}: write for example keep={example}"
        )
    return tuple(sorted(keep))


def shallower(net: nn.Module, keep: Sequence[int]) -> nn.Module:
    """A copy of a U-ViT with only these of its pairs of blocks.

    In-block keep[j] becomes in-block j, and out-block n - 1 - keep[j] out-block m - 1 - j; m = len(keep).

    net   made by `build`
    keep  0 is the outermost pair, next to the image
    """
    pairs = pairs_of(net)
    keep = checked_pairs(keep, pairs)
    with torch.device("meta"):
        new = build_like(net, {**recipe(net)[1], "depth": 2 * len(keep)})
    old = net.state_dict()
    state = {key: old[_before(key, keep, pairs)].detach().clone() for key in new.state_dict()}
    new.load_state_dict(state, assign=True)
    new.model.gradient_checkpointing = net.model.gradient_checkpointing  # type: ignore[union-attr]
    new.train(net.training)
    freeze_alike(new, net, lambda key: _before(key, keep, pairs))
    return new


def _before(key: str, keep: Sequence[int], pairs: int) -> str:
    """The name in the deeper network of a tensor of the shallower one."""
    head, blocks, rest = key.partition("_blocks.")
    if not blocks:
        return key
    number, _, rest = rest.partition(".")
    j = int(number)
    side = head.rpartition(".")[2]
    old = keep[j] if side == "in" else pairs - 1 - keep[len(keep) - 1 - j]
    return f"{head}_blocks.{old}.{rest}"


def matching_blocks(keep: Sequence[int], pairs: int) -> list[int]:
    """For each block of the shallower network the block of the deeper one whose output it should match.

    Both are counted in the order they run.  It is the last block before the next kept one, so that a kept
    block goes on reading what it was trained to read.
    """
    kept = [*keep, pairs, *(2 * pairs - k for k in reversed(keep))]
    return [following - 1 for following in [*kept[1:], 2 * pairs + 1]]


def pair_scores(net: nn.Module, loss: Callable[[nn.Module], float]) -> list[float]:
    """For each pair of blocks its score: how much `loss` of the network rises without it.

    Scores are nearly additive over pairs (LAPTOP-Diff 2024), so those of the lowest are removed together.
    """
    pairs = pairs_of(net)
    if pairs < 2:
        raise ConfigError(
            f"this U-ViT has {pairs} pair of blocks, and none can be removed: make it narrower instead "
            "(command line: --student embed_dim 32)"
        )
    whole = loss(net)
    return [
        loss(shallower(net, [k for k in range(pairs) if k != removed])) - whole
        for removed in range(pairs)
    ]


def best_pairs(scores: Sequence[float], count: int) -> tuple[int, ...]:
    """The `count` pairs of the highest scores, the outermost first."""
    best = sorted(range(len(scores)), key=lambda k: -scores[k])[:count]
    return tuple(sorted(best))
