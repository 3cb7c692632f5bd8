"""Which samples have a label, and which of a teacher's are believed."""

import torch
from torch import Tensor

from halfstep.config.validate import validate
from halfstep.errors import ConfigError, DataError
from halfstep.rng import key

NONE = -1
"""The label of a sample whose class is not known."""


def some_of_each(labels: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """Rows of `count` samples of each class, int64, sorted; those of fewer are among those of more.

    labels  int64 [N]; -1 is none
    seed    which ones

    `DataError` where a class has fewer.
    """
    if validate("labels_per_class", count, int) < 1:
        raise ConfigError(f"{count} labels a class teach nothing: write at least 1")
    chosen = list[Tensor]()
    for label in labels[labels >= 0].unique().tolist():
        rows = (labels == label).nonzero()[:, 0].cpu()
        if len(rows) < count:
            raise DataError(
                f"class {label} has {len(rows):,} labelled samples, asked for {count:,}: ask for "
                f"{len(rows):,} a class at most"
            )
        generator = torch.Generator().manual_seed(key(seed, label))
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    if not chosen:
        raise DataError("this data has no labels to choose from: give labelled data")
    return torch.cat(chosen).sort().values


def confident_rows(
    probabilities: Tensor,
    *,
    threshold: float = 0.0,
    per_class: int | None = None,
    repeat: bool = False,
) -> Tensor:
    """Rows whose most probable class is at least so probable, the surest first in each class, int64.

    probabilities  of the teacher, float [N, classes]
    threshold      in [0, 1]
    per_class      at most so many of each class; None: all
    repeat         classes with fewer are repeated up to `per_class`, as Noisy Student balances them (Xie et
                   al. 2020, arXiv 1911.04252, section 2)

    Classes of which no row is sure enough are left out.
    """
    if (
        probabilities.ndim != 2
        or not 0 <= threshold <= 1
        or (per_class is not None and per_class < 1)
    ):
        raise ConfigError(
            f"probabilities are [N, classes] and a threshold lies in [0, 1], got "
            f"{list(probabilities.shape)}, {threshold:g} and {per_class} a class: write for example "
            "threshold=0.9, per_class=100"
        )
    sums = probabilities.detach().double().sum(1)
    if probabilities.min() < 0 or (sums - 1).abs().max() > 1e-3:
        raise ConfigError(
            f"probabilities are 0 or more and sum to 1 in every row, got sums of {float(sums.min()):g} to "
            f"{float(sums.max()):g}: write logits.softmax(1)"
        )
    if repeat and per_class is None:
        raise ConfigError("classes are repeated up to a number: give per_class, too")
    confidence, label = probabilities.detach().cpu().double().max(1)
    chosen = list[Tensor]()
    for k in range(probabilities.shape[1]):
        rows = ((label == k) & (confidence >= threshold)).nonzero()[:, 0]
        rows = rows[confidence[rows].argsort(descending=True, stable=True)]
        if per_class is not None:
            times = -(-per_class // max(len(rows), 1)) if repeat else 1
            rows = rows.repeat(times)[:per_class]
        chosen.append(rows)
    return torch.cat(chosen)
