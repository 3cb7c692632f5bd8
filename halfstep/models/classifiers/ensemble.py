"""A teacher of classifiers: one network, or the mean of several networks' probabilities."""

import math
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import Self

import torch
from torch import nn, Tensor

from halfstep.errors import ConfigError
from halfstep.identity import sha256_of
from halfstep.models.classifiers.registry import class_names, refuse_other_classes
from halfstep.models.compression.int8 import plain_tensors
from halfstep.models.hooks import check_parts, forward_with_features, unchanged
from halfstep.pixels import as_floats

ROWS = 64
"""The constant number of rows of a teacher's forward, so that logits do not depend on the batch size."""
SHIFTS = (1, 6, 23, 42)
APART = 1e-3
"""A difference beyond rounding, relative to the largest logit."""


class Teachers(nn.Module):
    """Maps images [B, C, H, W] in [-1, 1] to logits [B, classes], without gradients.

    Several networks give log(mean of their probabilities) (Hinton et al. 2015, section 5): the mean of the KL
    divergences to each is the divergence to that mean plus a constant.  A temperature acts on the mean.

    nets  each reads images in [-1, 1] and does its own preprocessing, as its first layers

    It is always in eval mode.  It runs in blocks of `rows` rows, the last one padded, so that after
    `is_reproducible` the same rows have the same logits, to the bit, in a batch of any size and order.
    """

    rows = ROWS

    def __init__(self, *nets: nn.Module):
        super().__init__()
        if not nets:
            raise ConfigError("there is no teacher: give one or more classifiers")
        if len({id(net) for net in nets}) < len(nets):
            raise ConfigError("a teacher is given twice: give each one once")
        named = [names for names in map(class_names, nets) if names]
        for names in named[1:]:
            refuse_other_classes(named[0], names, "a teacher", "another")
        self.class_names = named[0] if named else ()
        self.nets = nn.ModuleList(nets)
        self.eval()  # answers have no gradient in any case, and the nets are the caller's

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.forward_with_features(x, ())[0]

    @torch.no_grad()
    def forward_with_features(
        self, x: Tensor, names: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the outputs of the named parts, [B, ...] each.

        `ConfigError` for named parts of several teachers, which have no features in common.
        """
        if names and len(self.nets) > 1:
            raise ConfigError(
                f"{len(self.nets)} teachers have no features in common, only probabilities: give one "
                "teacher, or leave the terms on features out"
            )
        x = as_floats(x)
        self.nets.eval()  # a part may have been set to train mode
        blocks = [self._block(block, names) for block in x.split(self.rows)]
        logits = torch.cat([block_logits for block_logits, _ in blocks])
        return logits, {name: torch.cat([f[name] for _, f in blocks]) for name in names}

    def _block(self, x: Tensor, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        rows = len(x)
        if rows < self.rows:
            x = torch.cat([x, x[-1:].expand(self.rows - rows, *x.shape[1:])])
        with unchanged(x, "teacher"):
            if len(self.nets) == 1:
                logits, features = forward_with_features(self.nets[0], names, x)
            else:
                logits, features = mean_of([net(x) for net in self.nets]), {}
        if logits.ndim != 2 or len(logits) != self.rows:
            raise ConfigError(
                f"the teacher answered {self.rows} images in the shape {list(logits.shape)}: it must return "
                "logits [B, classes]"
            )
        return logits[:rows].detach(), {name: value[:rows] for name, value in features.items()}

    def is_reproducible(self, x: Tensor) -> bool:
        """Whether a row's logits do not depend on its place in a block; otherwise it now runs row by row.

        Some kernels round differently in some rows of a matrix (on a CPU, of a small one): such a teacher is
        then run one row at a time, which is slower.

        x  [ROWS, ...], any images.  `ConfigError` if a row's logits depend on the other rows.
        """
        self.rows = ROWS
        logits, alone = self(x), self(x[:1])
        # -inf, which excludes a class, minus -inf is nan.
        off = torch.where(logits[:1] == alone, 0, logits[:1] - alone).abs().max()
        if off > APART * (1 + logits.nan_to_num(0, 0, 0).abs().max()):
            raise ConfigError(
                "the teacher's logits depend on the other samples of a batch: give one that looks at each "
                "sample by itself in eval mode"
            )
        same = torch.equal(logits[:1], alone) and all(
            torch.equal(self(x.roll(shift, 0)).roll(-shift, 0), logits) for shift in SHIFTS
        )
        self.rows = ROWS if same else 1
        return same

    def check_parts(self, names: Sequence[str]) -> None:
        """`ConfigError` unless the only teacher has parts of these names."""
        check_parts(self.nets[0], names, "teacher")

    @cached_property
    def digest(self) -> str:
        """sha256 of the recipes, weights and buffers of all networks, in order."""
        parts = list[str | Tensor]()
        for net in self.nets:
            recipe = f"{getattr(net, 'recipe', '')} {net}"
            parts.append(re.sub(r" at 0x\w+", "", recipe))  # without addresses of functions
            parts += chain.from_iterable(sorted(plain_tensors(net).items()))
        return sha256_of(parts)


def mean_of(logits: Sequence[Tensor]) -> Tensor:
    """log(mean of softmax(each)), [B, classes]: the logits of the mean probabilities, stable."""
    num_classes = {value.shape[-1] for value in logits}
    if len(num_classes) > 1:
        raise ConfigError(
            f"the teachers have {' and '.join(map(str, sorted(num_classes)))} classes: give teachers of the "
            "same classes"
        )
    each = torch.stack([value.float().log_softmax(-1) for value in logits])
    return each.logsumexp(0) - math.log(len(logits))
