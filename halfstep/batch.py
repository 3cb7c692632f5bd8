"""What a network is conditioned on, and a batch of training data."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from halfstep.errors import ConfigError


@dataclass(frozen=True)
class Cond:
    """Whatever conditions the network, one row a sample; `None` where it is absent.

    label     int64 [B]              class; -1 is none (of a classifier's data alone)
    context   float [B, tokens, D]   text states
    guidance  float [B]              guidance scale, 1 is off
    """

    label: Tensor | None = None
    context: Tensor | None = None
    guidance: Tensor | None = None

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Cond":
        values = (getattr(self, f.name) for f in fields(self))
        return Cond(*(None if value is None else change(value) for value in values))

    def __getitem__(self, rows: slice) -> "Cond":
        """These samples' rows."""
        return self._each(lambda value: value[rows])

    def to(self, device: torch.device | str) -> "Cond":
        return self._each(lambda value: value.to(device))

    def said(self, nothing: "int | Tensor") -> Tensor | None:
        """What `nothing` would replace: labels if it is a label, texts if it is a text's states."""
        return self.context if isinstance(nothing, Tensor) else self.label

    def without(self, nothing: "int | Tensor", where: Tensor | None = None) -> "Cond":
        """The same with nothing said: the null label for labels, the empty text's states for texts.

        nothing  the null label, or float [tokens, D]
        where    bool [B]: of these samples alone
        """
        name, said = ("context" if isinstance(nothing, Tensor) else "label"), self.said(nothing)
        if said is None:
            raise ConfigError(f"there is no {name} to leave out: give cond=Cond({name}=...)")
        null = torch.as_tensor(nothing).to(said).expand_as(said)
        if where is not None:
            rows = where.to(said.device).reshape(-1, *[1] * (said.ndim - 1))
            null = torch.where(rows, null, said)
        return replace(self, **{name: null})

    def cat(self, other: "Cond") -> "Cond":
        """self's rows, then other's.  Both must have the same fields."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        for name, mine, theirs in pairs:
            if (mine is None) != (theirs is None):
                raise ConfigError(
                    f"one of two conditions has no {name}: give it to both or neither"
                )
        return Cond(*(None if a is None else torch.cat([a, b]) for _, a, b in pairs))


@dataclass(frozen=True)
class Batch:
    """Clean data, one row a sample.

    x0     float [B, ...], in [-1, 1]
    cond   its labels or texts, or None; a label of -1 is "no label"
    ids    int64 [B]: rows of the data set, or None where nobody says
    views  int64 [B]: which view of its sample a row is, 0 as it lies; None: a fresh draw that nobody can
           name, so that nothing computed from it may be kept
    """

    x0: Tensor
    cond: Cond | None = None
    ids: Tensor | None = None
    views: Tensor | None = None

    def _each(self, change: Callable[[Any], Any]) -> "Batch":
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: change(v) for k, v in given.items() if v is not None})

    def __getitem__(self, rows: slice) -> "Batch":
        return self._each(lambda value: value[rows])

    def to(self, device: torch.device | str) -> "Batch":
        return self._each(lambda value: value.to(device))
