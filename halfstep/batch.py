"""What a network is conditioned on, and a batch of training data."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from halfstep.errors import ConfigError

T = TypeVar("T", bound="Cond | Batch")
OURS = ("label", "encoder_hidden_states", "guidance_scale")
"""The conditions that halfstep itself gives; those of a subclass are its user's own."""


def batches(rows: range, size: int) -> list[range]:
    """The rows, so many at a time."""
    return [rows[low : low + size] for low in range(0, len(rows), size)]


@dataclass(frozen=True)
class Cond:
    """Whatever conditions the network, one row a sample; `None` where it is absent.

    label     int64 [B]              class; -1 is none (of a classifier's data alone)
    encoder_hidden_states  float [B, tokens, D]  text states
    guidance  float [B]              guidance scale, 1 is off

    A subclass may have tensors of its own, one row a sample, which are cut, joined, moved and left out
    with the rest; a number, a truth value or a text of its own is the same for all samples.  Where nothing
    is said, as in the unconditional branch of guidance, its tensor is zeros, which is what diffusers takes
    for pooled text, unless the field names another value, of one row's shape, or None if it stays:

        @dataclass(frozen=True)
        class Mine(Cond):
            pooled: Tensor | None = None
            mask: Tensor | None = field(default=None, metadata={"null": True})
            size: Tensor | None = field(default=None, metadata={"null": None})
    """

    label: Tensor | None = None
    encoder_hidden_states: Tensor | None = None
    guidance_scale: Tensor | None = None

    def __getitem__(self, rows: slice) -> Self:
        """These samples' rows."""
        _refuse_other_rows(self)
        return _each(self, lambda value: value[rows])

    def to(self, device: torch.device | str) -> Self:
        return _each(self, lambda value: value.to(device))

    def can_drop(self, unconditional: "int | Tensor") -> bool:
        """Whether there is anything for `dropped(unconditional)` to leave out."""
        return self._said(unconditional) is not None or bool(self._own())

    def dropped(self, unconditional: "int | Tensor", where: Tensor | None = None) -> Self:
        """The same with nothing said: the null label for labels, the empty text's states for texts.

        nothing  the null label, or float [tokens, D]
        where    bool [B]: of these samples alone
        """
        name, said = (
            ("encoder_hidden_states" if isinstance(unconditional, Tensor) else "label"),
            self._said(unconditional),
        )
        if not self.can_drop(unconditional):
            raise ConfigError(f"there is no {name} to leave out: give cond=Cond({name}=...)")
        nulls: dict[str, Any] = (
            self._own() if said is None else {**self._own(), name: unconditional}
        )
        changed = {name: _left_out(self, name, null, where) for name, null in nulls.items()}
        return _with(self, changed)

    def cat(self, other: "Cond") -> Self:
        """self's rows, then other's.  Both must have the same fields."""
        names = dict.fromkeys([*_given(self), *_given(other)])
        return _with(self, {name: _joined(name, self, other) for name in names})

    def _said(self, unconditional: "int | Tensor") -> Tensor | None:
        """What `nothing` would replace: labels if it is a label, texts if it is a text's states."""
        return self.encoder_hidden_states if isinstance(unconditional, Tensor) else self.label

    def _own(self) -> dict[str, Any]:
        """What stands for nothing in each tensor of a subclass that is given, and does not stay."""
        nulls = {f.name: f.metadata.get("null", 0) for f in fields(self) if f.name not in OURS}
        held = {name for name, value in _given(self).items() if isinstance(value, Tensor)}
        return {name: null for name, null in nulls.items() if name in held and null is not None}


@dataclass(frozen=True)
class Batch:
    """Clean data, one row a sample.

    x0     float [B, ...], images in [-1, 1]
    cond   its labels or texts, or None; a label of -1 is "no label"
    ids    int64 [B]: rows of the data set, or None where nobody says
    views  int64 [B]: which view of its sample a row is, 0 as it lies; None: a fresh draw that nobody can
           name, so that nothing computed from it may be kept
    """

    x0: Tensor
    cond: Cond | None = None
    ids: Tensor | None = None
    views: Tensor | None = None

    def __getitem__(self, rows: slice) -> Self:
        return _each(self, lambda value: value[rows])

    def to(self, device: torch.device | str) -> Self:
        return _each(self, lambda value: value.to(device))


def _given(held: "Cond | Batch") -> dict[str, Any]:
    """The fields that are not None; refuses those of which nobody knows whether they have rows."""
    values = {f.name: getattr(held, f.name) for f in fields(held)}
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        rows = Tensor if isinstance(held, Cond) else Tensor | Cond
        if not isinstance(value, rows | bool | int | float | str):
            raise ConfigError(
                f"{name} of a {type(held).__name__} is a {type(value).__name__}, of which nobody knows "
                "whether it has a row a sample: give a tensor, or a number or a text for all samples"
            )
    return given


def _each(held: T, change: Callable[[Any], Any]) -> T:
    """The same with its tensors, and a batch's condition, changed."""
    given = _given(held).items()
    return _with(held, {k: change(v) for k, v in given if isinstance(v, Tensor | Cond)})


def _with(held: T, changed: dict[str, Any]) -> T:
    """A copy with these fields: of a subclass, too, whatever its constructor takes."""
    new = copy.copy(held)
    for name, value in changed.items():
        object.__setattr__(new, name, value)
    return new


def _refuse_other_rows(cond: Cond) -> None:
    """`ConfigError` unless all tensors have as many rows."""
    first: tuple[str, Tensor] | None = None
    for name, value in _given(cond).items():
        if not isinstance(value, Tensor):
            continue
        first = first or (name, value)
        if not value.ndim or len(value) != len(first[1]):
            raise ConfigError(
                f"{name} of a {type(cond).__name__} has shape {list(value.shape)} and {first[0]} "
                f"{list(first[1].shape)}: give each one row a sample"
            )


def _left_out(cond: Cond, name: str, null: Any, where: Tensor | None) -> Tensor:
    """A field with `null` in the place of its values."""
    said: Tensor = getattr(cond, name)
    try:
        value = torch.as_tensor(null).to(said).expand_as(said)
    except RuntimeError:
        raise ConfigError(
            f"what stands for no {name} has shape {list(torch.as_tensor(null).shape)}, and a sample's "
            f"{name} {list(said.shape[1:])}: give a number, or that shape"
        ) from None
    if where is None:
        return value
    rows = where.to(said.device).reshape(-1, *[1] * (said.ndim - 1))
    return torch.where(rows, value, said)


def _joined(name: str, one: Cond, other: Cond) -> Any:
    """A field of one, then of the other."""
    mine, theirs = getattr(one, name, None), getattr(other, name, None)
    if mine is None or theirs is None:
        raise ConfigError(f"one of two conditions has no {name}: give it to both or neither")
    if isinstance(mine, Tensor) and isinstance(theirs, Tensor):
        if not mine.ndim or mine.shape[1:] != theirs.shape[1:]:
            raise ConfigError(
                f"{name} of two conditions has the shapes {list(mine.shape)} and {list(theirs.shape)}: "
                "give both rows of one shape"
            )
        return torch.cat([mine, theirs])
    if type(mine) is not type(theirs) or mine != theirs:
        raise ConfigError(
            f"two conditions differ in {name}, which is one for all samples: join those that agree in it"
        )
    return mine
