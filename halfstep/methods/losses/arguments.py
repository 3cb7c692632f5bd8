"""Checks, conversion and reduction of the arguments that all losses share."""

from typing import get_args, Literal

import torch
from torch import Tensor

from halfstep.config.validate import is_valid, shown
from halfstep.errors import ConfigError, DataError

Reduction = Literal["batchmean", "none"]
NO_LABEL = -1
"""The label of a row that has none."""


def full(x: Tensor) -> Tensor:
    """`x` in float32, also under autocast; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def both(name: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype of at least float32, the teacher's without a gradient; ConfigError for integers."""
    for who, x in (("student", student), ("teacher", teacher)):
        if not x.is_floating_point():
            raise ConfigError(f"the {who}'s {name} are {_kind(x)}: give them as floating point")
    dtype = torch.promote_types(full(student).dtype, full(teacher).dtype)
    return student.to(dtype), teacher.detach().to(dtype)


def logits(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, C] of both, converted by `both`; ConfigError unless their shapes agree."""
    if student.shape != teacher.shape:
        raise ConfigError(
            f"the student's logits are {_shape(student)} and the teacher's {_shape(teacher)}: "
            "give both the same rows and the same classes"
        )
    rows(student)
    return both("logits", student, teacher)


def rows(logits: Tensor) -> None:
    """ConfigError unless logits are [B, C] with at least one row and one class."""
    if logits.ndim != 2:
        raise ConfigError(
            f"logits are [B, C] and these are {_shape(logits)}: "
            "move the classes last and flatten the rest, or the loss grows with the length"
        )
    if not logits.numel():
        raise ConfigError(f"these logits are {_shape(logits)}: give at least one row and one class")


def labels_of(labels: Tensor, logits: Tensor, *, all_given: bool = False) -> Tensor:
    """Labels as int64 [B], each a class or `NO_LABEL`; DataError for any other."""
    if labels.shape != logits.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise DataError(
            f"labels are whole numbers [B] and these are {_kind(labels)} {_shape(labels)} for "
            f"{len(logits)} rows: give each row its class, or {NO_LABEL} where it has none"
        )
    low, high = (int(x) for x in torch.aminmax(labels.long()))
    classes = logits.shape[1]
    if low < NO_LABEL or high >= classes:
        raise DataError(
            f"labels run from {low} to {high} and there are {classes} classes: "
            f"give each row 0 to {classes - 1}, or {NO_LABEL} where it has no label"
        )
    if all_given and low == NO_LABEL:
        raise DataError(
            "this loss needs a label for every row, and some rows have none: "
            "label them, or use soft_targets for them"
        )
    return labels.long()


def positive(name: str, value: float) -> float:
    """`value`; ConfigError unless it is finite and above 0."""
    if not is_valid(value, float) or value <= 0:
        raise ConfigError(f"{name} is {shown(value)}: give a finite number above 0")
    return value


def weight(name: str, value: float) -> float:
    """`value`; ConfigError unless it is finite and at least 0."""
    if not is_valid(value, float) or value < 0:
        raise ConfigError(f"{name} is {shown(value)}: give a finite number, 0 or more")
    return value


def share(name: str, value: float) -> float:
    """`value`; ConfigError unless it lies in [0, 1]."""
    if not is_valid(value, float) or not 0 <= value <= 1:
        raise ConfigError(f"{name} is {shown(value)}: give a number from 0 to 1")
    return value


def reduced(values: Tensor, reduction: Reduction, *, counted: Tensor | None = None) -> Tensor:
    """The mean of [B] values, or the values; rows that are not `counted` are 0 and left out of the mean.

    Without counted rows the mean is 0.  Raises ConfigError for another reduction.
    """
    if reduction not in get_args(Reduction):
        raise ConfigError(
            f"reduction is '{reduction}': write 'batchmean', the mean over the batch, "
            "or 'none', one value per sample"
        )
    if counted is None:
        return values.mean() if reduction == "batchmean" else values
    values = torch.where(counted, values, 0)
    return values.sum() / counted.sum().clamp(min=1) if reduction == "batchmean" else values


def excluded(student: Tensor, teacher: Tensor) -> Tensor:
    """Where both exclude a class with -inf, which then counts 0; bool, of the logits' shape."""
    return student.isneginf() & teacher.isneginf()


def mean_of(values: Tensor, counted: Tensor) -> Tensor:
    """The mean over the last dimension of the `counted` values; the others must be 0.

    With all counted it equals `mean` to the bit; with none it is 0.
    """
    count = counted.sum(-1)
    some = values.sum(-1) / count.clamp(min=1)
    return torch.where(count == values.shape[-1], values.mean(-1), some)


def _shape(x: Tensor) -> str:
    return str(list(x.shape))


def _kind(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
