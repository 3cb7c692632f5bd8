"""Conditions of captions in files: of each caption a row of bytes, which holds all its tensors in order."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypedDict

import torch
from torch import Tensor

from halfstep.batch import Cond, null_values
from halfstep.data.latents.shards import Shards
from halfstep.errors import ConfigError

STATES = "encoder_hidden_states"
Exact = Literal["bool", "uint8", "int8", "int16", "int32", "int64"]
Floating = Literal["float16", "bfloat16", "float32", "float64"]


class TensorFormat(TypedDict):
    """A tensor of one caption: floats are stored as float16, others as they are.

    dtype  as the text encoder returns it, and as it is read back
    """

    shape: list[int]
    dtype: Exact | Floating


Formats = Mapping[str, TensorFormat]
"""The tensors of a caption's condition by name, in the order of their bytes."""


def formats_of(cond: Cond) -> dict[str, TensorFormat]:
    """The formats of a condition's tensors, by their names in order."""
    formats: dict[str, TensorFormat] = {}
    for name, value in sorted(null_values(cond).items()):
        if value.is_complex() or value.is_quantized:
            raise ConfigError(f"{name} of a text is {value.dtype}: give floats, integers or bools")
        dtype = str(value.dtype).removeprefix("torch.")
        formats[name] = {"shape": list(value.shape[1:]), "dtype": dtype}  # type: ignore[typeddict-item]
    return formats


def bytes_of(formats: Formats) -> int:
    """The number of bytes of a row."""
    return sum(_size(each) for each in formats.values())


def packed(cond: Cond, formats: Formats) -> Tensor:
    """The condition as rows of bytes, uint8 [B, bytes], on the CPU.

    `ConfigError` for tensors of other formats, and for values that are nan or too large for the file.
    """
    if (actual := formats_of(cond)) != dict(formats):
        raise ConfigError(
            f"the text encoder returns tensors of other shapes for some texts ({actual}, and {dict(formats)} "
            "for the empty one): pad texts to one length"
        )
    parts, values = [], null_values(cond)
    for name, each in formats.items():
        stored = values[name].detach().to(_stored(each)).cpu().contiguous()
        if not stored.isfinite().all():
            what = "states" if name == STATES else name
            raise ConfigError(
                f"some {what} of a text are nan or too large for float16: name another --text"
            )
        parts.append(stored.reshape(len(stored), -1).view(torch.uint8))
    return torch.cat(parts, dim=1)


def unpacked(rows: Tensor, formats: Formats) -> dict[str, Tensor]:
    """The tensors by name of rows of bytes, uint8 [B, bytes], in the dtypes of the text encoder."""
    tensors, start = dict[str, Tensor](), 0
    for name, each in formats.items():
        part = rows[:, start : start + _size(each)]
        part = part.clone(memory_format=torch.contiguous_format)  # aligned for its dtype
        value = part.view(_stored(each)).view(len(rows), *each["shape"])
        tensors[name] = value.to(getattr(torch, each["dtype"]))
        start += _size(each)
    return tensors


def as_cond(tensors: Mapping[str, Tensor]) -> Cond:
    """A condition of these states and named tensors."""
    added = {name: value for name, value in tensors.items() if name != STATES}
    return Cond(encoder_hidden_states=tensors.get(STATES), added=added)


@dataclass(frozen=True, eq=False)
class Contexts:
    """Conditions of captions, several per image.

    captions  of all captions a row of bytes, uint8 [captions, bytes]
    formats   of the tensors in a row
    offsets   int64 [N + 1]: image n has the captions from offsets[n] to offsets[n + 1]
    null      the condition of the empty text, one row; tensors that it lacks are not read
    """

    captions: Shards
    formats: Formats
    offsets: Tensor
    null: Cond

    @classmethod
    def of(cls, captions: Cond, offsets: Tensor, null: Cond) -> "Contexts":
        """Contexts in memory of these conditions, one row a caption."""
        formats = formats_of(null)
        return cls(Shards((packed(captions, formats),)), formats, offsets, null)

    def rows(self, rows: Tensor, chance: Tensor | None = None) -> Cond:
        """The condition of one caption of each image: the first, or a random one.

        chance  [B] in [0, 1): chooses among the image's captions
        """
        rows = rows.to(self.offsets.device)
        first = self.offsets[rows]
        if chance is not None:
            count = self.offsets[rows + 1] - first
            first = first + (chance.to(first.device) * count).long()
        tensors = unpacked(self.captions.rows(first), self.formats)
        return as_cond({name: tensors[name] for name in null_values(self.null)})

    def only(self, names: set[str]) -> "Contexts":
        """The same without the tensors of other names."""
        null = null_values(self.null)
        kept = {name: value for name, value in null.items() if name in names}
        return self if len(kept) == len(null) else replace(self, null=as_cond(kept))

    def to(self, device: torch.device | str) -> "Contexts":
        return replace(
            self,
            captions=self.captions.to(device),
            offsets=self.offsets.to(device),
            null=self.null.to(device),
        )


def _stored(each: TensorFormat) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, each["dtype"])
    return torch.float16 if dtype.is_floating_point else dtype


def _size(each: TensorFormat) -> int:
    return math.prod(each["shape"]) * _stored(each).itemsize
