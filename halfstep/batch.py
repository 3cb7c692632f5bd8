"""What a network is conditioned on, and a batch of training data."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from halfstep.errors import ConfigError

T = TypeVar("T", bound="Cond | Batch")
Values = dict[str, Any]
"""Values of a dataclass's fields, by name."""
BUILT_IN = ("label", "encoder_hidden_states", "guidance_scale", "heads", "t_end")
"""The fields that halfstep itself gives; a user's subclass may have others."""
KEPT = ("guidance_scale", "heads", "t_end")
"""Those that say how a network is asked and not what for: guidance keeps them."""


def batches(rows: range, size: int) -> list[range]:
    """The rows, split into batches of this size."""
    return [rows[low : low + size] for low in range(0, len(rows), size)]


@dataclass(frozen=True)
class Cond:
    """The conditions of a network, one row a sample; `None` where absent.

    Tensors of `added` are sliced, joined and moved with the rest. In the unconditional branch of guidance
    those that the null condition names are replaced by its values, and the others stay.

    A subclass may add tensors, one row a sample: they are sliced, joined, moved and dropped with the
    rest. It may also add a number, a bool or a text that is the same for all samples. In the
    unconditional branch of guidance an added tensor becomes zeros, as diffusers does with pooled text,
    unless its field names another value of one row's shape, or None to keep it::

        @dataclass(frozen=True)
        class Mine(Cond):
            pooled: Tensor | None = None
            mask: Tensor | None = field(default=None, metadata={"null": True})
            size: Tensor | None = field(default=None, metadata={"null": None})

    Args:
        label: int64 [B], the class; -1 is none (a classifier's data only).
        encoder_hidden_states: float [B, tokens, D], text states.
        guidance_scale: float [B]; 1 is off.
        added: other tensors [B, ...] by name, as a network of diffusers reads them: pooled_projections,
            time_ids, encoder_attention_mask, ...
        heads: float [B, N], the weights of a network's N heads in its output; or [B, M, N] for M outputs
            [M B, ...], the first of all samples first.
        t_end: float64 [B] in [0, 1], the time where a step ends, for a network that is told it (a flow map).
            `Denoiser` turns it into the network's time, as it does t.

    Raises:
        ConfigError: tensors with different numbers of rows, or a name in `added` that is a field.
    """

    label: Tensor | None = None
    encoder_hidden_states: Tensor | None = None
    guidance_scale: Tensor | None = None
    added: Mapping[str, Tensor] = field(default_factory=dict)
    heads: Tensor | None = None
    t_end: Tensor | None = None

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """The conditions of these samples: a slice, or int64 [n]."""
        _refuse_other_rows(self)
        return _each(self, lambda value: value[rows])

    def to(self, device: torch.device | str) -> Self:
        """The conditions on a device; tensors that are there are not copied.

        Args:
            device: a torch device, or its name.
        """
        return _each(self, lambda value: value.to(device))

    def named(self) -> dict[str, Tensor]:
        """Its tensors [B, ...] by name, those of `added` and of a subclass too."""
        return {name: v for name, v in _values(self).items() if isinstance(v, Tensor)}

    def can_drop(self, unconditional: "Null") -> bool:
        """Whether `dropped(unconditional)` would change anything.

        Args:
            unconditional: a null condition as of `dropped`: int, float [tokens, D], or a `Cond`.
        """
        return bool(self._nulls(unconditional))

    def dropped(self, unconditional: "Null", where: Tensor | None = None) -> Self:
        """A copy without conditions: labels become the null label, text states those of the empty text.

        Args:
            unconditional: the null label; the empty text's states, float [tokens, D]; or a condition with
                the null values of all its tensors, in one row, or one row a sample.
            where: bool [B], only these samples are dropped; None drops all.

        Raises:
            ConfigError: there is nothing to drop, or a null value has another shape than the samples'
                values.
        """
        nulls = self._nulls(unconditional)
        if not nulls:
            names = " or ".join(null_values(unconditional))
            raise ConfigError(f"there is no {names} to leave out: give cond=Cond({names}=...)")
        return _with(self, {name: _nulled(self, name, null, where) for name, null in nulls.items()})

    def cat(self, other: "Cond") -> Self:
        """self's rows, then other's.

        Args:
            other: conditions with the same fields.

        Raises:
            ConfigError: only one of the two has a field, or their shapes differ.
        """
        names = dict.fromkeys([*_values(self), *_values(other)])
        return _with(self, {name: _joined(name, self, other) for name in names})

    def _nulls(self, unconditional: "Null") -> Values:
        """The null value of each tensor that is dropped: a row, or one row a sample."""
        nulls = {f.name: f.metadata.get("null", 0) for f in fields(self) if f.name not in NAMED}
        nulls |= null_values(unconditional)
        tensors = self.named()
        return {name: null for name, null in nulls.items() if name in tensors and null is not None}


NAMED = (*BUILT_IN, "added")
Null = int | Tensor | Cond
"""A null condition: a label, the empty text's states [tokens, D], or a `Cond` of one row or one a sample."""


def null_values(null: Null) -> Values:
    """The values of a null condition, by the names of `Cond`."""
    if isinstance(null, Cond):
        values = _values(null)
        return {k: value for k, value in values.items() if k not in KEPT}
    return {"encoder_hidden_states" if isinstance(null, Tensor) else "label": null}


