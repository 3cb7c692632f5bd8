"""Transformers of flow matching under their original names: diffusers' own reader, run backwards.

The reader takes original tensors by name and cuts, swaps and joins their rows.  Here it takes numbered rows
from a mapping that has every name, so that what it returns says where each row belongs.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from halfstep.config import NetConfig
from halfstep.errors import ConfigError
from halfstep.quiet import quietly

PREFIX = "model.diffusion_model."
ROWS = 7 * 3072
"""Rows of a numbered tensor: diffusers' reader of Flux has its width of 3072 in it, and 2 and 3 divide it."""


def sd3_hints(config: NetConfig) -> list[str]:
    """Names by which diffusers' reader counts the layers of a Stable Diffusion 3 and sees its options."""
    hints = [f"joint_blocks.{k}.x_block" for k in range(config["num_layers"])]
    hints += [f"joint_blocks.{k}.attn2.x" for k in config.get("dual_attention_layers", ())]
    return hints + ["joint_blocks.0.ln_q"] * bool(config.get("qk_norm"))


def flux_hints(config: NetConfig) -> list[str]:
    """As `sd3_hints`, of a Flux."""
    hints = [f"double_blocks.{k}.x" for k in range(config["num_layers"])]
    hints += [f"single_blocks.{k}.x" for k in range(config["num_single_layers"])]
    return hints + ["guidance_in.x"] * bool(config.get("guidance_embeds"))


READERS: Mapping[str, tuple[str, Callable[[NetConfig], list[str]]]] = {
    "SD3Transformer2DModel": ("convert_sd3_transformer_checkpoint_to_diffusers", sd3_hints),
    "FluxTransformer2DModel": ("convert_flux_transformer_checkpoint_to_diffusers", flux_hints),
}
"""diffusers' reader of each class, and the names that it must find beside those that it asks for."""


class _Numbered(dict[str, Any]):
    """A state dict with every name: each tensor that is taken has rows with numbers of their own."""

    def __init__(self, hints: list[str]):
        super().__init__(dict.fromkeys(hints))
        self.taken: list[str] = []

    def pop(self, name: str, *default: Any) -> Tensor:
        self.taken.append(name)
        first = ROWS * (len(self.taken) - 1)
        return torch.arange(first, first + ROWS)

    def __getitem__(self, name: str) -> Tensor:
        return torch.empty(ROWS, 0)  # for its shape


def original_transformer(
    state: Mapping[str, Tensor], class_name: str, config: NetConfig
) -> dict[str, Tensor]:
    """A transformer's tensors by their original names, under ComfyUI's prefix.

    state       its state dict
    class_name  a key of `READERS`
    """
    with quietly():  # imported late, as it takes seconds
        from diffusers.loaders import single_file_utils
    reader, hints = READERS[class_name]
    numbered = _Numbered(hints(config))
    rows = getattr(single_file_utils, reader)(numbered)
    if missing := state.keys() ^ rows.keys():
        raise ConfigError(
            f"diffusers' reader of a {class_name}'s single file does not know '{min(missing)}': write "
            "format='diffusers'"
        )
    pieces: dict[str, dict[int, Tensor]] = {name: {} for name in numbered.taken}
    for name, numbers in rows.items():
        for first, part in _runs(numbers, state[name]):
            pieces[numbered.taken[first // ROWS]][first % ROWS] = part
    return {
        PREFIX + name: torch.cat([parts[first] for first in sorted(parts)])
        for name, parts in pieces.items()
    }


def _runs(numbers: Tensor, value: Tensor) -> list[tuple[int, Tensor]]:
    """The first number of each run of rows, and the rows of `value` in the same share of it."""
    cuts = [0, *(torch.nonzero(numbers.diff() != 1)[:, 0] + 1).tolist(), len(numbers)]
    ends = [cut * len(value) // len(numbers) for cut in cuts]
    return [(int(numbers[cuts[k]]), value[ends[k] : ends[k + 1]]) for k in range(len(cuts) - 1)]
