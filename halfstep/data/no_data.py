"""No data: the conditions of walks from noise, for distillation without data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from halfstep.batch import Batch, completed, Cond
from halfstep.data.latents.contexts import Contexts
from halfstep.errors import ConfigError
from halfstep.identity import sha256_of
from halfstep.rng import Draw

Walker = Literal["teacher", "student"]
NONE = "none"
NO_DATA = (NONE, "none:student")
"""The names of no data: the teacher walks from noise, or the student."""


@dataclass(frozen=True, eq=False)
class NoData:
    """No data: distillation at the states of walks from noise, with labels or prompts in turn.

    Args:
        walk: the network that walks: "teacher" or "student".
        labels: the classes of walks, int64 [N] or whole numbers; by default all of the teacher's.
        prompts: the texts of walks, for a teacher that reads texts.
        shape: the shape of a sample; `distill` takes the teacher's.
        names: the names of the teacher's classes.
        contexts: the prompts' conditions; `distill` has the teacher's own encoders make them, once.
        defaults: conditions of every sample beside its label and text, in one row.

    Raises:
        ConfigError: another walker, labels that are no whole numbers, or prompts that are no list of
            texts.
    """

    walk: Walker = "teacher"
    labels: Tensor | Sequence[int] | None = None
    prompts: Sequence[str] = ()
    shape: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    contexts: Contexts | None = None
    defaults: Cond | None = None
    flip = False
    is_images = False

    def __post_init__(self) -> None:
        if self.walk not in ("teacher", "student"):
            raise ConfigError(
                f"without data the teacher walks from noise or the student, got {self.walk!r}: write "
                "walk='teacher' or walk='student'"
            )
        if isinstance(self.prompts, str) or not all(isinstance(text, str) for text in self.prompts):
            raise ConfigError(
                "prompts are a list of texts: write for example prompts=['a cat', 'a dog']"
            )
        if self.labels is not None:
            labels = torch.as_tensor(self.labels)
            whole = not (
                labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
            )
            if labels.ndim != 1 or not len(labels) or not whole or int(labels.min()) < 0:
                raise ConfigError(
                    "labels of walks are whole numbers from 0 on, one or more: write for example "
                    "labels=(0, 1, 2), or leave labels out for all classes"
                )
            object.__setattr__(self, "labels", labels.long())

    @classmethod
    def named(cls, spec: str) -> Self:
        """No data of the name `none` or `none:student`.

        Args:
            spec: the name.
        """
        return cls(walk="teacher" if spec == NONE else "student")

    @property
    def spec(self) -> str:
        """The name, as the command line has it."""
        return NONE if self.walk == "teacher" else NO_DATA[1]

    @property
    def num_classes(self) -> int:
        """The number of the teacher's classes; 0 without labels."""
        return len(self.names) if self.labels is not None else 0

    @property
    def nbytes(self) -> int:
        """The number of bytes that `to` moves."""
        return 0

    def __len__(self) -> int:
        """The number of conditions; 1 without any."""
        return max(1, *(len(part) for part in (self._labels, self.prompts) if part is not None))

    @property
    def _labels(self) -> Tensor | None:
        return self.labels if isinstance(self.labels, Tensor) else None

    def to(self, device: torch.device | str) -> "NoData":
        """The same: conditions are moved when they are used."""
        return self

    def conditions(self, rows: Tensor) -> Cond | None:
        """The conditions of these numbers, on the CPU; None for a network without conditions.

        rows  int64 [B], below the number of conditions
        """
        cond = None
        if (contexts := self.contexts) is not None:
            cond = contexts.rows(rows % (len(contexts.offsets) - 1))
        if (labels := self._labels) is not None:
            cond = replace(cond or Cond(), label=labels[rows % len(labels)])
        return completed(cond, self.defaults, len(rows))

    def batch(self, rows: Tensor) -> Batch:
        """Zeros of the shape of samples, with these conditions."""
        rows = rows.cpu()
        return Batch(torch.zeros(len(rows), *self.shape), self.conditions(rows), rows)

    def training_batch(self, rows: Tensor, draw: Draw) -> Batch:
        """As `batch`: the states of training and their conditions are those of walks."""
        return self.batch(rows)

    def fingerprint(self) -> str:
        """sha256 of who walks and of the conditions."""
        return sha256_of((f"no data, {self.walk}", self._labels, repr(list(self.prompts))))