def null_rows(null: Null, rows: slice) -> Null:
    """The null condition of these samples, if it has one row a sample."""
    if not isinstance(null, Cond):
        return null
    tensors = list(null.named().values())
    return null if not tensors or len(tensors[0]) == 1 else null[rows]


def completed(cond: Cond | None, defaults: Cond | None, rows: int) -> Cond | None:
    """The conditions of these samples; those that they lack are of `defaults`, in one row."""
    if defaults is None:
        return cond
    cond = cond or Cond()
    named = cond.named()
    missing = {
        k: v.expand(rows, *v.shape[1:]) for k, v in defaults.named().items() if k not in named
    }
    return _with(cond, missing)


@dataclass(frozen=True)
class Batch:
    """Clean data, one row a sample.

    Args:
        x0: float [B, ...], images in [-1, 1].
        cond: labels or texts, or None; a label of -1 is "no label".
        ids: int64 [B], rows of the data set; None if unknown.
        views: int64 [B], the view of its sample that each row is, 0 unchanged; None for fresh random
            views, from which nothing may be cached.

    Raises:
        ConfigError: conditions with another number of rows than x0 are sliced.
    """

    x0: Tensor
    cond: Cond | None = None
    ids: Tensor | None = None
    views: Tensor | None = None

    def __getitem__(self, rows: slice) -> Self:
        return _each(self, lambda value: value[rows])

    def to(self, device: torch.device | str) -> Self:
        """The batch on a device; tensors that are there are not copied.

        Args:
            device: a torch device, or its name.
        """
        return _each(self, lambda value: value.to(device))


def _values(item: "Cond | Batch") -> Values:
    """The fields that are not None; refuses types that may or may not have rows."""
    values = {f.name: getattr(item, f.name) for f in fields(item) if f.name != "added"}
    added = item.added if isinstance(item, Cond) else {}
    if twice := values.keys() & added.keys():
        name = min(twice)
        raise ConfigError(
            f"{name} is a field of its own: give {name}=..., not added={{'{name}': ...}}"
        )
    values |= added
    values = {name: value for name, value in values.items() if value is not None}
    for name, value in values.items():
        rows = Tensor if isinstance(item, Cond) else Tensor | Cond
        if not isinstance(value, Tensor if name in added else rows | bool | int | float | str):
            raise ConfigError(
                f"{name} of a {type(item).__name__} is a {type(value).__name__}, which may or may not have "
                "a row a sample: give a tensor, or a number or a text for all samples"
            )
    return values


def _each(item: T, change: Callable[[Any], Any]) -> T:
    """A copy with its tensors, and a batch's condition, changed."""
    values = _values(item).items()
    return _with(item, {k: change(v) for k, v in values if isinstance(v, Tensor | Cond)})


def _with(item: T, changed: Values) -> T:
    """A copy with these fields and added tensors, of the same subclass, without its constructor."""
    new, names = copy.copy(item), {f.name for f in fields(item)}
    if added := {name: value for name, value in changed.items() if name not in names}:
        object.__setattr__(new, "added", {**item.added, **added})  # type: ignore[union-attr]
    for name in changed.keys() & names:
        object.__setattr__(new, name, changed[name])
    return new


def _refuse_other_rows(cond: Cond) -> None:
    """`ConfigError` unless all tensors have as many rows."""
    first: tuple[str, Tensor] | None = None
    for name, value in _values(cond).items():
        if not isinstance(value, Tensor):
            continue
        first = first or (name, value)
        if not value.ndim or len(value) != len(first[1]):
            raise ConfigError(
                f"{name} of a {type(cond).__name__} has shape {list(value.shape)} and {first[0]} "
                f"{list(first[1].shape)}: give each one row a sample"
            )


def _nulled(cond: Cond, name: str, null: Any, where: Tensor | None) -> Tensor:
    """A field with `null` in place of its values."""
    values: Tensor = _values(cond)[name]
    try:
        nulls = torch.as_tensor(null).to(values).expand_as(values)
    except RuntimeError:
        raise ConfigError(
            f"the null value of {name} has shape {list(torch.as_tensor(null).shape)}, and a sample's "
            f"{name} {list(values.shape[1:])}: give a number, or that shape"
        ) from None
    if where is None:
        return nulls
    rows = where.to(values.device).reshape(-1, *[1] * (values.ndim - 1))
    return torch.where(rows, nulls, values)


def _joined(name: str, first: Cond, second: Cond) -> Any:
    """A field of the first condition, then of the second."""
    a, b = _values(first).get(name), _values(second).get(name)
    if a is None or b is None:
        raise ConfigError(f"one of two conditions has no {name}: give it to both or neither")
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if not a.ndim or a.shape[1:] != b.shape[1:]:
            raise ConfigError(
                f"{name} of two conditions has the shapes {list(a.shape)} and {list(b.shape)}: "
                "give both rows of one shape"
            )
        return torch.cat([a, b])
    if type(a) is not type(b) or a != b:
        raise ConfigError(
            f"two conditions differ in {name}, which is one value for all samples: join conditions that "
            "agree in it"
        )
    return a
